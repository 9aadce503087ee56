"""The command line: every mistake is one sentence and exit code 2."""

import json
import struct
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from streets import small_recipe

from distill3d.cli import COMMANDS, main
from distill3d.options import option_names
from distill3d.recipes import get_recipe
from distill3d.train.checkpoint import save_weights
from distill3d.train.loop import RunOptions
from distill3d.train.recipe import Recipe
from distill3d.train.stages import run_recipe


def call(capsys: pytest.CaptureFixture, *arguments: object) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command."""
    with pytest.raises(SystemExit) as stop:
        main([str(a) for a in arguments])
    out, err = capsys.readouterr()
    return int(stop.value.code or 0), out, err


def assert_one_sentence(code: int, err: str, *words: str) -> None:
    assert code == 2, err
    assert len(err.strip().splitlines()) == 1 and err.startswith("distill3d: "), err
    assert "Traceback" not in err
    for word in words:
        assert word in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trian"], ["'trian'", "did you mean 'train'"]),
        (["train"], ["expected a recipe's name"]),
        (["train", "monoskd_monodel"], ["'monoskd_monodel'", "did you mean 'monoskd_monodle'"]),
        (["train", "demo"], ["--data-root"]),
        (["train", "demo", "--bogus", "3"], ["unknown option '--bogus'"]),
        (["train", "demo", "--stages.techer.schedule.epochs", "3"], ["no stage 'techer'", "teacher"]),
        (
            ["train", "demo", "--stages.teacher.schedule.epochs", "x"],
            ["--stages.teacher.schedule.epochs is 'x', expected a whole number"],
        ),
        (["train", "demo", "--stages.teacher.schedule.lr", "x"], ["schedule.lr is 'x', expected a number"]),
        (["predict", "m", "p", "--score", "abc"], ["predict: --score is 'abc', expected a number"]),
        (["predict", "--model", "streets", "https://x.org/a.png", "--intrinsics", "9,9,9,9"], ["is an address"]),
        (["train", "demo", "--datasets.canvas", "1", "2"], ["'--datasets.canvas', did you mean --dataset.canvas?"]),
        (["train", "demo", "--data_rot", "x"], ["'--data_rot', did you mean --data_root?"]),
        (["train", "demo", "--stages.monoskd.schedul.lr=1"], ["did you mean --stages.monoskd.schedule.lr=?"]),
        (["train", "demo", "--only-stages", "x"], ["unknown option '--only-stages'"]),
        (["train", "demo", "--eval-split", "x"], ["did you mean --dataset.eval-split?"]),
        (["train", "demo", "teacher"], ["unknown argument 'teacher'"]),
        (["predict", "m", "p", "--intrinsic", "1,2,3,4"], ["did you mean --intrinsics?"]),
        (["train", "demo", "--plugin"], ["--plugin: expected the name of a module"]),
        (["train", "demo", "--plugin", "nowhere.py"], ["nowhere.py: no such file"]),
        (["recipes", "--plugin=nothing_of_this_name"], ["nothing_of_this_name: cannot be imported"]),
        (["train", "demo", "--data-root", "nowhere"], ["nowhere", "no such folder"]),
        (["train", "demo", "--only", "nobody"], ["no stage 'nobody'"]),
        (["recipes", "dmo"], ["did you mean 'demo'"]),
        (["eval"], ["kitti"]),
        (["eval", "coco"], ["'coco'", "kitti"]),
        (["eval", "kitti", "--labels", "nowhere", "--predictions", "nowhere"], ["nowhere"]),
        (["eval", "kitti", "--labels", "nowhere"], ["--predictions"]),
        (["check", "nowhere"], ["nowhere"]),
        (["check", ".", "--layout", "coco"], ["layout"]),
        (["report", "nowhere"], ["nowhere"]),
        (["diagnose", "nowhere"], ["nowhere"]),
        (["diagnose", "nowhere", "--out", "page.txt"], ["page.txt", ".html"]),
        (["diagnose", "nowhere", "--margin", "2"], ["--margin", "between 0 and 1"]),
        (["record", "nowhere"], ["nowhere"]),
        (["predict", "x.png", "--intrinsics", "9,9,9,9"], ["no model given: --model streets, or a stage folder first"]),
        (["predict", "a.MP4", "x.png", "--intrinsics", "9,9,9,9"], ["no model given"]),
        (
            ["predict", "m", "x.png", "--intrinsics", "371.8", "371.8", "314.1", "89.1"],
            ["with commas and no spaces: 371.8,371.8,314.1,89.1"],
        ),
        (["predict", "m", "x.png", "--intrinsics", "9,", "9.", "-3,", ".5e1"], ["no spaces: 9,9.,-3,.5e1"]),
        (["predict", "nowhere", "x.png"], ["--calib", "--intrinsics"]),
        (["predict", "nowhere", "x.png", "--intrinsics", "1,2,3"], ["'1,2,3'", "four numbers"]),
        (["predict", "nowhere", "x.png", "--intrinsics", "700,700,600,170"], ["nowhere", "no such file"]),
        (["synth", "somewhere", "--frames", "many"], ["frames"]),
        (["doctor", "--fast"], ["unknown option '--fast'"]),
        (["demo", "--quick"], ["unknown option '--quick'"]),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else None,
)
def test_mistakes(
    arguments: list[str], words: list[str], capsys: pytest.CaptureFixture, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = call(capsys, *arguments)
    assert_one_sentence(code, err, *words)
    assert not list(tmp_path.iterdir()), "a refused command left something behind"


def test_help_of_a_recipe(capsys: pytest.CaptureFixture) -> None:
    """Its stages by name, what is changed most with values, and every setting on request."""
    code, out, _ = call(capsys, "train", "tiny_lidar", "--help")
    recipe = get_recipe("tiny_lidar")
    lines = out.splitlines()
    assert code == 0 and len(lines) < 60 and max(map(len, lines)) <= 140
    assert all(any(line.split()[:2] == [stage.name, stage.role] for line in lines) for stage in recipe.stages)
    shown = [line.split()[0] for line in lines if line.startswith("  --")]
    assert len(shown) >= 20 and "--data-root" in shown
    known = set(option_names(Recipe, recipe)) | set(option_names(RunOptions, RunOptions()))
    assert set(shown) - {"--data-root", "--only"} <= known
    code, every, _ = call(capsys, "train", "tiny_lidar", "--help-all")
    assert code == 0 and len(every.splitlines()) > 300 and "--evaluation.every" in every


def truncate_image(frame: Path) -> Path:
    path = frame / "image_2" / "000003.png"
    path.write_bytes(path.read_bytes()[:200])
    return path


def empty_scan(frame: Path) -> Path:
    path = frame / "velodyne" / "000003.bin"
    path.write_bytes(b"")
    return path


def short_label(frame: Path) -> Path:
    path = frame / "label_2" / "000003.txt"
    path.write_text("Car 0.00 0 1.32 391.29 180.56 519.63 267.52 1.49 1.66 3.75 -3.33 1.67 14.77\n")
    return path


def calibration_without_p2(frame: Path) -> Path:
    path = frame / "calib" / "000003.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("P2")) + "\n")
    return path


def scan_with_nan(frame: Path) -> Path:
    path = frame / "velodyne" / "000003.bin"
    path.write_bytes(struct.pack("<4f", float("nan"), 0, 0, 0))
    return path


@pytest.mark.parametrize("spoil", [truncate_image, empty_scan, short_label, calibration_without_p2, scan_with_nan])
def test_spoilt_data(spoil, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """`check` names the file, and training stops with one sentence that names it too."""
    import shutil

    root = shutil.copytree(streets, tmp_path / "data")
    assert call(capsys, "check", root)[0] == 0
    path = spoil(root / "training")
    code, out, err = call(capsys, "check", root)
    assert code == 2 and path.name in out + err
    code, _, err = call(
        capsys, "train", "demo", "--data-root", root, "--out", tmp_path / "runs", "--only", "teacher",
        "--stages.teacher.schedule.epochs", 1, "--no-progress", "--no-tensorboard", "--precision", "fp32",
    )  # fmt: skip
    assert_one_sentence(code, err, path.name)


@pytest.fixture(scope="module")
def baseline(streets: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs")
    options = RunOptions(out=out, progress=False, tensorboard=False, threads=1, accelerator="cpu")
    return run_recipe(small_recipe(streets, epochs=1), options, ("baseline",)) / "baseline"


@pytest.mark.parametrize("how", ["calib", "intrinsics"])
def test_predict_any_picture(
    how: str, baseline: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    training = streets / "training"
    camera = {
        "calib": ["--calib", training / "calib" / "000008.txt"],
        "intrinsics": ["--intrinsics", "500,500,80,32"],  # not the training camera's: the picture is scaled
    }[how]
    picture = training / "image_2" / "000008.png"
    code, out, err = call(capsys, "predict", baseline, picture, *camera, "--out", tmp_path)
    assert code == 0, err
    assert Path(out.strip()) == tmp_path / "000008.png" and (tmp_path / "000008.png").stat().st_size > 1000
    assert all(len(line.split()) == 16 for line in (tmp_path / "000008.txt").read_text().splitlines())


def test_predict_gives_what_evaluation_gave(baseline: Path, streets: Path, tmp_path: Path, capsys) -> None:
    calib, picture = (streets / "training" / p for p in ("calib/000008.txt", "image_2/000008.png"))
    call(capsys, "predict", baseline, picture, "--calib", calib, "--out", tmp_path)
    ours, theirs = (
        [line.split() for line in path.read_text().splitlines()]
        for path in (tmp_path / "000008.txt", baseline / "predictions" / "000008.txt")
    )
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert a[0] == b[0]
        torch.testing.assert_close(
            torch.tensor([*map(float, a[3:])]), torch.tensor([*map(float, b[3:])]), rtol=1e-3, atol=1e-2
        )


def hostile(folder: Path) -> Path:
    import os

    class Hostile:
        def __reduce__(self) -> tuple:
            return (os.system, (f"touch {folder / 'executed'}",))

    torch.save({"model": Hostile()}, folder / "evil.ckpt")
    return folder / "evil.ckpt"


def other_detector(folder: Path) -> Path:
    save_weights(folder, {"w": torch.zeros(1)}, {"detector": "yolo", "config": {}})
    return folder


@pytest.mark.parametrize(("make", "word"), [(hostile, "evil.ckpt"), (other_detector, "'yolo'")])
def test_predict_refuses(make, word: str, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    picture = streets / "training" / "image_2" / "000008.png"
    code, _, err = call(capsys, "predict", make(tmp_path), picture, "--intrinsics", "700,700,80,32", "--out", tmp_path)
    assert_one_sentence(code, err, word)
    assert not (tmp_path / "executed").exists()


def test_help_names_every_command_and_imports_little() -> None:
    script = (
        "import sys; from distill3d.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert all(f"  {name} " in shown for name in COMMANDS)
    assert shown.strip().endswith("False")


@pytest.mark.parametrize(
    "command", [[name] for name in COMMANDS] + [["eval", "kitti"], ["train", "demo"]], ids=" ".join
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture) -> None:
    code, out, _ = call(capsys, *command, "--help")
    assert code == 0 and "usage: distill3d" in out


def test_recipes_are_listed_and_shown(capsys: pytest.CaptureFixture) -> None:
    import yaml

    _, out, _ = call(capsys, "recipes")
    assert "monoskd_monodle" in out
    _, out, _ = call(capsys, "recipes", "monoskd_monodle")
    shown = yaml.safe_load(out)
    assert [s["name"] for s in shown["stages"]] == ["teacher", "baseline", "student"]


def test_eval_writes_the_official_keys(
    baseline: Path, streets: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    labels, split = streets / "training" / "label_2", streets / "ImageSets" / "val.txt"
    folders = ["--labels", labels, "--predictions", baseline / "predictions", "--split", split]
    code, out, _ = call(capsys, "eval", "kitti", *folders, "--json", tmp_path / "r.json", "--min-height-scale", 0.13)
    assert code == 0 and "0.13" in out
    written = json.loads((tmp_path / "r.json").read_text())
    for overlap in ("strict", "loose"):
        assert len(written[overlap]) == 12
        row = written[overlap]["car_3d"]
        assert len(row["AP_R40"]) == 3 and [len(p) for p in row["precision41"]] == [41] * 3


def test_raw_list_leaves_out_the_drives_of_a_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    date = "2011_09_26"
    for number in (1, 2):
        for kind, ending in (("image_02", "png"), ("velodyne_points", "bin")):
            file = tmp_path / date / f"{date}_drive_000{number}_sync" / kind / "data" / f"0000000000.{ending}"
            file.parent.mkdir(parents=True)
            file.touch()
    (tmp_path / "train_mapping.txt").write_text(f"{date} {date}_drive_0002_sync 0000000000\n")
    (tmp_path / "train_rand.txt").write_text("1")
    (tmp_path / "val.txt").write_text("000000\n")
    with pytest.raises(SystemExit) as stop:
        main(["raw-list", str(tmp_path), "--mapping", str(tmp_path), "--split", str(tmp_path / "val.txt"),
              "--out", str(tmp_path / "list.txt")])  # fmt: skip
    assert stop.value.code == 0 and "1 of 2 frames share no drive" in capsys.readouterr().out
    assert (tmp_path / "list.txt").read_text() == f"{date}/{date}_drive_0001_sync/image_02/data/0000000000\n"


def test_an_interpreter_that_miscounts_is_asked_again(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """CPython 3.11 at times raises a SystemError where the option parser reads the comments of fields."""
    import tyro

    parsed, calls = tyro.cli, []

    def miscounting(*arguments: object, **options: object) -> object:
        calls.append(arguments)
        if len(calls) == 1:
            raise SystemError("AST constructor recursion depth mismatch (before=111, after=35)")
        return parsed(*arguments, **options)

    monkeypatch.setattr(tyro, "cli", miscounting)
    assert call(capsys, "doctor")[0] == 0 and len(calls) == 2
