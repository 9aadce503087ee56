"""What the first screen of README.md shows runs, word for word, with the student that the package ships."""

import re
import shlex
from pathlib import Path

import pytest
import torch
from PIL import Image

from distill3d.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.fixture
def clone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to stand in, with the repository's docs/."""
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_python_block(clone: Path, capsys: pytest.CaptureFixture) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    found = names["found"]
    assert len(found) and found.boxes.frame == "camera" and bool(torch.isfinite(found.boxes.centre).all())
    assert len(capsys.readouterr().out.splitlines()) == len(found)
    with Image.open("street.png") as drawn, Image.open("docs/street.jpg") as picture:
        assert drawn.width > picture.width


def test_commands(clone: Path, capsys: pytest.CaptureFixture) -> None:
    block = README.partition("## ")[0]
    (commands,) = re.findall(r"```sh\n(.*?)```", block, re.DOTALL)
    activated, *lines = commands.splitlines()
    assert activated == ". .venv/bin/activate" and lines
    for line in lines:
        program, *words = shlex.split(line)
        with pytest.raises(SystemExit) as done:
            main(words)
        assert program == "distill3d" and not done.value.code
    assert capsys.readouterr().out.splitlines() == ["predictions/street.png"]
    assert (clone / "predictions" / "street.txt").read_text().splitlines()
