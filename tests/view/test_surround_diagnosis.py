"""The diagnosis of surround-view runs: its three files, and what they say where pieces are missing."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from html_page import Page
from surround_run import CLASSES, open_drive

from distill3d.diagnose import Diagnosis, diagnose
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes import filtered, ground_truth
from distill3d.evaluate.surround_fields import SURROUND_FIELDS
from distill3d.evaluate.transfer import OUTCOMES


@pytest.fixture(scope="module")
def result(surround_original: Path, tmp_path_factory: pytest.TempPathFactory) -> Diagnosis:
    return diagnose(surround_original, out=tmp_path_factory.mktemp("out") / "diagnosis.html", device="cpu")


@pytest.fixture(scope="module")
def told(result: Diagnosis) -> dict:
    return json.loads(result.files[1].read_text())


@pytest.fixture(scope="module")
def page(result: Diagnosis) -> Page:
    return Page(result.files[0].read_text(encoding="utf-8"))


def rows(result: Diagnosis) -> list[dict[str, str]]:
    return list(csv.DictReader(result.files[2].read_text().splitlines()))


def test_objects_are_those_of_the_official_evaluation(result: Diagnosis, told: dict, drive_root: Path) -> None:
    drive = open_drive(drive_root, images=False)
    truth = ground_truth(drive.tables, drive.frame_ids)
    counted, _ = filtered(truth.boxes, truth.racks)
    table = rows(result)
    assert sorted(row["class"] for row in table) == sorted(
        name for name in (counted.classes[label] for label in counted.label) if name in CLASSES
    )
    for one in told["students"].values():
        assert one["total"]["objects"] == len(table) and one["teacher"] == "teacher"
        for group in one["groups"].values():
            assert sum(b["objects"] for b in group["bins"]) + group["in_no_bin"] == len(table)
        assert {"distance", "points", "motion", "class", "teacher_error"} <= one["groups"].keys()


def test_outcome_of_each_object(result: Diagnosis) -> None:
    """Boxes are the objects moved forward by 1.2 m (baseline, every second), 0.4 m (student) and 0.1 m (teacher)."""
    table = rows(result)
    assert {row["baseline_found"] for row in table} == {"0", "1"}
    for row in table:
        for stage, miss in (("baseline", 1.2), ("labeldistill", 0.4), ("teacher", 0.1)):
            if row[f"{stage}_found"] == "1":
                assert float(row[f"{stage}_centre_error"]) == pytest.approx(miss, abs=1e-3)
                assert float(row[f"{stage}_depth_error"]) <= miss + 1e-3
            else:
                assert row[f"{stage}_x"] == row[f"{stage}_depth_error"] == ""
        if row["baseline_found"] == "0":
            assert row["labeldistill_outcome"] == ("gained" if row["labeldistill_found"] == "1" else "missed")
            continue
        worse = float(row["labeldistill_depth_error"]) - float(row["baseline_depth_error"])
        margin = 0.02 * float(row["distance"])
        expected = "positive" if worse < -margin else "negative" if worse > margin else "neutral"
        if row["labeldistill_found"] == "1" and abs(abs(worse) - margin) > 1e-3:
            assert row["labeldistill_outcome"] == expected
    assert {row["labeldistill_outcome"] for row in table} <= set(OUTCOMES)


def test_errors_and_exchange(told: dict) -> None:
    student = told["students"]["labeldistill"]
    errors = student["errors"]["all"]
    assert (
        errors["baseline"]["objects"]
        == errors["labeldistill" if "labeldistill" in errors else "student"]["objects"]
        > 0
    )
    for part, miss in (("baseline", 1.2), ("student", 0.4), ("teacher", 0.1)):
        assert 0 < errors[part]["along"]["mean"] < miss and errors[part]["width"]["mean"] == pytest.approx(0, abs=1e-3)
        assert errors[part]["flipped"] == 0
    forward = student["exchanged"]["baseline_takes_student"]
    backward = student["exchanged"]["student_takes_baseline"]
    assert forward["start"] == backward["end"] and forward["end"] == backward["start"]
    assert set(SURROUND_FIELDS) < forward["with"].keys()
    for score in ("NDS", "mAP"):
        assert forward["with"]["distance+direction"][score] > forward["start"][score]  # the student's places are better
        assert forward["with"]["size"][score] == pytest.approx(forward["start"][score], abs=0.05)
    truth = student["exchanged"]["baseline_takes_truth"]
    assert truth["with"]["distance+direction"]["mAP"] >= forward["with"]["distance+direction"]["mAP"]


def test_page(result: Diagnosis, page: Page) -> None:
    page.assert_self_contained()
    for words in (
        "What is off: the fields of found boxes", "What it is worth: fields exchanged", "labeldistill against baseline",
        "nuScenes knows no occlusion", "too far", "front left", "boxes that only one has", "at rest",
    ):  # fmt: skip
        assert words in page.text
    assert page.html.count('<div class="frame cameras">') == 2 * 2  # two students, two moments each
    assert "shows no maps of the ground" in page.text  # the made-up run has no weights


def test_kinds_of_runs_do_not_mix(surround_original: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    one = make_run()
    for run, other in ((one, surround_original), (surround_original, one)):
        with pytest.raises(
            UserError, match="run demo is in KITTI's layout and run drives of surround views"
        ) as refused:
            diagnose(run, baseline=str(other), out=tmp_path / "page.html")
        assert "\n" not in str(refused.value) and not (tmp_path / "page.html").exists()
