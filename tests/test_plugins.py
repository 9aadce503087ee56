"""Methods, detectors and recipes from outside: as the pages of the docs show them, and as an installed package."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from streets import write_streets

DOCS = Path(__file__).resolve().parents[1] / "docs"
#: What makes the pages' trainings short: a small net, one epoch, the small streets' size.
STAGES = {
    "add-a-method.md": ("teacher", "baseline", "imitation"),
    "add-a-detector.md": ("teacher", "baseline", "monoskd"),
}
FILES = {"add-a-method.md": "imitation.py", "add-a-detector.md": "gated.py"}
SMALL = (
    ("detector.head-channels", "8"),
    ("schedule.epochs", "1"),
    ("detector.trunk.channels", *"8 8 8 16 16 16".split()),
)
SHORT = (
    "--dataset.canvas", "160", "64", "--accelerator", "cpu", "--threads", "1", "--precision", "fp32", "--no-progress",
    "--no-tensorboard", "--log-steps", "1",
)  # fmt: skip


def blocks(page: str, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), re.DOTALL)


def command(words: list[str], where: Path, **environment: str) -> str:
    """What a command prints, in a process of its own, for plugins stay known."""
    done = subprocess.run(
        [sys.executable, "-m", "distill3d", *words], cwd=where, env=os.environ | environment, text=True,
        capture_output=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("page", STAGES)
def test_pages_run_as_they_stand(page: str, tmp_path: Path) -> None:
    """Their file, and their commands one after the other; the trainings alone are made small."""
    (code,) = blocks(page, "python")
    (tmp_path / FILES[page]).write_text(code, encoding="utf-8")
    lines = [line for block in blocks(page, "sh") for line in block.splitlines()]
    assert any("--plugin" in line for line in lines)
    for line in lines:
        program, *words = shlex.split(line)
        assert program == "distill3d"
        if words[0] == "synth":
            write_streets(tmp_path / words[1])
        elif words[0] == "train":
            small = [w for s in STAGES[page] for option, *values in SMALL for w in (f"--stages.{s}.{option}", *values)]
            command([*words, *small, *SHORT], tmp_path)
        elif words[0] == "predict":
            command([word.replace("000300", "000008") for word in words], tmp_path)
        else:
            command(words, tmp_path)
    (run,) = (tmp_path / "runs").iterdir()
    assert {p.parent.name for p in run.glob("*/model.safetensors")} == set(STAGES[page])
    if page == "add-a-method.md":
        card = json.loads((run / "imitation" / "card.json").read_text())
        lines = map(json.loads, (run / "imitation" / "metrics.jsonl").read_text().splitlines())
        assert card["method"] == "imitation"
        assert all(line["terms"]["feature"] > 0 for line in lines if line["kind"] == "train")


def test_an_installed_package(tmp_path: Path) -> None:
    """Its entry point is enough: no option names it."""
    (code,) = blocks("add-a-method.md", "python")
    (toml,) = blocks("add-a-method.md", "toml")
    group, name, value = re.findall(r'points\."(.+?)"\]\n(\w+) = "(.+?)"', toml)[0]
    package, module = value.split(".")
    (tmp_path / "site" / package).mkdir(parents=True)
    (tmp_path / "site" / package / "__init__.py").write_text("")
    (tmp_path / "site" / package / f"{module}.py").write_text(code, encoding="utf-8")
    about = tmp_path / "site" / f"{package}-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{group}]\n{name} = {value}\n")
    site = str(tmp_path / "site")
    assert "tiny_imitation  " in command(["recipes"], tmp_path, PYTHONPATH=site)
    shown = command(["recipes", "tiny_imitation"], tmp_path, PYTHONPATH=site)
    assert "feature_weight: 1.0" in shown and "least_score: 0.5" in shown
    (tmp_path / "site" / package / f"{module}.py").write_text("import nothing_of_this_name")
    done = subprocess.run(
        [sys.executable, "-m", "distill3d", "recipes"], env=os.environ | {"PYTHONPATH": site}, text=True,
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"the plugin 'imitation' of {package} cannot be imported: ModuleNotFoundError" in done.stderr
