"""Detectors from Python: pictures and cameras of every kind, and what comes out."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from streets import CANVAS, TRUNK

import distill3d
from distill3d.camera import Camera
from distill3d.detectors import build_detector
from distill3d.errors import UserError
from distill3d.model import Model, Prediction, as_camera
from distill3d.recipes.synthetic import TINY
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights

INTRINSICS = (93.0, 93.0, CANVAS[0] / 2, CANVAS[1] / 2)


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage whose detector calls everything a box."""
    folder = tmp_path_factory.mktemp("runs") / "baseline"
    torch.manual_seed(0)
    detector = build_detector(replace(TINY["monodle"], score_threshold=0.0, trunk=TRUNK, head_channels=8))
    card = {
        "detector": detector.name, "config": to_plain(detector.config), "input": "rgb", "canvas": list(CANVAS),
        "focal": 93.0, "file_focal": 93.0, "placement": "fit", "trained_on": {"count": 0, "frames": []},
    }  # fmt: skip
    save_weights(folder, detector.state_dict(), card)
    return folder


@pytest.fixture(scope="module")
def model(stage: Path) -> Model:
    return distill3d.load(str(stage), device="cpu")


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (CANVAS[1], CANVAS[0], 3), dtype=np.uint8)


def same(found: Prediction, other: Prediction) -> bool:
    return torch.equal(found.boxes.centre, other.boxes.centre) and found.names == other.names


def test_pictures_of_every_kind(model: Model, picture: np.ndarray, tmp_path: Path) -> None:
    image = Image.fromarray(picture)
    image.save(tmp_path / "street.png")
    pixels = torch.from_numpy(picture).permute(2, 0, 1)
    expected = model.predict(picture, INTRINSICS)
    assert len(expected) and bool(expected.boxes.score.diff().le(0).all())  # pyright: ignore
    for given in (tmp_path / "street.png", str(tmp_path / "street.png"), image, pixels, pixels.float() / 255,
                  picture[:, ::-1][:, ::-1]):  # fmt: skip
        assert same(model.predict(given, INTRINSICS), expected)
    several = model.predict([image, picture], INTRINSICS)
    assert len(several) == 2 and all(same(one, expected) for one in several)
    deep = Image.fromarray(picture[..., 0].astype(np.uint16) * 257)
    assert torch.equal(model.predict(deep, INTRINSICS).picture[0] * 255, pixels[0].float())


def test_cameras_of_every_kind(model: Model, picture: np.ndarray, tmp_path: Path) -> None:
    fx, fy, cx, cy = INTRINSICS
    matrix = np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]])
    calib = tmp_path / "calib.txt"
    calib.write_text(f"P2: {fx} 0 {cx} 0 0 {fy} {cy} 0 0 0 1 0\n")
    expected = model.predict(picture, INTRINSICS)
    for camera in (list(INTRINSICS), np.array(INTRINSICS), torch.tensor(INTRINSICS), matrix, matrix.tolist(),
                   torch.from_numpy(np.c_[matrix, np.zeros(3)]), calib, str(calib),
                   distill3d.Camera.from_intrinsics(*INTRINSICS)):  # fmt: skip
        assert same(model.predict(picture, camera), expected)


