"""The diagnosis of a run: its three files, and what they say where pieces are missing."""

import csv
import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from html_page import Page
from streets import TRUNK

from distill3d.detectors.monodle import MonoDLE, tiny
from distill3d.diagnose import Diagnosis, diagnose
from distill3d.errors import UserError
from distill3d.evaluate.kitti import Annotations
from distill3d.evaluate.transfer import OUTCOMES, TransferSettings, analyse, find, labelled_objects
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights
from distill3d.view import charts
from distill3d.view.charts import Balance
from distill3d.view.diagnosis import Section, write_page
from distill3d.view.gallery import open_dataset
from distill3d.view.runs import read_runs

MakeRun = Callable[..., Path]
#: Of the made-up run: its cars, and those that the baseline leaves out.
CARS, GAPS = 27, 11


def edit_yaml(path: Path, change: Callable[[dict], object]) -> None:
    value = yaml.safe_load(path.read_text())
    change(value)
    path.write_text(yaml.safe_dump(value))


def add_stage(run: Path, source: str, name: str, role: str, finished: bool = True) -> None:
    """A further stage of a run, with the results of another."""
    shutil.copytree(run / source, run / name)
    card = json.loads((run / name / "card.json").read_text())
    (run / name / "card.json").write_text(json.dumps({**card, "stage": name, "role": role}))
    entry = {"name": name, "role": role, "detector": {"input": "rgb"}}
    (run / name / "config.yaml").write_text(yaml.safe_dump(entry))
    edit_yaml(run / "recipe.yaml", lambda recipe: recipe["stages"].append(entry))
    if not finished:
        (run / name / "evaluation.json").unlink()


def give_weights(run: Path, max_objects: int = 50) -> MonoDLE:
    """An untrained detector as the teacher of a run."""
    torch.manual_seed(0)
    config = replace(tiny(max_objects=max_objects), trunk=TRUNK, head_channels=8)
    detector = MonoDLE(config)
    save_weights(run / "teacher", detector.state_dict(), {"detector": "monodle", "config": to_plain(config)})
    card = json.loads((run / "teacher" / "card.json").read_text())
    (run / "teacher" / "card.json").write_text(json.dumps({**card, "role": "teacher", "input": "rgb"}))
    edit_yaml(run / "recipe.yaml", lambda recipe: recipe["dataset"].update(canvas=[160, 64]))
    return detector


def rows(result: Diagnosis) -> list[dict[str, str]]:
    return list(csv.DictReader(result.files[2].read_text().splitlines()))


def test_three_files(make_run: MakeRun) -> None:
    run = make_run()
    result = diagnose(run)
    assert result.files == tuple(run / f"diagnosis.{kind}" for kind in ("html", "json", "csv"))
    page = Page(result.files[0].read_text(encoding="utf-8"))
    page.assert_self_contained()
    # The student is 0.8 m better than the baseline, which is more than 2 % of every depth below 40 m.
    expected = dict.fromkeys(OUTCOMES, 0) | {"positive": CARS - GAPS, "gained": GAPS}
    student = json.loads(result.files[1].read_text())["students"]["student"]
    assert student["total"]["counts"] == expected
    assert student["teacher"] == "teacher" and student["total"]["found"]["teacher"] == CARS
    for group in student["groups"].values():
        assert sum(one["objects"] for one in group["bins"]) + group["in_no_bin"] == CARS
    table = rows(result)
    assert len(table) == CARS
    for row in table:
        assert row["student_outcome"] == ("positive" if row["baseline_found"] == "1" else "gained")
        assert float(row["student_depth_error"]) == pytest.approx(0.4)
        assert float(row["student_z"]) == pytest.approx(float(row["depth"]) + 0.4)
        assert (row["baseline_z"] == "") is (row["baseline_found"] == "0")
        assert row["teacher_log_scale"] == ""
    assert f"{CARS} in 6 frames" in page.text and "too few objects" in page.text
    assert page.html.count("<figure>") == 4 and "too far" in page.text  # the gains, one a frame; there is no harm
    assert "There is none." in page.text


def test_terminal(make_run: MakeRun) -> None:
    from rich.console import Console

    result = diagnose(make_run())
    console = Console(width=80, file=io.StringIO())
    console.print(result.table())
    shown = console.file.getvalue()
    assert all(name in shown for name in (*OUTCOMES, "net depth transfer", "student"))
    assert "holds no model.safetensors" in result.text()


