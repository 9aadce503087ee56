"""Importing an authors' checkpoint: what is written, what is refused, and what other commands make of it."""

import argparse
import hashlib
import json
import os
import struct
import zipfile
from dataclasses import replace
from pathlib import Path
from shutil import rmtree
from typing import Any

import numpy as np
import pytest
import torch
from drives import small_surround_preset, write_drives
from lightning_fabric.utilities.data import AttributeDict
from streets import CANVAS, TRUNK, small_recipe

from distill3d.cli import main
from distill3d.data.nuscenes.dataset import NuScenesConfig, NuScenesDataset
from distill3d.detectors import build_detector, gupnet, monodle
from distill3d.detectors.bevdepth import BEVDepthConfig
from distill3d.detectors.centerpoint import CenterPointConfig
from distill3d.detectors.released import ReleasedForm, from_released, to_released
from distill3d.distill.methods.cmkd import CMKDConfig
from distill3d.errors import UserError
from distill3d.evaluate_run import evaluate_stage
from distill3d.published import systems
from distill3d.published.archive import NumberType, _number, read_archive, state_of
from distill3d.published.importing import import_checkpoint
from distill3d.published.systems import SYSTEMS, Part, System
from distill3d.recipes import RECIPES, get_recipe
from distill3d.settings import to_plain
from distill3d.train.checkpoint import load_detector, load_weights, save_weights, untrained_detector
from distill3d.train.loop import RunOptions, write_settings
from distill3d.train.recipe import Recipe
from distill3d.train.stages import run_recipe
from distill3d.train.teachers import refuse_overlap, trained_on

SMALL = "small"


@pytest.fixture
def small(streets: Path, monkeypatch: pytest.MonkeyPatch) -> Recipe:
    """A published system as small as the tests' networks: a student and its teacher with depth images."""
    recipe = small_recipe(streets, epochs=1)
    monkeypatch.setitem(RECIPES, SMALL, lambda: recipe)
    parts = {
        "student": Part(SMALL, "monoskd", monodle.released_form, "1.0 / 2.0 / 3.0", "centernet_rgb."),
        "teacher": Part(SMALL, "teacher", monodle.released_form, "", "centernet_depth."),
    }
    monkeypatch.setattr(systems, "SYSTEMS", {SMALL: System("Small", "nobody/small", parts)})
    for module in ("importing", "exporting"):
        monkeypatch.setattr(f"distill3d.published.{module}.SYSTEMS", systems.SYSTEMS, raising=False)
    return recipe


def theirs(recipe: Recipe, stage: str = "monoskd") -> dict[str, torch.Tensor]:
    """An untrained network's weights under the authors' names."""
    config = recipe.stage(stage).detector
    torch.manual_seed(0)
    detector = build_detector(config)
    return to_released(detector.state_dict(), monodle.released_form(config), config)


def save(path: Path, state: Any, **more: Any) -> Path:
    torch.save({"epoch": 140, "model_state": state, **more}, path)
    return path


def refused(*words: object, capsys: pytest.CaptureFixture) -> str:
    """The one sentence that a command ends with."""
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert end.value.code == 2
    said = capsys.readouterr().err.strip()
    assert said.count("\n") == 0, said
    return said


def accepted(*words: object) -> None:
    with pytest.raises(SystemExit) as end:
        main([str(word) for word in words])
    assert not end.value.code


# ------------------------------------------------------------------------------------------------------ what is written


def test_a_run_folder(small: Recipe, tmp_path: Path) -> None:
    weights = theirs(small)
    file = save(tmp_path / "weights.pth", {f"module.{name}": value for name, value in weights.items()})
    done = import_checkpoint(file, SMALL, out=tmp_path / "out")
    detector, card = load_detector(done.folder)
    for name, value in detector.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert done.dropped == {"never used": ["backbone.fc.weight", "backbone.fc.bias"]}
    about = card["imported"]
    assert about["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest() and about["claimed"] == "1.0 / 2.0 / 3.0"
    assert (about["system"], about["part"], about["repository"]) == (SMALL, "student", "nobody/small")
    assert about["verified"] == "imported, not verified here" and card["classes"] and card["canvas"] == [160, 64]
    names = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    inside = {"config.yaml", "card.json", "model.safetensors"}
    assert names == {"small_student/recipe.yaml", *(f"small_student/student/{name}" for name in inside)}


def test_numbers_of_a_machine_of_the_other_byte_order(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "best": np.array(20.5, dtype=">f4")[()]}, tmp_path / "file.pth")
    order = NumberType("f4", False, True)
    order.__setstate__((3, ">", None, None, None, -1, -1, 0))
    assert read_archive(tmp_path / "file.pth")["best"] == 20.5
    assert _number(order, np.array(20.5, dtype=">f4").tobytes()) == np.float32(20.5)


