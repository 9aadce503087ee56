"""Data sets with classes of their own, JPEG pictures and frames without scans: from ``check`` to predictions."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from streets import CANVAS, TRUNK, small_preset, small_recipe

import distill3d
from distill3d.boxes import KITTI_CLASSES, label_names
from distill3d.cli import main
from distill3d.data.kitti.labels import read_labels
from distill3d.data.kitti.names import KITTI_NAMES, LabelNames, names_of
from distill3d.detectors import build_detector, labels_of, monodle
from distill3d.errors import UserError
from distill3d.evaluate.kitti import evaluate_folders, rules_of
from distill3d.export import described, example_inputs
from distill3d.recipes import get_recipe
from distill3d.synth.settings import StreetConfig
from distill3d.synth.writer import write_kitti
from distill3d.train.classes import class_sizes, with_classes
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import DatasetConfig, Recipe
from distill3d.train.stages import run_recipe

LONG = ("Bus=3,2.5,10", "Truck=3.2,2.5,7")
QUIET = {"progress": False, "tensorboard": False, "threads": 1, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = StreetConfig(
        width=CANVAS[0], height=CANVAS[1], rays_per_pixel_side=1, large=LONG, large_count=(2, 3), cars=(4, 6),
        pedestrians=(1, 2), cyclists=(1, 2), image_format="jpg", scan_share=0.67, label_names=("Van=Car",),
    )  # fmt: skip
    folder = tmp_path_factory.mktemp("fleet")
    return write_kitti(folder, seed=3, config=config, splits={"train": 8, "val": 4}, workers=1, progress=False)


def own(root: Path) -> Recipe:
    recipe = small_recipe(root, epochs=1)
    dataset = replace(recipe.dataset, without_scan="skip", overlaps=("Bus=0.6,0.4",))
    return replace(recipe, dataset=dataset, stages=tuple(s for s in recipe.stages if s.name != "monodistill"))


def test_names() -> None:
    assert KITTI_NAMES.names == KITTI_CLASSES and label_names(("Pedestrian", "Car")) == KITTI_CLASSES
    names = LabelNames(("Car", "Bus"), (("Lkw", "Bus"), ("Misc", "DontCare")))
    assert names.names == ("Car", "Bus")
    assert [names.of(word) for word in ("car", "LKW", "misc", "dontcare", "Tram")] == [
        "Car", "Bus", "DontCare", "DontCare", None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("Car\nBus: Lkw Car\n", "'Car' stands twice"), ("Car\nDontCare: car", "'Car' stands twice"),
        (": Lkw", "classes.txt:1: expected a class"), ("two words\n", "classes.txt:1: expected a class"),
        ("# nothing\n", r"classes are \(\), expected names of one word"), ("A=b\n", "not 'A=b'"),
    ],
)  # fmt: skip
def test_odd_files_of_classes(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=told):
        names_of(tmp_path)


def test_a_file_of_classes_comes_back(tmp_path: Path) -> None:
    names = LabelNames(("Car", "Bus"), (("Lkw", "Bus"), ("Van", "Car"), ("Misc", "DontCare")))
    (tmp_path / "classes.txt").write_text(names.text)
    found = names_of(tmp_path)
    assert found.classes == names.classes and dict(found.others) == dict(names.others)
    assert names_of(tmp_path, ("Car",)).others == ()  # what is given stands in place of the file
    assert names_of(tmp_path, (), ("Lkw=Car",)).of("lkw") == "Car"
    for pair, told in {"Lkw": "expected name=class", "Lkw=Tram": "'Tram' is no class"}.items():
        with pytest.raises(UserError, match=told):
            names_of(tmp_path, (), (pair,))


def test_the_writer_says_what_its_classes_are(fleet: Path, capsys: pytest.CaptureFixture) -> None:
    names = names_of(fleet)
    assert {"Bus", "Truck", "Car"} <= set(names.classes) and "Van" not in names.classes
    with pytest.raises(SystemExit) as stop:
        main(["check", str(fleet)])
    out = capsys.readouterr().out
    assert not stop.value.code and f"classes: {', '.join(names.classes)}" in out and out.endswith("sound\n")
    scans = {path.stem for path in (fleet / "training/velodyne").iterdir()}
    pictures = {path.stem for path in (fleet / "training/image_2").glob("*.jpg")}
    assert scans < pictures and len(pictures) == 12
    assert f"{12 - len(scans)} of 12 frames have no scan" in out
    with pytest.raises(UserError, match="large: 'Bus=3', expected a name and height"):
        StreetConfig(large=("Bus=3",))
    with pytest.raises(UserError, match="label_names: 'Tram=Car', expected one of Car, Van"):
        StreetConfig(label_names=("Tram=Car",))


def test_labels_are_numbered_in_the_order_of_the_classes(fleet: Path) -> None:
    names = names_of(fleet)
    path = next(p for p in sorted((fleet / "training/label_2").iterdir()) if "Bus" in p.read_text())
    labels = read_labels(path, known=names).boxes.label.tolist()
    words = [line.split()[0] for line in path.read_text().splitlines()]
    assert labels == [-1 if word == "DontCare" else names.classes.index(word) for word in words]
    with pytest.raises(UserError, match="unknown class 'Bus', expected one of Pedestrian, Car"):
        read_labels(path)


@pytest.mark.parametrize("base", ["monodle", "gupnet", "did_m3d", "monodetr", "monocon"])
def test_every_camera_detector_learns_them(base: str, fleet: Path) -> None:
    """Heads have as many classes, sizes are the labels' means, and the true class has the lowest loss."""
    recipe = with_classes(small_preset(base, fleet))
    config = recipe.stage("baseline").detector
    classes = names_of(fleet).classes
    assert labels_of(config) == classes == config.classes
    detector = build_detector(config)
    head = detector.heatmap[-1] if base != "monodetr" else detector.heads[0]["logits"][-1]
    assert head.weight.shape[0] == len(classes)
    if hasattr(config, "class_sizes"):
        length = dict(zip(classes, config.class_sizes, strict=True))
        assert 8 < length["Bus"][2] < 12 and 3 < length["Car"][2] < 5
    with pytest.raises(UserError, match="do not fit together: .* not Tram"):
        build_detector(replace(config, classes=("Tram",)))