def test_uncertainty_of_the_teacher(make_run: MakeRun) -> None:
    """One value for each label line that the detector looks at, and none beyond its slots."""
    run = make_run()
    give_weights(run, max_objects=4)
    result = diagnose(run)
    scales = {(row["frame"], int(row["line"])): row["teacher_log_scale"] for row in rows(result)}
    assert all((value == "") is (line > 4) for (_, line), value in scales.items())
    assert len({value for value in scales.values() if value}) > 4  # read at each object's own place
    group = json.loads(result.files[1].read_text())["students"]["student"]["groups"]["teacher_uncertainty"]
    assert group["in_no_bin"] == sum(value == "" for value in scales.values())
    counts = [one["objects"] for one in group["bins"]]
    assert sum(counts) == CARS - group["in_no_bin"] and max(counts) - min(counts) <= 1
    assert result.sections[0].lacks == ()


def test_untrained_lines_have_no_uncertainty(make_run: MakeRun, data_root: Path, tmp_path: Path) -> None:
    """A pedestrian before the cars shifts their slots; a detector of cars says nothing about it."""
    root = shutil.copytree(data_root, tmp_path / "people")
    for path in (root / "training" / "label_2").glob("*.txt"):
        person = path.read_text().splitlines()[0].replace("Car", "Pedestrian")
        path.write_text(f"{person}\n{path.read_text()}")
    run = make_run()
    give_weights(run)
    before = {(r["frame"], int(r["line"])): r["teacher_log_scale"] for r in rows(diagnose(run))}
    after = {(r["frame"], int(r["line"]) - 1): r["teacher_log_scale"] for r in rows(diagnose(run, data_root=root))}
    assert after == before and all(before.values())


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda run: None, "model.safetensors"),
        (lambda run: shutil.rmtree(run / "teacher" / "predictions"), "teacher has no result files"),
        (lambda run: (run / "teacher" / "evaluation.json").unlink(), "teacher has no result files"),
        (lambda run: remove_teacher(run), "no teacher in this run"),
    ],
    ids=["no weights", "no predictions", "not evaluated", "no teacher"],
)
def test_what_is_missing_is_said(spoil: Callable, words: str, make_run: MakeRun) -> None:
    run = make_run()
    spoil(run)
    result = diagnose(run)
    page = Page(result.files[0].read_text(encoding="utf-8"))
    assert "What is missing" in page.text and words in page.text and words in result.text()
    assert any(words in sentence for sentence in json.loads(result.files[1].read_text())["missing"])
    assert len(rows(result)) == CARS and page.html.count("<figure>") == 4


def remove_teacher(run: Path) -> None:
    shutil.rmtree(run / "teacher")
    edit_yaml(run / "recipe.yaml", lambda recipe: recipe.update(stages=recipe["stages"][1:]))


