"""Videos before a detector: frames in order, results of each, and the drawings as a video."""

import json
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from streets import CANVAS, TRUNK

from distill3d.detectors import build_detector
from distill3d.detectors.monodle import tiny
from distill3d.errors import UserError
from distill3d.predict import predict_images
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights
from distill3d.video import Video, VideoWriter, is_video

CAMERA = "93,93,80,32"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    detector = build_detector(tiny(trunk=TRUNK, head_channels=8, score_threshold=0.0, top_k=5))
    card = {
        "detector": detector.name, "config": to_plain(detector.config), "input": "rgb", "canvas": list(CANVAS),
        "focal": 93.0, "file_focal": 93.0, "placement": "fit", "trained_on": {"count": 0, "frames": []},
    }  # fmt: skip
    folder = tmp_path_factory.mktemp("model")
    save_weights(folder, detector.state_dict(), card)
    return folder


def film(path: Path, frames: int = 4, size: tuple[int, int] = CANVAS) -> Path:
    """Frame n is as bright as n fifths."""
    writer = VideoWriter(path, Fraction(10))
    for number in range(frames):
        writer.add(Image.new("RGB", size, (51 * number,) * 3))
    writer.close()
    return path


def test_frames_come_in_their_order(tmp_path: Path) -> None:
    video = Video(film(tmp_path / "drive.mp4"))
    assert (video.size, video.rate, video.length) == (CANVAS, 10, 4)
    brightness = [float(frame.mean()) for frame in video.frames()]
    assert np.allclose(brightness, [0, 0.2, 0.4, 0.6], atol=0.02)
    assert all(frame.shape == (3, CANVAS[1], CANVAS[0]) for frame in video.frames())
    assert is_video(Path("a.MKV")) and not is_video(Path("a.png"))


def test_odd_and_other_sizes(tmp_path: Path) -> None:
    writer = VideoWriter(tmp_path / "odd.mp4", Fraction(5))
    for size in ((161, 65), (161, 65), (80, 32)):
        writer.add(Image.new("RGB", size, (200, 10, 10)))
    writer.close()
    frames = list(Video(tmp_path / "odd.mp4").frames())
    assert [tuple(frame.shape) for frame in frames] == [(3, 64, 160)] * 3
    assert all(float(frame[0].mean()) > 0.7 and float(frame[2].mean()) < 0.15 for frame in frames)


def test_predict(model: Path, tmp_path: Path) -> None:
    drive, out = film(tmp_path / "drive.mp4"), tmp_path / "out"
    picture = tmp_path / "still.png"
    Image.new("RGB", CANVAS, (51, 51, 51)).save(picture)
    yielded = list(predict_images(model, (drive, picture), None, CAMERA, out, device="cpu"))
    assert yielded == [out / "drive.mp4", out / "still.png"]
    results = [f"drive_{number:06d}.txt" for number in range(4)]
    assert {p.name for p in out.iterdir() if not p.name.startswith(".")} == {
        *results, "drive.mp4", "still.txt", "still.png", "predictions.jsonl",
    }  # fmt: skip
    drawn = Video(out / "drive.mp4")
    assert drawn.rate == 10 and drawn.length == 4 and drawn.size[0] > CANVAS[0]
    lines = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert [line.get("frame") for line in lines] == [0, 1, 2, 3, None]
    assert [f"{line['result']}.txt" for line in lines[:4]] == results and all(line["objects"] for line in lines)
    plain = list(predict_images(model, (drive,), None, CAMERA, tmp_path / "plain", device="cpu", draw=False))
    assert [path.name for path in plain] == results
    assert all((path.read_bytes() == (out / path.name).read_bytes()) for path in plain)
    batches = predict_images(model, (drive,), None, CAMERA, tmp_path / "threes", device="cpu", draw=False, batch_size=3)
    assert [path.name for path in batches] == results
    for name in results:
        alone, together = ((out / name).read_text().split(), (tmp_path / "threes" / name).read_text().split())
        assert alone[0] == together[0] and len(alone) == len(together)


def test_what_is_no_video(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = film(tmp_path / "whole.mp4").read_bytes()
    (tmp_path / "text.mp4").write_text("no video")
    (tmp_path / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    for name, told in {"text.mp4": "cannot be read as a video", "cut.mp4": "cannot be read as a video",
                       "absent.mp4": "no such file"}.items():  # fmt: skip
        with pytest.raises(UserError, match=told):
            list(predict_images(model, (tmp_path / name,), None, CAMERA, tmp_path / "out", device="cpu"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="principal point"):
        list(predict_images(model, (tmp_path / "whole.mp4",), None, "93,93,800,32", tmp_path / "out", device="cpu"))
    mine = tmp_path / "out" / "whole.mp4"
    mine.parent.mkdir()
    mine.write_text("my own")
    with pytest.raises(UserError, match="was not written by distill3d"):
        list(predict_images(model, (tmp_path / "whole.mp4",), None, CAMERA, tmp_path / "out", device="cpu"))
    assert mine.read_text() == "my own" and len(list(mine.parent.iterdir())) == 1
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UserError, match=r"videos need PyAV: pip install 'distill3d\[video\]'"):
        Video(tmp_path / "whole.mp4")
