"""What README.md shows of the Python interface runs, word for word."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from streets import CANVAS, write_streets

from distill3d.detectors import build_detector
from distill3d.recipes.synthetic import TINY
from distill3d.settings import to_plain
from distill3d.train.checkpoint import save_weights

ROOT = Path(__file__).resolve().parents[1]


def test_python_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """It stands where the demo leaves a stage and its streets: here an untrained one, all of whose answers count."""
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    demo = tmp_path / "runs" / "demo"
    write_streets(demo / "streets", train=1, val=1)
    torch.manual_seed(0)
    detector = build_detector(replace(TINY["monodle"], score_threshold=0.0))
    card = {
        "detector": detector.name, "config": to_plain(detector.config), "input": "rgb", "canvas": list(CANVAS),
        "focal": 93.0, "file_focal": 93.0, "placement": "fit", "trained_on": {"count": 0, "frames": []},
    }  # fmt: skip
    save_weights(demo / "runs" / "demo" / "monoskd", detector.state_dict(), card)
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    found = names["found"]
    assert len(found) and found.boxes.frame == "camera" and bool(torch.isfinite(found.boxes.centre).all())
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    with Image.open("street.png") as drawn:
        assert drawn.width > CANVAS[0]