def test_what_comes_out(model: Model, picture: np.ndarray, tmp_path: Path) -> None:
    found = model.predict(picture, INTRINSICS)
    boxes = list(found)
    assert json.loads(json.dumps(found.to_dict()))[0]["name"] == boxes[0].name == found.names[0]
    assert set(found.names) <= {"Car", "Pedestrian", "Cyclist"}
    assert boxes[0].centre == tuple(found.boxes.centre[0].tolist()) and boxes[0].box2d is not None
    assert all(line.split()[0] in ("Car", "Pedestrian", "Cyclist") for line in found.to_kitti())
    least = boxes[len(boxes) // 2].score
    fewer = model.predict(picture, INTRINSICS, least_score=least)
    assert 0 < len(fewer) <= len(boxes) and all(box.score >= least for box in fewer)
    drawn = found.draw(tmp_path / "street.png")
    with Image.open(tmp_path / "street.png") as written:
        assert np.array_equal(np.asarray(written), np.asarray(drawn))
    found.draw(tmp_path / "street.png")  # of this library: it may be replaced
    (tmp_path / "mine.png").write_bytes(b"a picture of the user's")
    with pytest.raises(UserError, match="mine.png"):
        found.draw(tmp_path / "mine.png")
    nothing = model.predict(picture, INTRINSICS, least_score=2.0)
    assert not len(nothing) and list(nothing) == nothing.to_kitti() == []


def test_supervision(model: Model, picture: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    found = model.predict(picture, INTRINSICS)
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(UserError, match="pip install supervision"):
        found.to_supervision()
    monkeypatch.setitem(sys.modules, "supervision", SimpleNamespace(Detections=SimpleNamespace))
    theirs = found.to_supervision()
    assert theirs.xyxy.shape == (len(found), 4) and list(theirs.data["class_name"]) == found.names


@pytest.mark.parametrize(
    ("given", "camera", "told"),
    [
        ("absent.png", INTRINSICS, "absent.png"),
        (np.zeros((4, 4), np.uint8), INTRINSICS, "of the shape (4, 4), expected (height, width, 3)"),
        (torch.zeros(4, 4, 3), INTRINSICS, "expected (3, height, width)"),
        (torch.full((3, 48, 96), 2.0), INTRINSICS, "outside 0..1"),
        (torch.full((3, 48, 96), float("nan")), INTRINSICS, "outside 0..1"),
        (torch.zeros(3, 48, 96, dtype=torch.int64), INTRINSICS, "type torch.int64"),
        (5, INTRINSICS, "picture is a int"),
        (None, (0.58, 1.9, 0.5, 0.5), "shares of the picture's size"),
        (None, (0.0, 93.0, 48.0, 24.0), "expected positive focal lengths"),
        (None, (93.0, 93.0), "has the shape (2,)"),
        (None, np.zeros((3, 3)), "focal lengths are not positive"),
        (None, object(), "camera is a object"),
        (None, [INTRINSICS], "list of 1, expected one camera for all pictures"),
        (None, [INTRINSICS] * 3, "list of 3, expected one camera for all pictures"),
        (None, (np.array(INTRINSICS), torch.tensor(INTRINSICS)), "one camera for all pictures"),
        (None, [Camera(torch.eye(3, 4))], "one camera for all pictures"),
        (None, ["a.txt", Path("b.txt")], "one camera for all pictures"),
        (None, [np.eye(3), np.eye(3)], "one camera for all pictures"),
        (None, "absent.txt", "absent.txt"),
    ],
)
def test_refused(model: Model, picture: np.ndarray, given: object, camera: object, told: str) -> None:
    with pytest.raises(UserError) as error:
        model.predict(picture if given is None else given, camera)  # pyright: ignore
    assert told in str(error.value)


@pytest.mark.parametrize("score", ["x", float("nan"), [0.1]])
def test_odd_scores_and_batches_are_refused(model: Model, picture: np.ndarray, score: Any) -> None:
    with pytest.raises(UserError, match=r"least_score is .*, expected a number"):
        model.predict(picture, INTRINSICS, least_score=score)
    for size in (0, "2", 1.5):
        with pytest.raises(UserError, match="batch_size is .*, expected a whole number"):
            model.predict([picture], INTRINSICS, batch_size=size)  # pyright: ignore


def test_numbers_of_numpy_are_numbers(model: Model, picture: np.ndarray) -> None:
    found = model.predict([picture], [np.float32(v) for v in INTRINSICS], np.float32(0.0), np.int64(1))  # pyright: ignore
    assert len(found) == 1
    rows = [[93.0, 0, 48, 0], [0, 93, 24, 0], [0, 0, 1, 0]]  # of a matrix
    assert torch.equal(as_camera(rows).projection, torch.tensor(rows, dtype=torch.float64))  # pyright: ignore


def test_a_runs_folder_names_its_stages(stage: Path) -> None:
    with pytest.raises(UserError, match=r"holds the stages baseline, give one of them, such as .*baseline"):
        distill3d.load(stage.parent)
    with pytest.raises(UserError, match="no such file"):
        distill3d.load(stage.parent / "absent")


def test_untrained_detectors() -> None:
    detector = distill3d.build("demo", "baseline")
    assert detector.name == "monodle" and isinstance(detector, torch.nn.Module)
    with pytest.raises(UserError, match="absent"):
        distill3d.build("demo", "absent")


def test_the_surface_is_what_it_says() -> None:
    """Every name is there and documented, whatever was imported first, and nothing heavy comes with the package."""
    script = """import distill3d, distill3d.evaluate_run, distill3d.export
found = {name: getattr(distill3d, name) for name in distill3d.__all__}
print([name for name, value in found.items() if not (callable(value) and value.__doc__)])"""
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "[]"
    script = "import sys, distill3d; dir(distill3d); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True).stdout.strip() == "False"
    assert set(distill3d.__all__) <= set(dir(distill3d)) and set(distill3d.__all__) == set(distill3d._MODULES)
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        distill3d.lod  # noqa: B018  # pyright: ignore