def test_a_detector_that_does_not_say(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise NotImplementedError("monodle predicts no uncertainty of depth")

    run = make_run()
    give_weights(run)
    monkeypatch.setattr(MonoDLE, "depth_log_scale", refuse)
    assert "monodle predicts no uncertainty of depth" in diagnose(run).text()


def test_no_images(make_run: MakeRun, data_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data_root, tmp_path / "bare")
    shutil.rmtree(root / "training" / "image_2")
    run = make_run()
    give_weights(run)
    result = diagnose(run, data_root=root)
    assert "There are no pictures" in result.text() and "uncertainty" in result.text()
    assert "<figure>" not in result.files[0].read_text() and len(rows(result)) == CARS


def test_a_baseline_from_elsewhere_is_no_unfinished_one(make_run: MakeRun) -> None:
    run = make_run()
    for name in ("evaluation.json", "metrics.jsonl"):
        (run / "baseline" / name).unlink()
    card = run / "baseline" / "card.json"
    card.write_text(json.dumps(json.loads(card.read_text()) | {"taken_from": {"folder": "streets"}}))
    with pytest.raises(UserError, match="the baseline baseline of .* was taken from elsewhere, not evaluated here$"):
        diagnose(run)


def test_frames_without_scans_are_drawn(make_run: MakeRun, data_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data_root, tmp_path / "camera")
    shutil.rmtree(root / "training" / "velodyne")
    result = diagnose(make_run(), data_root=root)
    assert "There are no pictures" not in result.text() and "<figure>" in result.files[0].read_text()


def test_several_students(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    add_stage(run, "baseline", "second", "student")
    add_stage(run, "student", "third", "student", finished=False)
    result = diagnose(run, out=tmp_path / "out" / "page.html")
    assert [one.student.name for one in result.sections] == ["student", "second"]
    students = json.loads((tmp_path / "out" / "page.json").read_text())["students"]
    assert students["second"]["total"]["counts"] == dict.fromkeys(OUTCOMES, 0) | {
        "neutral": CARS - GAPS, "missed": GAPS
    }  # fmt: skip
    page = Page((tmp_path / "out" / "page.html").read_text(encoding="utf-8"))
    assert {"student-0", "student-1"} <= page.ids and "third is not finished" in page.text
    assert {"student_outcome", "second_outcome"} <= set(rows(result)[0])
    (only,) = diagnose(run, student="second").sections
    assert only.student.name == "second"


def test_an_untaught_detector_is_shown_beside(make_run: MakeRun) -> None:
    run = make_run()
    add_stage(run, "student", "twin", "control")
    (one,) = diagnose(run).sections
    assert one.untaught is not None and one.untaught[0].name == "twin"
    assert one.untaught[1].total.counts == one.analysis.total.counts
    page = Page((run / "diagnosis.html").read_text(encoding="utf-8"))
    assert "twin, which this teacher did not teach" in page.text
    edit_yaml(run / "twin" / "config.yaml", lambda config: config.update(teachers=["teacher"]))
    assert diagnose(run).sections[0].untaught is None


def test_a_detector_that_began_with_taught_weights_is_taught(make_run: MakeRun) -> None:
    run = make_run()
    add_stage(run, "student", "warm", "preparation")
    add_stage(run, "student", "twin", "control")
    edit_yaml(run / "warm" / "config.yaml", lambda config: config.update(teachers=["teacher"]))
    assert diagnose(run).sections[0].untaught is not None
    edit_yaml(run / "twin" / "config.yaml", lambda config: config.update(inherit=["warm"]))
    assert diagnose(run).sections[0].untaught is None


def test_several_teachers(make_run: MakeRun) -> None:
    """The first one is compared with, all are named."""
    run = make_run()
    add_stage(run, "student", "assistant", "assistant")
    for order in (["teacher", "assistant"], ["assistant", "teacher"]):
        edit_yaml(run / "student" / "config.yaml", lambda config, order=order: config.update(teachers=order))
        result = diagnose(run)
        assert [one.teacher and one.teacher.name for one in result.sections] == order[:1]
        assert f"taught by {order[0]} and {order[1]}: what is told of a teacher is told of {order[0]}" in result.text()
        assert f"Teachers {', '.join(order)}" in Page(result.files[0].read_text(encoding="utf-8")).text


def test_preparation_is_no_student(make_run: MakeRun) -> None:
    run = make_run()
    add_stage(run, "student", "warm", "preparation")
    assert [one.student.name for one in diagnose(run).sections] == ["student"]


def test_the_baseline_of_another_run(make_run: MakeRun) -> None:
    """Given by the folder of its run or of its stage; its name may be that of a stage here."""
    run, other = make_run("here"), make_run("there", seed=3)
    own = diagnose(run).sections[0].analysis.total
    drop_baseline(run)
    for folder in (other, other / "baseline"):
        result = diagnose(run, baseline=str(folder))
        assert result.baseline.run == "there" and result.sections[0].analysis.total.counts == own.counts
        assert result.sections[0].analysis.total.depth_error["baseline"] > own.depth_error["baseline"]
        page = Page(result.files[0].read_text(encoding="utf-8"))
        assert "Baseline baseline (there)" in page.text and "diagnosis · here" in page.text
    edit_yaml(other / "recipe.yaml", lambda recipe: recipe["dataset"].update(root="elsewhere"))
    with pytest.raises(UserError, match="elsewhere"):
        diagnose(run, baseline=str(other))


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        ({"config": {"classes": ["Pedestrian", "Car"]}}, ("car", "pedestrian")),
        ({"config": {"head": {"classes": [{"name": "Cyclist"}, {"name": "Car"}]}}}, ("car", "cyclist")),
        ({"config": {"head": {"channels": 8}}}, ("car",)),
        ({}, ("car",)),
    ],
)
def test_trained_classes_are_judged(make_run: MakeRun, card: dict, expected: tuple[str, ...]) -> None:
    """Whether a detector lists its classes itself or its anchor head does; else those in the result files."""
    run = make_run()
    path = run / "student" / "card.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **card}))
    assert diagnose(run).sections[0].analysis.settings.classes == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {"placement": "fit", "divide": "rect_z", "points": True, "field_of_view": False}),
        ({"placement": "corner", "divide": "homogeneous"}, {"placement": "corner", "divide": "homogeneous"}),
    ],
)
def test_pictures_are_placed_as_in_training(make_run: MakeRun, settings: dict, expected: dict) -> None:
    run = make_run()
    edit_yaml(run / "recipe.yaml", lambda recipe: recipe["dataset"].update(settings))
    config = open_dataset(read_runs([run])[0]).config
    assert {key: getattr(config, key) for key in expected} == expected