def test_anchors_are_the_labels_means(fleet: Path) -> None:
    recipe = get_recipe("tiny_lidar")
    recipe = with_classes(replace(recipe, dataset=replace(recipe.dataset, root=fleet)))
    for stage in recipe.stages:
        head = stage.detector.head
        assert head.vocabulary == names_of(fleet).classes == tuple(kind.name for kind in head.classes)
        bus, person = (next(k for k in head.classes if k.name == name) for name in ("Bus", "Pedestrian"))
        assert 8 < bus.size[0] < 12 and bus.matched > person.matched and -2.3 < bus.bottom < -1.2
        assert labels_of(stage.detector) == head.vocabulary and build_detector(stage.detector) is not None
    sizes = class_sizes(recipe.dataset, names_of(fleet))
    assert "Bus: " in str(sizes["Bus"]) and "m from the LiDAR" in str(sizes["Bus"])


def test_chosen_classes_are_kept_and_kittis_recipes_stay(fleet: Path, streets: Path) -> None:
    recipe = small_recipe(fleet)
    stage = replace(recipe.stage("baseline"), detector=monodle.tiny(trunk=TRUNK, head_channels=8, classes=("Bus",)))
    found = with_classes(replace(recipe, stages=(stage,))).stages[0].detector
    assert found.classes == ("Bus",) and "Car" in found.vocabulary
    plain = small_recipe(streets)
    assert with_classes(plain) is plain
    mapped = replace(plain, dataset=replace(plain.dataset, label_names=("Lkw=Car",)))
    assert with_classes(mapped).stages == plain.stages
    with pytest.raises(UserError, match="no object of split 'train' is a Tram"):
        others = ("Van=DontCare", "Pedestrian=DontCare", "Cyclist=DontCare")
        class_sizes(DatasetConfig(root=streets), names_of(streets, ("Car", "Tram"), others))