def test_a_file_of_a_whole_training_gives_each_part(small: Recipe, tmp_path: Path) -> None:
    student, teacher = theirs(small), theirs(small, "teacher")
    state = {f"module.centernet_rgb.{n}": v for n, v in student.items()}
    state |= {f"module.centernet_depth.{n}": v + 1 for n, v in teacher.items()} | {
        "module.adapt.0.weight": torch.ones(1)
    }
    file = save(tmp_path / "whole.pth", state)
    for part, weights in (("student", student), ("teacher", {n: v + 1 for n, v in teacher.items()})):
        done = import_checkpoint(file, SMALL, part, tmp_path / "out")
        detector, card = load_detector(done.folder)
        other = "centernet_depth." if part == "student" else "centernet_rgb."
        left = done.dropped["other networks"]
        assert "adapt.0.weight" in left and sum(name.startswith(other) for name in left) == len(left) - 1
        assert all(torch.equal(v, weights[n]) for n, v in detector.state_dict().items())
        assert card["input"] == ("rgb" if part == "student" else "depth")


def test_harmless_types_are_read_as_data(tmp_path: Path) -> None:
    held = {
        "model_state": {"a": torch.ones(2)}, "best": np.float64(20.5), "steps": np.int64(7),
        "kind": np.dtype("float32"), "arguments": argparse.Namespace(lr=1e-3),
        "hyper_parameters": AttributeDict(gpus=8),
    }  # fmt: skip
    torch.save(held, tmp_path / "file.pth")
    found = read_archive(tmp_path / "file.pth")
    assert (found["best"], found["steps"], found["arguments"]["lr"], found["hyper_parameters"]["gpus"]) == (
        20.5,
        7,
        1e-3,
        8,
    )