def drop_baseline(run: Path) -> None:
    shutil.rmtree(run / "baseline")
    edit_yaml(run / "recipe.yaml", lambda recipe: recipe["stages"].pop(1))


def unfinish(stage: str) -> Callable[[Path], object]:
    return lambda run: (run / stage / "evaluation.json").unlink()


@pytest.mark.parametrize(
    ("spoil", "options", "words"),
    [
        (unfinish("baseline"), {}, ["baseline", "not finished"]),
        (unfinish("student"), {}, ["student", "not finished"]),
        (lambda run: shutil.rmtree(run / "student" / "predictions"), {}, ["student", "result files"]),
        (lambda run: (run / "student" / "predictions" / "000003.txt").unlink(), {}, ["5 frames", "6", "one split"]),
        (lambda run: None, {"student": "stduent"}, ["--student", "'stduent'", "baseline (baseline)"]),
        (lambda run: None, {"baseline": "nobody"}, ["--baseline", "'nobody'"]),
        (lambda run: None, {"student": "baseline"}, ["'baseline'", "itself"]),
        (
            lambda run: add_stage(run, "student", "warm", "preparation"),
            {"student": "warm"},
            ["--student", "'warm'", "preparation", "no detector"],
        ),
        (
            lambda run: add_stage(run, "student", "warm", "preparation"),
            {"baseline": "warm"},
            ["--baseline", "'warm'", "preparation"],
        ),
        (lambda run: shutil.rmtree(run / "baseline"), {}, ["baseline", "not finished"]),
        (lambda run: drop_baseline(run), {}, ["no stage of role baseline", "another run", "--baseline"]),
        (lambda run: None, {"data_root": Path("nowhere")}, ["nowhere", "labels"]),
        (lambda run: edit_yaml(run / "recipe.yaml", lambda r: r["dataset"].pop("root")), {}, ["dataset.root"]),
    ],
)
def test_refused(spoil: Callable, options: dict, words: list[str], make_run: MakeRun) -> None:
    run = make_run()
    spoil(run)
    with pytest.raises(UserError) as error:
        diagnose(run, **options)
    assert all(word in str(error.value) for word in words), error.value
    assert not list(run.glob("diagnosis.*"))


def test_a_stage_alone_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="no stage of role baseline"):
        diagnose(make_run() / "student")


def test_charts_and_estimates(make_run: MakeRun, tmp_path: Path) -> None:
    """With as many objects as the page asks for, numbers stand where it says too few otherwise."""
    stages = {stage.name: stage for stage in read_runs([make_run()])}
    settings = TransferSettings(min_height_scale=0.125, least_objects=3, least_frames=2, resamples=100)
    found = {name: Annotations.from_folder(stage.predictions, scored=True) for name, stage in stages.items()}
    folder = Path(stages["baseline"].dataset["root"]) / "training" / "label_2"
    labels = Annotations.from_folder(folder, scored=False, frames=found["baseline"].frames)
    objects = labelled_objects(labels, settings)
    parts = {name: find(labels, one, objects, settings.least_overlap) for name, one in found.items()}
    scale = np.linspace(-2, 1, len(objects))
    analysis = analyse(objects, parts["baseline"], parts["student"], parts["teacher"], scale, settings)
    section = Section(stages["student"], analysis, stages["teacher"])
    dataset = open_dataset(stages["baseline"])
    page = Page(write_page([section], stages["baseline"], dataset, tmp_path / "p.html").read_text(encoding="utf-8"))
    page.assert_self_contained()
    assert "+100.0 ± 0.0 points" in page.text
    assert "Where the teacher is sure" in page.text and "scale of the teacher's depth" in page.text
    assert page.tags.count("rect") > 20
    titles = (
        "Distance (m)",
        "Occlusion",
        "Teacher's uncertainty",
        "Teacher's own depth error",
        "Teacher against baseline",
    )
    assert all(title in page.text for title in titles)


def test_balance_chart() -> None:
    bars = [
        Balance("0–10", 30, 40.0, 20.0, 20.0, 5.0, 35.0, -5.0, "a <note>"),
        Balance("over 60 metres away", 3),
    ]
    axis = charts.linear_axis(-20, 40)
    page = Page(charts.svg_file(charts.balance_chart("title", bars, x_label="distance", y_axis=axis)))
    assert page.tags.count("rect") == 3 and page.tags.count("circle") == 1  # the paper is one
    for words in ("n = 30 3", "too few", "a <note>", "over 60 metres away"):
        assert words in page.text
    assert Page(charts.svg_file(charts.balance_chart("empty", [], x_label="", y_axis=axis))).tags.count("rect") == 1
