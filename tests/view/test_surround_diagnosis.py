"""The diagnosis of surround-view runs: its three files, and what they say where pieces are missing."""

import csv
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from drives import small_surround_preset, write_drives
from html_page import Page
from made_up_runs import made_up_run
from surround_run import CLASSES, open_drive, write_predictions

from distill3d.answers import depth_log_scales
from distill3d.diagnose import Diagnosis, diagnose
from distill3d.diagnosed import SurroundWork
from distill3d.distill.methods import method_name
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes import filtered, ground_truth
from distill3d.evaluate.surround_fields import SURROUND_FIELDS
from distill3d.evaluate.transfer import OUTCOMES
from distill3d.settings import to_plain
from distill3d.view.runs import read_runs
from distill3d.view.surround_diagnosis import SurroundSection, in_ego


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
    assert errors["baseline"]["objects"] == errors["student"]["objects"] > 0
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


def test_terminal_tells_what_fields_are_worth(result: Diagnosis, told: dict) -> None:
    forward = told["students"]["labeldistill"]["exchanged"]["baseline_takes_student"]
    sentence = f"mAP: labeldistill {forward['end']['mAP']:.1f}, baseline {forward['start']['mAP']:.1f}"
    assert sentence in result.text() and "Of the single fields" in result.text()


def test_missing_pieces(surround_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    (surround_run / "teacher" / "predictions" / "submission.json").unlink()
    (surround_run / "lidar" / "evaluation.json").unlink()
    result = diagnose(surround_run, out=out, device="cpu")
    assert [one.student.name for one in result.sections] == ["labeldistill"]
    assert "teacher has no result files: nothing is told about its errors." in result.text()
    assert "lidar is not finished: it is left out." in result.text()
    assert "teacher" not in json.loads(result.files[1].read_text())["students"]["labeldistill"]["errors"]["all"]


@pytest.mark.parametrize(
    ("damage", "sentence"),
    [
        ('{"meta": {}, "results": {}}', "samples to evaluate are missing"),
        ('{"meta": {}, "results": {"a": [', "submission.json"),
    ],
)
def test_results_that_do_not_fit_are_refused(surround_run: Path, tmp_path: Path, damage: str, sentence: str) -> None:
    (surround_run / "labeldistill" / "predictions" / "submission.json").write_text(damage)
    with pytest.raises(UserError, match=sentence) as refused:
        diagnose(surround_run, out=tmp_path / "page.html", student="labeldistill", device="cpu")
    assert "\n" not in str(refused.value) and not (tmp_path / "page.html").exists()


def test_data_that_is_not_there_is_refused(surround_original: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere"):
        diagnose(surround_original, tmp_path / "nowhere", out=tmp_path / "page.html", device="cpu")


def test_kinds_of_runs_do_not_mix(surround_original: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    one = make_run()
    for run, other in ((one, surround_original), (surround_original, one)):
        with pytest.raises(
            UserError, match="run demo is in KITTI's layout and run drives of surround views"
        ) as refused:
            diagnose(run, baseline=str(other), out=tmp_path / "page.html")
        assert "\n" not in str(refused.value) and not (tmp_path / "page.html").exists()


# --------------------------------------------------------------------------------------------------------- the networks

#: Metres by which each stage of the run with networks misses every object.
MISSES = {"teacher": 0.1, "baseline": 1.2, "assistant": 0.3, "monotakd": 0.5, "monostl": 1.4}


@pytest.fixture(scope="module")
def networked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MonoTAKD and MonoSTL with untrained networks, whose results are made up."""
    folder = tmp_path_factory.mktemp("networked")
    root = write_drives(folder / "drives")
    recipe = small_surround_preset("tiny_surround", root)
    drive = open_drive(root, images=False)
    for stage in recipe.stages:
        path = made_up_run(
            folder / "runs", recipe, stage.name, teachers=list(stage.teachers),
            method=None if stage.method is None else method_name(stage.method), method_config=to_plain(stage.method),
        )  # fmt: skip
        (path / "config.yaml").write_text(yaml.safe_dump(to_plain(stage)))
        (path / "metrics.jsonl").write_text("")
        if stage.name in MISSES:
            (path / "predictions").mkdir()
            write_predictions(path, drive, MISSES[stage.name], found=1)
    return folder / "runs" / recipe.name


@pytest.fixture(scope="module")
def with_networks(networked: Path) -> Diagnosis:
    return diagnose(networked, device="cpu")


def test_maps_of_the_ground(with_networks: Diagnosis) -> None:
    told = json.loads(with_networks.files[1].read_text())["students"]
    sections = [one for one in with_networks.sections if isinstance(one, SurroundSection)]
    assert [one["frame"] for one in told["monotakd"]["bev_maps"]] == [moment.token for moment in sections[0].seen]
    assert told["monostl"]["bev_maps"] is None  # compares no maps
    for one in sections:
        for moment in one.seen:
            parts = {(seen.part, seen.name) for seen in moment.panels}
            assert {(part, "heatmap") for part in ("baseline", "student", "teacher")} <= parts
            assert all(np.isfinite(seen.ground.values).all() for seen in moment.panels)
    page = Page(with_networks.files[0].read_text(encoding="utf-8"))
    page.assert_self_contained()
    for words in ("What they see of the ground", "probability of a centre", "Maps of the ground", "the LiDAR scan"):
        assert words in page.text
    assert "left out" not in with_networks.text() and "no maps" not in with_networks.text()


def test_uncertainty_is_that_of_each_object(networked: Path) -> None:
    """Asked of the baseline, a BEVDepth, which says how unsure it is of what a camera sees."""
    stages = {stage.name: stage for stage in read_runs([networked])}
    work = SurroundWork(stages["baseline"], stages["monotakd"], 0.02)
    dataset, objects = work.dataset, work.objects
    by_sample = depth_log_scales(stages["baseline"], dataset.frame_ids, torch.device("cpu"))
    values, problem = work.log_scale(stages["baseline"], torch.device("cpu"))
    assert values is not None and problem == "" and np.isfinite(values).any() and len(values) == len(objects)
    for index, token in enumerate(dataset.frame_ids):
        known = dataset.get(index).objects
        assert known is not None and not np.isfinite(by_sample[token][len(known) :]).any()
        said = by_sample[token][: len(known)]
        centres = known.boxes.centre.double().numpy()
        here = objects.frame == index
        ours = in_ego(objects.boxes[here], dataset, token).centre.numpy()
        nearest = np.linalg.norm(ours[:, None] - centres[None], axis=-1).argmin(axis=1)
        np.testing.assert_array_equal(values[here], said[nearest])


def test_what_networks_do_not_say_is_said(with_networks: Diagnosis) -> None:
    assert "centerpoint predicts no uncertainty of depth" in with_networks.text()
    assert "bevdepth predicts no uncertainty of depth" in with_networks.text()  # the assistant, which sees the depth
