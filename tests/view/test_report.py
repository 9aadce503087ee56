"""The page: what stands on it, that it needs nothing else, and what it does where pieces are missing."""

import base64
import io
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from html_page import Page
from PIL import Image

from distill3d.errors import UserError
from distill3d.view.gallery import cast, choose_frames, drawn_classes
from distill3d.view.headline import caution, headline
from distill3d.view.kitti import KittiKind, height_cautions, write_figures
from distill3d.view.pieces import shown
from distill3d.view.report import write_report
from distill3d.view.runs import read_runs

MakeRun = Callable[..., Path]


def report(runs: list[Path], folder: Path, gallery: int = 2) -> tuple[str, Page]:
    html = write_report(runs, folder / "out" / "report.html", gallery).read_text(encoding="utf-8")
    return html, Page(html)


def test_page_needs_nothing_else(make_run: MakeRun, tmp_path: Path) -> None:
    _, page = report([make_run()], tmp_path)
    page.assert_self_contained()


def test_page_holds_the_numbers(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    _, page = report([run], tmp_path)
    results = {s: json.loads((run / s / "evaluation.json").read_text()) for s in ("teacher", "baseline", "student")}
    for result in results.values():
        for overlap in ("strict", "loose"):
            for key in ("car_3d", "car_bev"):
                for value in result[overlap][key]["AP_R40"]:
                    assert f"{value:.2f}" in page.text
    student, baseline = (results[s]["loose"]["car_3d"]["AP_R40"][1] for s in ("student", "baseline"))
    assert student > baseline  # else the next line says nothing about signs
    assert f"+{student - baseline:.2f}" in page.text
    assert f"Distilled {student:.1f}, baseline {baseline:.1f}" in page.text
    for words in ("one seed", "One seed is no proof", "KITTI's 40 / 25 / 25 × 0.125", "160 × 48 px", "monoskd", "fp32"):
        assert words in page.text
    for term in ("heatmap", "depth", "monoskd/feature"):
        assert term in page.text
    assert "1 234 567" in page.text and "40 entries, streets/000000 to streets/000039" in page.text
    assert "What is missing" not in page.text


def test_what_papers_state_is_a_column_beside_the_results(make_run: MakeRun, tmp_path: Path) -> None:
    """Never in the headline, nor anywhere else where stages are compared."""
    run = make_run()
    plain, _ = report([run], tmp_path / "plain")
    path = run / "student" / "evaluation.json"
    best = {"of": 16, "epoch": 140, "split": "val", "ap": {"car_3d_strict": [97.5, 96.25, 95.0]}}
    path.write_text(json.dumps({**json.loads(path.read_text()), "best_of_reported": best}))
    html, page = report([run], tmp_path / "stated")
    wording = "best of N on the reported split, as papers state it"
    assert wording not in plain and f">{wording}</th>" in html
    assert (
        '<td class="opens soft">96.25<small class="soft">97.50 / 96.25 / 95.00, epoch 140, N = 16</small></td>' in html
    )
    assert html.count("96.25") == 2
    assert re.findall("<h1>.*</h1>", html) == re.findall("<h1>.*</h1>", plain)
    assert re.findall('<p class="lead">.*</p>', html) == re.findall('<p class="lead">.*</p>', plain)
    page.assert_self_contained()


def test_pictures_are_inside(make_run: MakeRun, tmp_path: Path) -> None:
    _, page = report([make_run()], tmp_path, gallery=3)
    pictures = [reference for reference in page.references if reference.startswith("data:image/")]
    assert len(pictures) == 3 * 3  # two image panels and a bird's-eye view each
    for picture in pictures:
        with Image.open(io.BytesIO(base64.b64decode(picture.split(",")[1]))) as image:
            assert min(image.size) > 300 and np.ptp(np.asarray(image.convert("L"))) > 100


def test_same_runs_same_page(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    assert report([run], tmp_path / "a")[0] == report([run], tmp_path / "b")[0]


def test_depth_error_is_told_for_each_distance(make_run: MakeRun, tmp_path: Path) -> None:
    html, _ = report([make_run()], tmp_path)
    notes = re.findall(r"<title>(Baseline|Teacher|Distilled), 10–20 m: ([\d.]+) m \((\d+) objects\)</title>", html)
    assert {(name, value) for name, value, _ in notes} == {
        ("Teacher", "0.10"), ("Baseline", "1.20"), ("Distilled", "0.40"),
    }  # fmt: skip
    assert len({count for _, _, count in notes}) == 1


def test_frames_without_a_scan_are_drawn(make_run: MakeRun, data_root: Path, tmp_path: Path) -> None:
    root = shutil.copytree(data_root, tmp_path / "streets")
    (root / "training" / "velodyne" / "000000.bin").unlink()
    run = make_run()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["dataset"]["root"] = str(root)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    html, page = report([run], tmp_path, gallery=6)
    assert "gallery is left out" not in page.text and html.count("from above with LiDAR points") == 5
    assert 'alt="Frame 000000 from above"' in html


def remove(run: Path, *names: str) -> None:
    for name in names:
        path = run / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.mark.parametrize(
    ("gone", "sentences"),
    [
        (["student/evaluation.json", "student/card.json"], ["demo/student is not finished", "No comparison yet"]),
        (["student"], ["demo/student has not begun", "No comparison yet"]),
        (["baseline"], ["demo/baseline has not begun", "No comparison yet"]),
        (["baseline/predictions"], ["demo/baseline has no predictions"]),
        (["student/metrics.jsonl"], ["demo/student/metrics.jsonl is missing"]),
        (["teacher/config.yaml"], ["demo/teacher/config.yaml is missing"]),
        (["recipe.yaml"], ["demo/recipe.yaml is missing", "The gallery is left out"]),
        (
            [f"{s}/evaluation.json" for s in ("teacher", "baseline", "student")],
            ["No stage has been evaluated yet", "No finished stage has predictions"],
        ),
    ],
)
def test_missing_pieces_are_named(make_run: MakeRun, tmp_path: Path, gone: list, sentences: list) -> None:
    run = make_run()
    remove(run, *gone)
    _, page = report([run], tmp_path)
    for sentence in sentences:
        assert sentence in page.text


@pytest.mark.parametrize("role", ["preparation", "teacher"])
def test_a_stage_from_elsewhere_lacks_nothing(make_run: MakeRun, tmp_path: Path, role: str) -> None:
    run = make_run()
    remove(run, *(f"teacher/{name}" for name in ("evaluation.json", "metrics.jsonl", "predictions")))
    path = run / "teacher" / "card.json"
    card = json.loads(path.read_text()) | {"role": role, "taken_from": {"folder": "streets"}, "note": "of elsewhere"}
    card |= {"seed": 7, "trained_on": {"count": 3000, "sha256": "ab" * 32, "frames": ["streets/000000"]}}
    path.write_text(json.dumps(card))
    html, page = report([run], tmp_path)
    assert "What is missing" not in page.text and "untrained" not in page.text and "not finished" not in page.text
    assert page.text.count("taken from elsewhere, not evaluated here") == 1
    assert "<dt>Frames trained on</dt><dd>40</dd>" in html and "<dt>Seed</dt><dd>0</dd>" in html
    assert "<dt>Note</dt>" not in html and "of elsewhere" in page.text  # on its own card


@pytest.mark.parametrize(
    ("file", "text", "sentence"),
    [
        ("student/metrics.jsonl", '{"kind": "train", "st', "demo/student/metrics.jsonl, line 32 is no JSON"),
        ("student/evaluation.json", "}", "demo/student/evaluation.json:"),
        ("student/card.json", "}", "demo/student/card.json:"),
        ("student/predictions/000003.txt", "Car 1 2\n", "000003.txt:6: expected 16 fields, found 3"),
        ("recipe.yaml", "\n: [", "demo/recipe.yaml:"),
    ],
)
def test_broken_files_are_named(make_run: MakeRun, tmp_path: Path, file: str, text: str, sentence: str) -> None:
    run = make_run()
    with (run / file).open("a") as stream:
        stream.write(text)
    _, page = report([run], tmp_path)
    assert sentence in page.text


def test_data_set_that_moved_away_is_named(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run()
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["dataset"]["root"] = str(tmp_path / "gone")
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    _, page = report([run], tmp_path)
    assert f"The gallery is left out: {tmp_path / 'gone' / 'training' / 'label_2'} is not a folder" in page.text


def add_student(run: Path, name: str, ap: float) -> None:
    """A further student, of some moderate 3D AP at the loose overlap."""
    shutil.copytree(run / "student", run / name)
    for file, changes in (("card.json", {"stage": name}), ("evaluation.json", {})):
        content = json.loads((run / name / file).read_text()) | changes
        if file == "evaluation.json":
            content["loose"]["car_3d"]["AP_R40"] = [ap] * 3
        (run / name / file).write_text(json.dumps(content))
    entry = {"name": name, "role": "student", "detector": {"input": "rgb"}}
    (run / name / "config.yaml").write_text(yaml.safe_dump(entry))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    recipe["stages"].append(entry)
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))


def test_the_gallery_shows_the_best_student_and_what_belongs_to_it(make_run: MakeRun) -> None:
    """By what the report compares by, wherever it stands; with its own run's teacher and baseline."""
    other, run = make_run("other"), make_run()
    for name, ap in (("weak", 1.0), ("best", 99.5), ("last", 2.0)):
        add_student(run, name, ap)
    stages = read_runs([other, run])
    parts = cast(shown(stages), KittiKind().measures(stages).first.of)
    assert {part: (one.stage.run, one.stage.name) for part, one in parts.items()} == {
        "teacher": ("demo", "teacher"), "baseline": ("demo", "baseline"), "student": ("demo", "best"),
    }  # fmt: skip
    shutil.rmtree(run / "best" / "predictions")
    stages = read_runs([other, run])
    assert cast(shown(stages), KittiKind().measures(stages).first.of)["student"].stage.name == "student"


@pytest.mark.parametrize(
    ("trained", "expected"),
    [({}, ["car"]), ({"classes": ["Car"]}, ["car"]), ({"head": {"classes": [{"name": "Cyclist"}, {"name": "Car"}]}},
      ["car", "cyclist"]), ({"classes": 5}, ["car"])],
)  # fmt: skip
def test_the_gallery_shows_trained_classes(make_run: MakeRun, trained: dict, expected: list[str]) -> None:
    run = make_run()
    card = json.loads((run / "student" / "card.json").read_text())
    (run / "student" / "card.json").write_text(json.dumps({**card, "config": trained}))
    parts = cast(shown(read_runs([run])), lambda stage: None)
    assert drawn_classes(parts) == expected


def test_stages_of_two_runs_keep_their_names(make_run: MakeRun, tmp_path: Path) -> None:
    """The run's name stands where another run has a stage of the same name, and only there."""
    one, other = make_run("one"), make_run("other")
    add_student(one, "monoskd", 50.0)
    add_student(other, "cmkd", 60.0)
    names = [entry.name for entry in shown(read_runs([one, other]))]
    assert names == [
        "Teacher (one)", "Teacher (other)", "Baseline (one)", "Baseline (other)", "Distilled (one)",
        "Distilled (other)", "Distilled: monoskd", "Distilled: cmkd",
    ]  # fmt: skip
    html, page = report([one, other], tmp_path, gallery=0)
    assert all(name in page.text for name in names) and "monoskd · run one" in page.text
    assert "student (one)" in page.text and "Over seeds" not in page.text, "one seed twice is no spread over seeds"


def test_runs_of_one_name_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    """By their seeds or, where these are alike, by their paths; a run given twice is one."""
    first = make_run("demo")
    second = Path(shutil.copytree(first, tmp_path / "again" / "demo"))
    for given in ([first, second], [first, second / "baseline", first, second / "student", second / "teacher"]):
        names = [entry.name for entry in shown(read_runs(given))]
        assert names == [
            f"{role} ({run}/demo)" for role in ("Teacher", "Baseline", "Distilled") for run in ("runs", "again")
        ]
    for path in second.glob("*/card.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"seed": 1}))
    entries = shown(read_runs([first, second]))
    assert [entry.name for entry in entries[:2]] == ["Teacher, seed 0", "Teacher, seed 1"]
    assert entries[0].look == entries[1].look and len({entry.kind for entry in entries}) == 3


@pytest.mark.parametrize("stage", ["teacher", "baseline", "student"])
def test_one_stage_alone(make_run: MakeRun, tmp_path: Path, stage: str) -> None:
    _, page = report([make_run() / stage], tmp_path)
    assert "No comparison yet" in page.text and f"Finished: {stage}." in page.text
    assert sum(reference.startswith("data:image/") for reference in page.references) >= 4


def test_resumed_runs_show_each_step_once(make_run: MakeRun) -> None:
    run = make_run()
    line = {"kind": "train", "step": 7, "epoch": 0, "loss": 99.0, "lr": 1e-3, "terms": {}}
    with (run / "student" / "metrics.jsonl").open("a") as stream:
        stream.write(json.dumps(line) + "\n")
    student = next(stage for stage in read_runs([run]) if stage.name == "student")
    assert [entry["step"] for entry in student.train] == list(range(1, 31))
    assert student.train[6]["loss"] == 99.0


def test_seeds_are_put_together(make_run: MakeRun, tmp_path: Path) -> None:
    runs = []
    for seed in (0, 1):
        run = make_run("demo", seed)
        runs.append(run.rename(run.parent / f"seed{seed}"))
        (tmp_path / f"s{seed}").mkdir()
        runs[-1] = Path(shutil.move(runs[-1], tmp_path / f"s{seed}" / "demo"))
    _, page = report(runs, tmp_path)
    assert "2 seeds" in page.text and "the ranges do not overlap" in page.text and "no proof" not in page.text
    for name in ("Distilled, seed 0", "Distilled, seed 1"):
        assert name in page.text


def test_runs_of_different_names_are_told_apart(make_run: MakeRun, tmp_path: Path) -> None:
    _, page = report([make_run("one"), make_run("two", 1)], tmp_path)
    assert "Distilled (one)" in page.text and "Distilled (two)" in page.text


def test_a_student_behind_is_said_to_be_behind(make_run: MakeRun) -> None:
    run = make_run()
    for a, b in (("student", "kept"), ("baseline", "student"), ("kept", "baseline")):
        source = run / a / "evaluation.json"
        (run / b).mkdir(exist_ok=True)
        source.rename(run / b / "evaluation.json")
    (run / "kept").rmdir()
    _, leads = headline(read_runs([run]), KittiKind().measures(read_runs([run])))
    assert "points behind its baseline" in leads[0] and "closes" not in leads[0]


@pytest.mark.parametrize(
    ("file", "key", "value", "sentence"),
    [
        ("student/card.json", "epochs", 2, "not trained equally long"),
        ("student/evaluation.json", "settings", {"frames": 3, "min_height_scale": 0.125}, "equally many frames"),
        ("student/evaluation.json", "settings", {"frames": 6, "min_height_scale": 1.0}, "different least box heights"),
    ],
)
def test_unequal_comparisons_are_warned_of(
    make_run: MakeRun, file: str, key: str, value: object, sentence: str
) -> None:
    run = make_run()
    content = json.loads((run / file).read_text())
    (run / file).write_text(json.dumps({**content, key: value}))
    stages = read_runs([run])
    assert sentence in " ".join([*caution(stages, KittiKind().measures(read_runs([run]))), *height_cautions(stages)])


def prepare(run: Path) -> None:
    """The student goes on from a stage that prepared its weights, and has two teachers; an assistant is beside it."""
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    for name, role in (("warm", "preparation"), ("helper", "assistant")):
        shutil.copytree(run / "student", run / name)
        entry = {"name": name, "role": role, "detector": {"input": "rgb"}, "schedule": {"epochs": 3}}
        recipe["stages"].append(entry)
        (run / name / "config.yaml").write_text(yaml.safe_dump(entry))
        card = json.loads((run / name / "card.json").read_text())
        (run / name / "card.json").write_text(json.dumps({**card, "stage": name, "role": role}))
    (run / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    config = yaml.safe_load((run / "student" / "config.yaml").read_text())
    config |= {"inherit": ["teacher", "warm"], "teachers": ["teacher", "helper"]}
    (run / "student" / "config.yaml").write_text(yaml.safe_dump(config))


def test_preparation_is_not_judged(make_run: MakeRun, tmp_path: Path) -> None:
    """It is named where it is left out; its training and its card are shown, and the other parts are."""
    run = make_run()
    prepare(run)
    html, page = report([run], tmp_path)
    page.assert_self_contained()
    before, results = html.split('id="results"')[1].split('id="training"')[0], html.split('id="training"')[1]
    assert re.findall(r'<th scope="row">.*?</span>([^<]*)<small>', before) == [
        "Teacher", "Assistant: helper", "Baseline", "Distilled"
    ]  # fmt: skip
    assert "Not judged: Preparation: warm. They hold weights for later stages" in page.text
    assert "taught by teacher and helper" in page.text
    training, rest = results.split('id="precision"')
    judged, cards = rest.split('id="stages"')
    assert "Preparation" in training and "Preparation" not in judged and "Preparation" in cards
    progress = training.split("Loss and its terms")[0]
    assert "Assistant: helper, epoch 1" in progress and "Preparation: warm, epoch 1" not in progress


@pytest.mark.parametrize(("epochs", "warned"), [(1, True), (4, False), (5, True)])
def test_preparation_counts_as_training(make_run: MakeRun, epochs: int, warned: bool) -> None:
    """The student trained for one epoch on what three epochs had prepared; the teacher's epochs are not its own."""
    run = make_run()
    prepare(run)
    card = json.loads((run / "baseline" / "card.json").read_text())
    (run / "baseline" / "card.json").write_text(json.dumps({**card, "epochs": epochs}))
    assert (
        "not trained equally long" in " ".join(caution(read_runs([run]), KittiKind().measures(read_runs([run]))))
    ) is warned


def test_user_errors(make_run: MakeRun, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no runs"):
        write_report([], out)
    with pytest.raises(UserError, match="nowhere is not a folder"):
        write_report([tmp_path / "nowhere"], out)
    with pytest.raises(UserError, match=r"runs holds the run other: give .*runs/other"):
        write_report([make_run("other").parent], out)
    with pytest.raises(UserError, match=r"empty is no run: expected recipe\.yaml"):
        write_report([tmp_path / "empty"], out)
    run = make_run()
    with pytest.raises(UserError, match="is a folder"):
        write_report([run], run, gallery=0)
    assert not out.exists()


@pytest.mark.parametrize(
    ("objects", "lead", "count", "expected"),
    [
        ([1, 5, 3], None, 2, [1, 2]),
        ([1, 1, 1], None, 2, [0, 1]),
        ([9, 1, 1, 1], [0, 2, -3, 0], 4, [0, 3, 1, 2]),
        ([9, 1, 1, 1], [np.nan, 0.05, -0.05, 0], 4, [0, 1, 2, 3]),  # differences too small to show
        ([9, 1, 1, 1, 1, 1], [0, 2, 3, 4, -1, -2], 4, [0, 1, 3, 5]),  # one ahead, one behind, the rest by objects
        ([1, 2], [1, -1], 8, [0, 1]),
        ([], None, 3, []),
    ],
)
def test_frames_are_chosen_by_rule(objects: list, lead: list | None, count: int, expected: list) -> None:
    chosen = choose_frames(np.array(objects, dtype=int), None if lead is None else np.array(lead, dtype=float), count)
    assert [choice.index for choice in chosen] == expected


def test_figures_are_written(make_run: MakeRun, tmp_path: Path) -> None:
    files = write_figures(read_runs([make_run()]), tmp_path / "figures", 4)
    assert len(files) == 4 and all(Image.open(file).width > 1280 for file in files)
    run = make_run("bare")
    remove(run, *(f"{stage}/predictions" for stage in ("teacher", "baseline", "student")))
    with pytest.raises(UserError, match="no finished stage"):
        write_figures(read_runs([run]), tmp_path / "none", 1)


@pytest.mark.real
def test_real_frames(real_data: Path, tmp_path: Path) -> None:
    from distill3d.data.kitti.dataset import KittiConfig, KittiDataset
    from distill3d.view.draw import frame_figure

    dataset = KittiDataset(KittiConfig(real_data / "kitti_mini", "trainval", points=True))
    for index in range(len(dataset)):
        sample = dataset.get(index)
        assert sample.objects is not None
        figure = frame_figure(sample, {"student": sample.objects.boxes})
        assert figure.height < figure.width
