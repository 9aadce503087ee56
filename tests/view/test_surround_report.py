"""The report of surround-view runs: its numbers, six cameras and the view from above, and what it says is missing."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from html_page import Page
from PIL import Image
from surround_run import CANVAS, STAGES, open_drive, write_predictions, write_run

from distill3d.boxes import Boxes3D
from distill3d.data.nuscenes.dataset import CAMERAS
from distill3d.errors import UserError
from distill3d.evaluate.nuscenes import TP_ERRORS
from distill3d.view.draw import SUPERSAMPLE
from distill3d.view.gallery import cast, open_dataset
from distill3d.view.headline import caution, headline
from distill3d.view.palette import LOOKS, TRUE
from distill3d.view.pieces import shown
from distill3d.view.report import write_report
from distill3d.view.runs import read_runs
from distill3d.view.surround import MEASURES, SurroundKind
from distill3d.view.surround_gallery import (
    GROUND_SIZE,
    camera_panels,
    ground_view,
    key_camera,
    moments,
    pictured,
    trained_classes,
)
from distill3d.view.surround_gallery import open_dataset as open_drives


def report(runs: list[Path], folder: Path, gallery: int = 0) -> tuple[str, Page]:
    html = write_report(runs, folder / "out" / "report.html", gallery).read_text(encoding="utf-8")
    return html, Page(html)


def evaluations(run: Path) -> dict[str, dict]:
    return {name: json.loads((run / name / "evaluation.json").read_text()) for name in STAGES}


# ------------------------------------------------------------------------------------------------------------- the page


def test_page_holds_the_numbers(surround_original: Path, tmp_path: Path) -> None:
    _, page = report([surround_original], tmp_path)
    page.assert_self_contained()
    results = evaluations(surround_original)
    for result in results.values():
        for value in (result["nd_score"], result["mean_ap"], *result["mean_dist_aps"].values()):
            assert f"{100 * value:.2f}" in page.text
        for name in TP_ERRORS:
            assert f"{result['tp_errors'][name]:.3f}" in page.text
    ours, theirs = results["labeldistill"], results["baseline"]
    assert f"+{100 * (ours['nd_score'] - theirs['nd_score']):.2f}" in page.text
    assert f"−{theirs['tp_errors']['trans_err'] - ours['tp_errors']['trans_err']:.3f}" in page.text
    shown = ", ".join(f"{n} {100 * results[n]['nd_score']:.1f}" for n in ("lidar", "labeldistill", "baseline"))
    assert f"{shown}: nuScenes detection score (NDS), one seed" in page.text.replace("\u00a0", " ")
    for words in (
        "One seed is no proof",
        "v1.0-synth",
        "64 × 24 px",
        "car, truck, bicycle, pedestrian",
        "labeldistill",
    ):
        assert words in page.text
    for term in ("heat", "box", "labeldistill/lidar", "mATE: translation (m)"):
        assert term in page.text
    assert "What is missing" not in page.text


def test_smaller_errors_are_better(surround_original: Path, tmp_path: Path) -> None:
    html, _ = report([surround_original], tmp_path)
    results = evaluations(surround_original)
    gain = results["baseline"]["tp_errors"]["trans_err"] - results["labeldistill"]["tp_errors"]["trans_err"]
    assert f'<small class="up">−{gain:.3f}</small>' in html


def test_what_papers_state_is_a_column_beside_the_scores(surround_run: Path, tmp_path: Path) -> None:
    path = surround_run / "baseline" / "evaluation.json"
    best = {"of": 3, "epoch": 8, "split": "val", "nuscenes": {"NDS": 0.875, "mAP": 0.75}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "best_of_reported": best}))
    html, page = report([surround_run], tmp_path)
    assert ">best of N on the reported split, as papers state it</th>" in html
    assert '<td class="opens soft">87.50<small class="soft">87.50 / 75.00, epoch 8, N = 3</small></td>' in html
    assert html.count("87.50") == 2 and "87.5:" not in page.text


def test_curves_of_every_class_and_stage(surround_original: Path, tmp_path: Path) -> None:
    html, _ = report([surround_original], tmp_path)
    precision = html.split('id="precision"')[1].split('id="gallery"')[0]
    for name in ("car", "truck", "bicycle", "pedestrian"):
        chart = precision.split(f'aria-label="{name}"')[1].split("</svg>")[0]
        assert re.findall(r"<title>([^<]*)</title>", chart) == [
            "Teacher", "Label encoder", "Baseline", "Distilled: lidar", "Distilled: labeldistill"
        ]  # fmt: skip
    assert "less than 2 m from its object" in precision
    nds = evaluations(surround_original)["labeldistill"]["nd_score"]
    assert f"Distilled: labeldistill, epoch 1: {100 * nds:.2f}" in html.split('id="training"')[1]


def test_errors_against_distance(surround_original: Path, tmp_path: Path) -> None:
    """Boxes are the objects moved forward; the baseline leaves out every second."""
    html, page = report([surround_original], tmp_path)
    section = html.split('id="distance"')[1].split("</section>")[0]
    for stage, miss in (("Teacher", 0.1), ("Baseline", 1.2)):
        found = re.findall(rf"<title>{stage}, [^:]*: ([0-9.]+) m \(", section)
        assert found and all(float(value) <= miss + 0.01 for value in found)
    shares = re.findall(r"<title>(\w+), [^:]*: ([0-9.]+) % \(", section)
    assert {name for name, _ in shares} >= {"Teacher", "Baseline"}
    assert all(float(share) == 100 for name, share in shares if name == "Teacher")
    assert any(float(share) < 100 for name, share in shares if name == "Baseline")
    assert "Error against distance" in page.text


def test_same_run_same_page(surround_original: Path, tmp_path: Path) -> None:
    first, second = (report([surround_original], tmp_path / name, gallery=1)[0] for name in "ab")
    assert first == second


# ---------------------------------------------------------------------------------------------------------- the gallery


def test_gallery_shows_six_cameras_and_the_ground(surround_original: Path, tmp_path: Path) -> None:
    html, page = report([surround_original], tmp_path, gallery=2)
    names = ["front left", "front", "front right", "back left", "back", "back right"]
    assert re.findall(r"<div><img [^>]*>\s*<p>([^<]*)</p></div>", html) == 2 * names
    pictures = [reference for reference in page.references if reference.startswith("data:image/")]
    assert len(pictures) == 2 * (len(CAMERAS) + 1)
    sizes = []
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))) as image:
            sizes.append(image.size)
            assert np.ptp(np.asarray(image.convert("L"))) > 50
    assert len(set(sizes[:6])) == 1 and sizes[0][0] % CANVAS[0] == 0 and sizes[6] == (GROUND_SIZE, GROUND_SIZE)
    caption = page.text.split("Gallery")[-1]
    assert "synth-0000, key frame 1 of 2" in caption and "key frame 2 of 2" in caption
    assert "They show the boxes of Baseline and Distilled: labeldistill." in caption


def test_boxes_of_a_moment(surround_original: Path, drive_root: Path) -> None:
    """Predictions come back from the file into the ego frame: those of a stage lie as far off as it missed."""
    parts = cast(shown(read_runs([surround_original])), MEASURES.first.of)
    assert [one.stage.name for one in parts.values()] == ["teacher", "baseline", "labeldistill"]
    assert pictured(parts) == ["baseline", "student"]
    for moment in moments(parts, trained_classes(parts), 2):
        truth = moment.sets[TRUE]
        for part, one in parts.items():
            spec, found = STAGES[one.stage.name], moment.sets[part]
            expected = truth[torch.arange(len(truth)) % spec.found == 0].to(torch.float64)
            offset = found.centre - expected.centre
            torch.testing.assert_close(offset, spec.miss * expected.heading(), atol=1e-4, rtol=0)
            torch.testing.assert_close(found.heading(), expected.heading(), atol=1e-4, rtol=0)
            assert sum(moment.counts[part].values()) == len(found)


def solid(colours: dict[str, str], picture: Image.Image) -> np.ndarray:
    """Rows and columns (n, 2) of the pixels that have the colour of the only set."""
    (colour,) = colours.values()
    wanted = np.array([int(colour[i : i + 2], 16) for i in (1, 3, 5)])
    return np.argwhere(np.abs(np.asarray(picture.convert("RGB")).astype(int) - wanted).max(-1) < 6)


def box_at(x: float, y: float, velocity: tuple[float, float] = (0.0, 0.0)) -> Boxes3D:
    """A cube of one metre on the road."""
    return Boxes3D(
        torch.tensor([[x, y, 0.5]]), torch.ones(1, 3), torch.zeros(1), torch.zeros(1, dtype=torch.int64), "ego",
        velocity=torch.tensor([velocity]),
    )  # fmt: skip


@pytest.mark.parametrize("camera", range(len(CAMERAS)))
def test_cameras_show_what_stands_before_them(drive_root: Path, camera: int) -> None:
    """A box on the axis of one camera is in the middle of its picture, and in none on the other side."""
    sample = open_drive(drive_root).get(0)
    pose = sample.camera_to_ego[0, camera]
    x, y, _ = (pose[:3, 3] + 8.0 * pose[:3, 2]).tolist()
    colours = {"found": "#ff00ff"}
    panels = camera_panels(sample, {"found": box_at(x, y)}, colours)
    drawn = [len(solid(colours, panel)) for panel in panels]
    assert drawn[camera] == max(drawn) > 0
    assert drawn[(camera + 3) % 6 if camera % 3 == 1 else 5 - camera] == 0
    _, column = solid(colours, panels[camera]).mean(0)
    centre = float(key_camera(sample, camera).projection[0, 2]) / sample.images.shape[-1]  # pyright: ignore
    assert column / panels[camera].width == pytest.approx(centre, abs=0.05)


@pytest.mark.parametrize(("x", "y"), [(20.0, 0.0), (-20.0, 0.0), (0.0, 20.0), (0.0, -20.0)])
def test_ground_is_seen_from_above_forward_up(x: float, y: float) -> None:
    colours = {"found": "#ff00ff"}
    row, column = solid(colours, ground_view(None, {"found": box_at(x, y)}, colours)).mean(0) / GROUND_SIZE
    assert (0.5 - row) * 60 == pytest.approx(x, abs=0.6)  # 30 m to each side
    assert (0.5 - column) * 60 == pytest.approx(y, abs=0.6)


@pytest.mark.parametrize(
    ("velocity", "reach"),
    [((8.0, 0.0), (8, 0)), ((0.0, -8.0), (0, -8)), ((0.1, 0.0), (0, 0)), ((float("nan"),) * 2, (0, 0))],
)
def test_velocity_is_a_line_to_where_an_object_will_be(velocity: tuple, reach: tuple) -> None:
    colours = {"found": "#ff00ff"}
    pixels = solid(colours, ground_view(None, {"found": box_at(10.0, 0.0, velocity)}, colours)) / GROUND_SIZE * 60 - 30
    ahead, left = -pixels[:, 0] - 10.0, -pixels[:, 1]
    farthest = np.argmax(np.abs(ahead) + np.abs(left))
    if any(reach):
        assert (ahead[farthest], left[farthest]) == pytest.approx(reach, abs=0.5)
    else:
        assert max(np.abs(ahead).max(), np.abs(left).max()) < 1.0


def test_points_and_boxes_from_above_agree(drive_root: Path) -> None:
    """A box around a point is drawn around where the point is drawn."""
    point = torch.tensor([[12.0, 9.0, 0.5, 0.0, 0.0]])
    colours = {"found": "#ff00ff"}
    empty = {"found": Boxes3D.empty("ego")}
    paper = np.asarray(ground_view(None, empty, colours)).astype(int)
    dot = np.argwhere(np.abs(np.asarray(ground_view(point, empty, colours)).astype(int) - paper).max(-1) > 20)
    outline = solid(colours, ground_view(None, {"found": box_at(12.0, 9.0)}, colours))
    assert len(dot) and (outline.min(0) <= dot).all() and (dot <= outline.max(0)).all()
    assert SUPERSAMPLE * len(dot) <= GROUND_SIZE  # one point, not the whole picture


@pytest.mark.parametrize("stage", STAGES)
def test_one_stage_alone(surround_original: Path, tmp_path: Path, stage: str) -> None:
    _, page = report([surround_original / stage], tmp_path, gallery=1)
    assert "No comparison yet" in page.text and f"Finished: {stage}." in page.text
    assert sum(reference.startswith("data:image/") for reference in page.references) == len(CAMERAS) + 1


def test_student_behind_is_shown_where_it_is_behind(surround_run: Path, drive_root: Path) -> None:
    drive = open_drive(drive_root, images=False)
    write_predictions(surround_run / "labeldistill", drive, 3.0, 1)
    write_predictions(surround_run / "baseline", drive, 0.1, 1)
    stages = read_runs([surround_run])
    _, leads = headline(stages, MEASURES)
    assert any("labeldistill is" in lead and "points behind its baseline; in mAP" in lead for lead in leads)
    (surround_run / "lidar" / "evaluation.json").unlink()  # else it is the better student, and is shown
    parts = cast(shown(read_runs([surround_run])), MEASURES.first.of)
    reasons = [moment.reason for moment in moments(parts, trained_classes(parts), 4)]
    assert "student most behind the baseline" in reasons


# ------------------------------------------------------------------------------------------------------ what is missing


def remove(run: Path, *names: str) -> None:
    for name in names:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("gone", "sentences"),
    [
        (["labeldistill/evaluation.json"], ["drives/labeldistill is not finished", "not finished"]),
        (["labeldistill", "lidar"], ["drives/labeldistill has not begun", "No comparison yet"]),
        (
            ["baseline/predictions"],
            ["drives/baseline has no predictions: it is left out of the gallery and of error against distance."],
        ),
        (["lidar/metrics.jsonl"], ["drives/lidar/metrics.jsonl is missing"]),
        (["recipe.yaml"], ["drives/recipe.yaml is missing", "The gallery is left out: the recipe of run drives has"]),
        (
            [f"{s}/{f}" for s in STAGES for f in ("evaluation.json", "metrics.jsonl")],
            ["No stage has been evaluated yet", "No finished stage has predictions", "No stage has written metrics"],
        ),
        (
            [f"{s}/predictions" for s in STAGES],
            ["No finished stage has predictions to draw", "nuScenes detection score"],
        ),
    ],
)
def test_missing_pieces_are_named(surround_run: Path, tmp_path: Path, gone: list, sentences: list) -> None:
    remove(surround_run, *gone)
    _, page = report([surround_run], tmp_path, gallery=1)
    for sentence in sentences:
        assert sentence in page.text


def change_recipe(run: Path, **changes: object) -> None:
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["dataset"] |= changes
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"root": "/nowhere/drives"}, "The gallery is left out: /nowhere/drives"),
        ({"eval_split": "other"}, "The gallery is left out: there is no split 'other'"),
        ({"canvas": None}, "The gallery is left out: the recipe of run drives has no key dataset.canvas."),
    ],
)
def test_unreadable_data_sets_are_named(surround_run: Path, tmp_path: Path, changes: dict, sentence: str) -> None:
    change_recipe(surround_run, **changes)
    _, page = report([surround_run], tmp_path, gallery=1)
    assert sentence in page.text
    assert f"{100 * evaluations(surround_run)['baseline']['nd_score']:.2f}" in page.text


def test_broken_submissions_are_named(surround_run: Path, tmp_path: Path) -> None:
    (surround_run / "baseline" / "predictions" / "submission.json").write_text('{"meta": {}, "results": {"a": [')
    _, page = report([surround_run], tmp_path, gallery=1)
    assert "The gallery is left out:" in page.text and "submission.json" in page.text.split("The gallery is left")[1]


# ------------------------------------------------------------------------------------------------------ what is refused


def test_kinds_of_runs_do_not_mix(surround_original: Path, make_run: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run demo is in KITTI's layout and run drives of surround views") as refused:
        write_report([surround_original, make_run()], tmp_path / "report.html")
    assert "\n" not in str(refused.value) and not (tmp_path / "report.html").exists()


def test_what_is_made_for_kitti_refuses(surround_original: Path) -> None:
    student = next(stage for stage in read_runs([surround_original]) if stage.name == "labeldistill")
    with pytest.raises(UserError, match="run drives is of surround views, .*KITTI's layout: use distill3d report"):
        open_dataset(student)


def test_moments_are_read_as_they_were_evaluated(surround_run: Path) -> None:
    """On the rig of the evaluation, and scans by their columns."""
    stage = next(stage for stage in read_runs([surround_run]) if stage.name == "baseline")
    assert open_drives(stage).cameras == CAMERAS and open_drives(stage).config.scan_columns == 5
    recipe: Any = {**stage.recipe, "dataset": {**stage.dataset, "scan_columns": 4, "cameras": ["CAM_BACK"]}}
    stage = replace(stage, recipe=recipe)
    assert (open_drives(stage).cameras, open_drives(stage).config.scan_columns) == (("CAM_BACK",), 4)
    evaluation: Any = {**(stage.evaluation or {}), "settings": {"cameras": ["CAM_FRONT", "CAM_BACK"]}}
    assert open_drives(replace(stage, evaluation=evaluation)).cameras == ("CAM_FRONT", "CAM_BACK")


# ------------------------------------------------------------------------------------------------------------- cautions


@pytest.mark.parametrize("known", [("recipe.yaml",), ("card.json",), ("evaluation.json",), ("metrics.jsonl",)])
def test_layout_is_told_by_any_piece(surround_run: Path, known: tuple) -> None:
    pieces = {"card.json", "evaluation.json", "metrics.jsonl"} - set(known)
    remove(surround_run, *(f"{stage}/{piece}" for stage in STAGES for piece in pieces))
    if "recipe.yaml" not in known:
        remove(surround_run, "recipe.yaml")
    stages = read_runs([surround_run])
    assert len(stages) == len(STAGES) and {stage.layout for stage in stages} == {"nuscenes"}


def test_cautions(surround_run: Path, drive_root: Path) -> None:
    stages = read_runs([surround_run])
    unofficial = (
        "classes or constants other than the official ones and samples other than those of nuScenes' validation"
    )
    assert unofficial in " ".join(SurroundKind().cautions(stages))
    assert not any("different classes" in sentence for sentence in SurroundKind().cautions(stages))
    official = [
        replace(
            stage,
            recipe={"dataset": {"version": "v1.0-trainval", "eval_split": "val"}},
            evaluation={**(stage.evaluation or {}), "settings": {"official": True, "samples": 6019}},
        )
        for stage in stages
    ]
    assert SurroundKind().cautions(official) == []
    student = next(stage for stage in official if stage.card["input"] == "rgb")
    assert student.evaluation is not None and "settings" in student.evaluation
    student.evaluation["settings"]["cameras"] = ["CAM_FRONT", "LEFT"]
    assert SurroundKind().cautions(official) == [
        "The stages were evaluated on different cameras: what they gain may be the cameras'."
    ]
    assert "front, left; front left, front, front right" in SurroundKind().settings(official)["Cameras"]
    drive = open_drive(drive_root, images=False)
    write_predictions(surround_run / "baseline", drive, 1.0, 1, classes=("car",))
    assert "different classes: do not compare" in " ".join(SurroundKind().cautions(read_runs([surround_run])))


@pytest.mark.parametrize(
    ("file", "key", "value", "sentence"),
    [
        ("labeldistill/card.json", "epochs", 2, "not trained equally long"),
        ("labeldistill/evaluation.json", "settings", {"samples": 1}, "equally many frames"),
    ],
)
def test_unequal_comparisons_are_warned_of(
    surround_run: Path, file: str, key: str, value: object, sentence: str
) -> None:
    content = json.loads((surround_run / file).read_text())
    (surround_run / file).write_text(json.dumps({**content, key: value}))
    assert sentence in " ".join(caution(read_runs([surround_run]), MEASURES))


def test_seeds_are_put_together(surround_original: Path, drive_root: Path, tmp_path: Path) -> None:
    second = write_run(tmp_path / "second" / surround_original.name, drive_root, seed=1)
    _, page = report([surround_original, second], tmp_path, gallery=1)
    assert "2 seeds" in page.text and "Over seeds in NDS the students range" in page.text
    assert "One seed is no proof" not in page.text
    assert "Distilled: labeldistill, seed 1" in page.text
    assert LOOKS["baseline"].colour in page.html
    pictures = [reference for reference in page.references if reference.startswith("data:image/")]
    assert len(pictures) == len(CAMERAS) + 1