@pytest.fixture(scope="module")
def trained(fleet: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_recipe(own(fleet), RunOptions(out=tmp_path_factory.mktemp("runs"), **QUIET))


def test_a_run(fleet: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Teacher, baseline and student; evaluated with the right classes by training and by the command alike."""
    classes = tuple(map(str.lower, names_of(fleet).classes))
    scanned = {p.stem for p in (fleet / "training/velodyne").iterdir()}
    labels = list((fleet / "training/label_2").iterdir())
    for stage in ("teacher", "baseline", "monoskd"):
        result = json.loads((trained / stage / "evaluation.json").read_text())
        assert {key.split("_")[0] for key in result["strict"]} == set(classes)
        assert result["settings"]["min_overlap"]["loose"]["bus"] == {"bbox": 0.6, "bev": 0.4, "3d": 0.4}
        frames = {p.stem for p in (trained / stage / "predictions").glob("*.txt")}
        assert frames == scanned & {f"{i:06d}" for i in range(8, 12)}  # the same of every stage
        card = json.loads((trained / stage / "card.json").read_text())
        learnt = {f"{i:06d}" for i in range(8)} & (scanned if stage != "baseline" else {p.stem for p in labels})
        assert card["trained_on"]["count"] == len(learnt)
        predictions = trained / stage / "predictions"
        with pytest.raises(SystemExit) as stop:
            main(["eval", "kitti", "--labels", str(fleet / "training/label_2"), "--predictions", str(predictions),
                  "--json", str(tmp_path / f"{stage}.json")])  # fmt: skip
        out = capsys.readouterr().out
        assert not stop.value.code and "about.json says" in out
        again = json.loads((tmp_path / f"{stage}.json").read_text())
        assert again["strict"] == result["strict"] and again["settings"]["min_height_scale"] == CANVAS[0] / 1242
    refused = replace(own(fleet), dataset=replace(own(fleet).dataset, without_scan="refuse"))
    with pytest.raises(UserError, match=r"velodyne/0000\d\d.bin: no such file"):
        run_recipe(refused, RunOptions(out=tmp_path / "refused", **QUIET))


def test_other_commands(fleet: Path, trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    model = distill3d.load(trained / "monoskd")
    assert model.classes == names_of(fleet).classes
    picture = next((fleet / "training/image_2").iterdir())
    found = model.predict(picture, fleet / "training/calib" / f"{picture.stem}.txt", least_score=0.0)
    assert set(found.names) <= set(model.classes)
    found.draw(tmp_path / "drawn.png")
    for words in (
        ["report", str(trained), "--out", str(tmp_path / "report.html")],
        ["diagnose", str(trained), "--out", str(tmp_path / "diagnosis.html"), "--device", "cpu"],
    ):
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert not stop.value.code, capsys.readouterr().err
    page = (tmp_path / "report.html").read_text()
    assert "Truck" in page and "Bus" in page
    inputs = example_inputs(model.detector, model.card, 0)
    assert json.loads(described(model.detector, model.card, inputs, {})["classes"]) == list(model.classes)


def test_evaluation_with_other_names(fleet: Path, tmp_path: Path) -> None:
    """Words of either side that stand for one class meet; perfect boxes of every class reach the same AP."""
    names = LabelNames(("Car", "Long"), (("Bus", "Long"), ("Truck", "Long"), ("Pedestrian", "DontCare")))
    labels, results = fleet / "training/label_2", tmp_path / "results"
    results.mkdir()
    generator = torch.Generator().manual_seed(0)
    for path in labels.iterdir():
        rows = [line for line in path.read_text().splitlines() if line.split()[0] in ("Car", "Bus", "Truck")]
        scored = (f"{row.replace('Truck', 'long')} {float(torch.rand((), generator=generator)):.4f}\n" for row in rows)
        (results / path.name).write_text("".join(scored))
    result = evaluate_folders(labels, results, rules=rules_of(names), min_height_scale=CANVAS[0] / 1242)
    assert result.rules.classes == ("car", "long")
    assert result.explanation.unknown_label_names.keys() == {"Cyclist"} and not result.explanation.unknown_names
    for name in ("car", "long"):
        count = result.explanation.classes[name].counted[2]
        assert result.ap(name, "3d")[2] == pytest.approx(100 * min(max(count - 1, 0), 40) / 40)
    for overlap in ("Bus=0.7", "Tram=0.7,0.5", "Car=0.5,0.7", "Car=1,0.5"):
        with pytest.raises(UserError, match="expected a class of Car, Long and two numbers"):
            rules_of(names, (overlap,))