def test_what_a_file_is_can_be_told(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Student and teacher are of one form: which, a person must say."""
    file = save(tmp_path / "file.pth", theirs(small))
    said = refused("import", file, "--out", tmp_path / "out", capsys=capsys)
    assert "may be any of 2 networks" in said and "--as small --part student, --as small --part teacher" in said
    accepted("import", file, "--part", "student", "--out", tmp_path / "out")
    assert "nobody/small: 1.0 / 2.0 / 3.0" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------------------- refused


class Hostile:
    def __reduce__(self) -> Any:
        return os.mkdir, ("executed",)


def test_a_hostile_pickle_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state": {"a": torch.ones(1)}, "optimizer": Hostile()}, "file.pth")
    said = refused("import", "file.pth", "--as", "monodle", capsys=capsys)
    assert "mkdir" in said and "execute" in said and not Path("executed").exists()


def test_other_files(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    good = save(tmp_path / "good.pth", theirs(small))
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:5000])
    (tmp_path / "text.pth").write_text("no checkpoint")
    torch.save({"epoch": 3, "best": 1.0}, tmp_path / "empty.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    for name, told in {
        "cut.pth": "is no checkpoint that PyTorch wrote, or is damaged", "text.pth": "is no checkpoint",
        "empty.pth": "there are epoch, best: where they stand elsewhere, save",
        "list.pth": "holds a list", "absent.pth": "no such file",
        "": "Is a directory",
    }.items():  # fmt: skip
        said = refused("import", tmp_path / name, "--as", SMALL, "--out", tmp_path / "out", capsys=capsys)
        assert told in said and not (tmp_path / "out").exists(), said


def test_an_archive_whose_directory_is_damaged(tmp_path: Path) -> None:
    """PyTorch reads an entry that is marked as a folder as memory that nobody wrote; zipfile overlooks the mark."""
    file = save(tmp_path / "file.pth", {"a": torch.randn(7), "b": torch.randn(3)})
    with zipfile.ZipFile(file) as archive:
        begin, entries = archive.start_dir, len(archive.infolist())
    whole = file.read_bytes()
    for _ in range(entries):
        attributes, lengths = begin + 38, struct.unpack_from("<3H", whole, begin + 28)
        file.write_bytes(whole[:attributes] + b"\x10" + whole[attributes + 1 :])
        with pytest.raises(UserError, match="is damaged"):
            read_archive(file)
        begin += 46 + sum(lengths)
    file.write_bytes(whole)
    assert set(state_of(read_archive(file), file)) == {"a", "b"}


def test_other_networks(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights, name = theirs(small), "heatmap.2.weight"
    changes: dict[str, tuple[dict[str, torch.Tensor], str]] = {
        "lacks": ({n: v for n, v in weights.items() if n != name}, f"lacks {name}"),
        "more": (weights | {"backbone.extra.weight": torch.ones(1)}, "holds backbone.extra.weight besides"),
        "turned": (
            weights | {name: weights[name].transpose(0, 1)},
            f"{name} has the shape (8, 3, 1, 1), expected (3, 8",
        ),
    }
    for file, (state, told) in changes.items():
        said = refused("import", save(tmp_path / file, state), "--as", SMALL, "--out", tmp_path / "out", capsys=capsys)
        assert "is not Small (student)" in said and told in said, said
        assert "of none of the known networks" in refused("import", tmp_path / file, capsys=capsys)
    for words, told in {("--as", "x"): "no system 'x'", ("--as", SMALL, "--part", "x"): "has no part 'x'"}.items():
        assert told in refused("import", tmp_path / "lacks", *words, capsys=capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        (lambda value: value.to_sparse(), "is a sparse tensor"),
        (lambda value: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8), "is a quantised tensor"),
        (lambda value: value.to("meta"), "is an empty tensor"),
        (lambda value: value.to(torch.int8), "holds values of torch.int8"),
        (lambda value: value > 0, "holds values of torch.bool"),
        (lambda value: value.to(torch.complex64), "holds values of torch.complex64"),
        (lambda value: value.to(torch.float8_e4m3fn), "holds values of torch.float8_e4m3fn"),
        (lambda value: value * float("nan"), "holds values that are not finite"),
        (lambda value: value.double() + 1e300, "holds values that are not finite"),
    ],
    ids=["sparse", "quantised", "meta", "int8", "bool", "complex", "float8", "nan", "too large"],
)
@pytest.mark.filterwarnings("ignore")
def test_other_numbers(small: Recipe, tmp_path: Path, changed: Any, told: str, capsys) -> None:
    """Refused before anything is written: the sound file that follows finds the place empty."""
    weights, name = theirs(small), "heatmap.2.weight"
    file = save(tmp_path / "odd.pth", weights | {name: changed(weights[name])})
    said = refused("import", file, "--as", SMALL, "--out", tmp_path / "out", capsys=capsys)
    assert told in said and str(file) in said and not (tmp_path / "out").exists()
    halves = {name: v.half() if v.is_floating_point() else v for name, v in weights.items()}
    accepted("import", save(tmp_path / "half.pth", halves), "--as", SMALL, "--out", tmp_path / "out")


def test_one_weight_under_two_names() -> None:
    form = ReleasedForm(renamed={"theirs": "ours"})
    with pytest.raises(UserError, match=r"holds ours.weight twice, once as ours.weight"):
        weight = torch.ones(2)
        from_released({"theirs.weight": weight, "ours.weight": weight}, form, {"ours.weight": weight}, None)


class OddNumber:
    """What pickles as one of numpy's numbers whose type is no number's."""

    def __reduce__(self) -> Any:
        from numpy._core.multiarray import scalar

        return scalar, (np.dtype("V64"), b"x" * 64)


def test_numpys_numbers_alone(tmp_path: Path) -> None:
    torch.save({"a": OddNumber()}, tmp_path / "file.pth")
    with pytest.raises(UserError, match="is no checkpoint"):
        read_archive(tmp_path / "file.pth")
    for number in (np.float64(20.5), np.int32(-3), np.float16(0.5), np.bool_(True)):
        torch.save({"a": number}, tmp_path / "file.pth")
        assert read_archive(tmp_path / "file.pth")["a"] == number


@pytest.mark.parametrize("line", ["0.png", "1", "training/image_2/000000.png", "# train", "000000 1", "a b c"])
def test_what_is_no_split(small: Recipe, tmp_path: Path, line: str, capsys: pytest.CaptureFixture) -> None:
    file, split = save(tmp_path / "file.pth", theirs(small)), tmp_path / "split.txt"
    split.write_text(f"000003\n{line}\n")
    words = ("--as", SMALL, "--trained-on", split, "--out", tmp_path / "out")
    assert "is no name of a frame" in refused("import", file, *words, capsys=capsys)


def test_frames_of_known_scenes_are_not_evaluated(tmp_path: Path) -> None:
    """Cards of imported weights may list scenes; samples are evaluated."""
    data = NuScenesDataset(NuScenesConfig(root=write_drives(tmp_path), version="v1.0-synth", split="val"))
    scenes = data.scene_names()
    (scene,) = set(scenes.values())
    assert list(scenes) == data.frame_ids and f"{scene}\n" == (tmp_path / "splits" / "val.txt").read_text()
    for seen, told in (([scene], "on 4 of the 4"), ([data.frame_ids[1]], "on 1 of the 4"), (["scene-0001"], None)):
        card = {"trained_on": trained_on("nuscenes", seen, [])}
        if told is None:
            refuse_overlap(card, "x", "nuscenes", data.frame_ids, False, scenes=scenes)
        else:
            with pytest.raises(UserError, match=told):
                refuse_overlap(card, "x", "nuscenes", data.frame_ids, False, scenes=scenes)


def test_a_stage_of_the_users_is_no_place(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = save(tmp_path / "file.pth", theirs(small))
    folder = tmp_path / "out" / "small_student" / "student"
    folder.mkdir(parents=True)
    for name, content in {"last.ckpt": b"mine", "evaluation.json": b"{}", "config.yaml": b"mine: 1"}.items():
        (folder / name).write_bytes(content)
        said = refused("import", file, "--as", SMALL, "--out", tmp_path / "out", capsys=capsys)
        assert f"{name}: is there already" in said
        assert {path.name for path in folder.iterdir()} == {name} and (folder / name).read_bytes() == content
        (folder / name).unlink()
    (tmp_path / "out" / "small_student" / "recipe.yaml").symlink_to(tmp_path / "nowhere")
    assert "recipe.yaml: is there already" in refused(
        "import", file, "--as", SMALL, "--out", tmp_path / "out", capsys=capsys
    )


def test_other_networks_are_not_exported(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    student = import_checkpoint(save(tmp_path / "file.pth", theirs(small)), SMALL, out=tmp_path / "out")
    assert "fits teacher as well: --part says which it is" in student.text()
    said = refused("export", student.folder, "--as", SMALL, "--part", "teacher", capsys=capsys)
    assert "looks at rgb, Small (teacher) at depth" in said
    config = replace(small.stage("monoskd").detector, head_channels=16)
    detector, card = build_detector(config), load_weights(student.folder)[1]
    save_weights(tmp_path / "wide", detector.state_dict(), card | {"config": to_plain(config)})
    said = refused("export", tmp_path / "wide", "--as", SMALL, capsys=capsys)
    assert "is not Small (student) as its code has it" in said and "has the shape" in said


def test_nothing_is_replaced(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    file = save(tmp_path / "file.pth", theirs(small))
    done = import_checkpoint(file, SMALL, out=tmp_path / "out")
    before = (done.folder / "model.safetensors").read_bytes()
    said = refused("import", file, "--as", SMALL, "--out", tmp_path / "out", capsys=capsys)
    assert "is there already" in said and (done.folder / "model.safetensors").read_bytes() == before


# ------------------------------------------------------------------------------------------ what other commands make of


def test_export_is_the_way_back(small: Recipe, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    weights = theirs(small)
    done = import_checkpoint(save(tmp_path / "file.pth", weights), SMALL, out=tmp_path / "out")
    accepted("export", done.folder, "--as", SMALL, "--out", tmp_path / "back.pth")
    back = torch.load(tmp_path / "back.pth", weights_only=True)["model_state"]
    assert back.keys() == weights.keys()
    again = import_checkpoint(tmp_path / "back.pth", SMALL, out=tmp_path / "again")
    (first, _), (second, _) = load_weights(done.folder), load_weights(again.folder)
    assert all(torch.equal(second[name], value) for name, value in first.items())
    assert "either --onnx FILE or --as SYSTEM" in refused("export", done.folder, capsys=capsys)


def test_an_import_is_judged_on_a_split(small: Recipe, streets: Path, tmp_path: Path, capsys) -> None:
    file = save(tmp_path / "file.pth", theirs(small))
    unknown = import_checkpoint(file, SMALL, out=tmp_path / "unknown").folder
    words = ("--data-root", streets, "--split", "val")
    assert "may have been trained on any frame of" in refused("eval", "run", unknown, *words, capsys=capsys)
    split = streets / "ImageSets" / "train.txt"
    folder = import_checkpoint(file, SMALL, out=tmp_path / "out", split=split).folder
    accepted("eval", "run", folder, *words)
    assert "4 frames evaluated" in capsys.readouterr().out
    assert "strict" in json.loads((folder / "evaluation.json").read_text())
    assert len(list((folder / "predictions").glob("*.txt"))) == 4
    assert "is there already: give another --out, or remove it" in refused("eval", "run", folder, *words, capsys=capsys)
    misspelt = refused("eval", "run", folder, "--data-root", streets, "--split", "vall", capsys=capsys)
    assert "vall.txt: no such file, but there are train.txt," in misspelt
    (folder / "metrics.jsonl").write_text("")  # as a training leaves it
    said = refused("eval", "run", folder, *words, capsys=capsys)
    assert said.endswith("evaluation.json: is of the stage's own training: give another --out")
    (folder / "metrics.jsonl").unlink()
    trained = ("--data-root", streets, "--split", "train", "--out", tmp_path / "train")
    assert "was trained on 8 of the 8" in refused("eval", "run", folder, *trained, capsys=capsys)
    # Frames of another data set may have the same names; its pictures may be of another size.
    accepted("eval", "run", folder, *trained, "--identity", "another", "--min-height-scale", "0.25")
    assert json.loads((tmp_path / "train" / "evaluation.json").read_text())["settings"]["min_height_scale"] == 0.25
    accepted("report", folder, "--out", tmp_path / "report.html")


def test_an_import_teaches(small: Recipe, streets: Path, tmp_path: Path) -> None:
    split = streets / "ImageSets" / "train.txt"
    file = save(tmp_path / "teacher.pth", theirs(small, "teacher"))
    folder = import_checkpoint(file, SMALL, "teacher", tmp_path / "out", split).folder
    stages = tuple(
        stage if stage.name != "teacher" else replace(stage, taken_from=folder)
        for stage in small.stages if stage.name in ("teacher", "monoskd")
    )  # fmt: skip
    options = RunOptions(out=tmp_path / "runs", progress=False, tensorboard=False, threads=1, accelerator="cpu")
    run = run_recipe(replace(small, stages=stages), options)
    taken, card = load_weights(run / "teacher")
    assert all(torch.equal(taken[name], value) for name, value in load_weights(folder)[0].items())
    assert card["taken_from"]["recipe"] == "small_teacher" and card["imported"]["system"] == SMALL
    _, student = load_weights(run / "monoskd")
    assert student["teachers"] == ["teacher"] and student["trained_on"]["count"] == 8
    before = (run / "teacher" / "card.json").read_bytes()
    run_recipe(replace(small, stages=stages), options)  # finished: nothing is done again
    assert (run / "teacher" / "card.json").read_bytes() == before
    folder.rename(tmp_path / "elsewhere")  # what was taken is in the run
    run_recipe(replace(small, stages=stages), options)
    with pytest.raises(UserError, match="no such file"):
        run_recipe(replace(small, name="other", stages=(replace(stages[0], taken_from=tmp_path / "x"),)), options)


def test_what_stands_for_a_teacher(small: Recipe, streets: Path, tmp_path: Path, monkeypatch, capsys) -> None:
    """Its contents count, not how its path is spelt; what the method cannot learn from is refused at the start."""
    split = streets / "ImageSets" / "train.txt"
    file = save(tmp_path / "teacher.pth", theirs(small, "teacher"))
    folder = import_checkpoint(file, SMALL, "teacher", tmp_path / "out", split).folder
    options = RunOptions(out=tmp_path / "runs", progress=False, tensorboard=False, threads=1, accelerator="cpu")

    def run(source: Path, *only: str) -> Path:
        stages = (replace(small.stage("teacher"), taken_from=source), small.stage("monoskd"))
        return run_recipe(replace(small, stages=stages), options, only)

    unknown = import_checkpoint(file, SMALL, "teacher", tmp_path / "unknown").folder
    with pytest.raises(UserError, match="may have been trained on any frame"):
        run(unknown)
    other = build_detector(gupnet.tiny(input="depth", trunk=TRUNK, head_channels=8))
    card = load_weights(folder)[1] | {"detector": other.name, "config": to_plain(other.config)}
    save_weights(tmp_path / "gupnet", other.state_dict(), card)
    with pytest.raises(UserError, match=r"'monoskd' cannot learn from what stands in place of .* teacher \(gupnet\)"):
        run(tmp_path / "gupnet")
    assert not (tmp_path / "runs").exists()
    other_canvas, of_folder = tmp_path / "other_canvas", load_weights(folder)
    save_weights(other_canvas, of_folder[0], of_folder[1] | {"canvas": [1280, 384]})
    run(other_canvas, "teacher")
    assert "was trained on a canvas of 1280 x 384 px, the recipe's is 160 x 64" in capsys.readouterr().err
    rmtree(tmp_path / "runs")
    run(folder, "teacher")
    assert not capsys.readouterr().err
    monkeypatch.chdir(tmp_path)
    run(folder.relative_to(tmp_path), "teacher")
    weights, card = load_weights(folder)
    save_weights(folder, {name: value + 1 for name, value in weights.items()}, card)
    with pytest.raises(UserError, match="other settings"):
        run(folder, "teacher")


def test_settings_of_the_data_do_not_change_what_is_taken(
    small: Recipe, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights count; what was really trained is refused as ever."""
    file, split = save(tmp_path / "teacher.pth", theirs(small, "teacher")), streets / "ImageSets" / "train.txt"
    folder = import_checkpoint(file, SMALL, "teacher", tmp_path / "out", split).folder
    options = RunOptions(out=tmp_path / "runs", progress=False, tensorboard=False, threads=1, accelerator="cpu")
    stages = (replace(small.stage("teacher"), taken_from=folder), small.stage("monoskd"))
    recipe = replace(small, stages=stages)
    run = run_recipe(recipe, options, ("teacher",))
    before = (run / "teacher" / "card.json").read_bytes()
    wide = replace(recipe, dataset=replace(recipe.dataset, canvas=(192, 64)))
    with pytest.raises(UserError, match=r"was trained on \d+ of the"):  # nor does it go unchecked
        run_recipe(replace(wide, dataset=replace(wide.dataset, eval_split="train")), options)
    run_recipe(wide, options)
    assert (run / "teacher" / "card.json").read_bytes() == before
    assert load_weights(run / "monoskd")[1]["canvas"] == [192, 64]
    with pytest.raises(UserError, match=r"monoskd was trained with other settings .*dataset.canvas was \[192, 64\]"):
        run_recipe(recipe, options)


def test_what_only_prepared_for_a_finished_stage_is_not_trained(small: Recipe, streets: Path, tmp_path: Path) -> None:
    file, split = save(tmp_path / "student.pth", theirs(small)), streets / "ImageSets" / "train.txt"
    folder = import_checkpoint(file, SMALL, "student", tmp_path / "out", split).folder
    stages = (small.stage("teacher"), replace(small.stage("monoskd"), taken_from=folder))
    options = RunOptions(out=tmp_path / "runs", progress=False, tensorboard=False, threads=1, accelerator="cpu")
    run = run_recipe(replace(small, stages=stages), options)
    assert (run / "monoskd" / "card.json").exists() and not (run / "teacher").exists()
    run_recipe(replace(small, stages=stages), options, ("teacher",))  # named, it is
    assert (run / "teacher" / "card.json").exists()


def test_monoskds_teacher_teaches_did_m3d(streets: Path, tmp_path: Path) -> None:
    """At the published size, from a file as its authors' training leaves it."""
    recipe = get_recipe("monoskd_did_m3d")
    of = SYSTEMS["monoskd"].parts["teacher"]
    config = of.taken_from()[1].detector
    torch.manual_seed(0)
    weights = to_released(build_detector(config).state_dict(), of.form(config), config)
    file = save(tmp_path / "depth_pretrain.pth", {f"centernet_depth.{name}": value for name, value in weights.items()})
    folder = import_checkpoint(file, "monoskd", "teacher", tmp_path / "out", streets / "ImageSets" / "train.txt").folder
    student = recipe.stage("student")
    student = replace(
        student, detector=untrained_detector(student.detector), init=None,
        schedule=replace(student.schedule, epochs=1, batch_size=4),
    )  # fmt: skip
    dataset = replace(recipe.dataset, root=streets, canvas=CANVAS, min_height_scale=CANVAS[0] / 1242, depth="lidar")
    recipe = replace(
        recipe, stages=(replace(recipe.stage("teacher"), taken_from=folder), student), dataset=dataset,
        precision="fp32",
    )  # fmt: skip
    options = RunOptions(
        out=tmp_path / "runs", progress=False, tensorboard=False, threads=1, accelerator="cpu", log_steps=1
    )
    run = run_recipe(recipe, options)
    card = json.loads((run / "student" / "card.json").read_text())
    assert card["teachers"] == ["teacher"] and card["method"] == "monoskd"
    lines = map(json.loads, (run / "student" / "metrics.jsonl").read_text().splitlines())
    steps = [line["terms"] for line in lines if line["kind"] == "train"]
    assert len(steps) == 2 and all(np.isfinite(value) for terms in steps for value in terms.values())


@pytest.mark.thorough
def test_a_centerpoint_teaches_bevdepth(tmp_path: Path) -> None:
    """mmdetection3d's, at the published size; the student, small but for the ground that it shares with its teacher."""
    drives = write_drives(tmp_path / "drives")
    of = SYSTEMS["centerpoint"].parts["teacher"]
    config = of.taken_from()[1].detector
    assert isinstance(config, CenterPointConfig)
    torch.manual_seed(0)
    weights = to_released(build_detector(config).state_dict(), of.form(config), config)
    torch.save({"meta": {"epoch": 20}, "state_dict": weights}, tmp_path / "centerpoint.pth")
    split = drives / "splits" / "train.txt"
    folder = import_checkpoint(tmp_path / "centerpoint.pth", "centerpoint", None, tmp_path / "out", split).folder
    recipe = small_surround_preset("tiny_surround", drives)
    baseline, ground = recipe.stage("baseline"), BEVDepthConfig()
    assert isinstance(baseline.detector, BEVDepthConfig)
    head = replace(baseline.detector.head, extent=ground.head.extent, cell=ground.head.cell)
    detector = replace(
        baseline.detector, grid=ground.grid, head=head, bev_base=32, bev_channels=config.backbone.channels[0]
    )  # fmt: skip
    method = CMKDConfig(teacher_tap="bev_0", cls_weight=0.0, loc_weight=0.0, dir_weight=0.0)
    student = replace(baseline, name="student", role="student", detector=detector, teachers=("teacher",), method=method)
    recipe = replace(recipe, stages=(replace(recipe.stage("teacher"), taken_from=folder), student))
    options = RunOptions(
        out=tmp_path / "runs", progress=False, tensorboard=False, threads=1, accelerator="cpu", log_steps=1
    )
    with pytest.raises(UserError, match="add --dataset.ego-frame lidar_sensor"):
        run_recipe(recipe, options)
    run = run_recipe(replace(recipe, dataset=replace(recipe.dataset, ego_frame="lidar_sensor")), options)
    lines = map(json.loads, (run / "student" / "metrics.jsonl").read_text().splitlines())
    steps = [line["terms"] for line in lines if line["kind"] == "train"]
    assert steps and all(np.isfinite(terms["bev"]) and terms["bev"] > 0 for terms in steps)


def test_a_detector_that_knows_more_classes_than_the_data_set(tmp_path: Path) -> None:
    """Its boxes keep the names that it gives them; to be trained there it must know the same."""
    drives = write_drives(tmp_path / "drives")
    recipe = small_surround_preset("tiny_surround", drives)
    stage = recipe.stage("teacher")
    few = replace(recipe, stages=(stage,), dataset=replace(recipe.dataset, classes=("bicycle", "car")))
    folder = tmp_path / "run" / "teacher"
    with pytest.raises(UserError, match="stage 'teacher': its detector's classes are car, .*, the data set's bicycle"):
        run_recipe(few, RunOptions(out=tmp_path / "runs", progress=False, accelerator="cpu"))
    write_settings(few, stage, folder)
    torch.manual_seed(0)
    card = {"version": "v1.0-synth", "detector": "centerpoint", "config": to_plain(stage.detector),
            "trained_on": trained_on(recipe.dataset.identity, [], [])}  # fmt: skip
    save_weights(folder, build_detector(stage.detector).state_dict(), card)
    result = evaluate_stage(folder, drives, "val", device="cpu", progress=False).result
    assert result.classes == ("bicycle", "car")
    found = json.loads(next((folder / "predictions").iterdir()).read_text())["results"]
    names = {box["detection_name"] for boxes in found.values() for box in boxes}
    assert names and names <= set(stage.detector.classes) and names - {"bicycle", "car"}
