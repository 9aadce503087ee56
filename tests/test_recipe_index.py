"""What is written down of the recipes is what they say themselves, and is only believed where it is right."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from distill3d import plugins, recipe_index
from distill3d.recipe_index import FILE, FOLDER, PACKAGE, current_index, written_index


@pytest.fixture
def unasked(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has not imported the recipes, nor a plugin."""
    recipe_index._read.cache_clear()
    monkeypatch.setattr(plugins, "_loaded", set())
    monkeypatch.delitem(sys.modules, PACKAGE, raising=False)


def test_it_is_what_the_recipes_say(monkeypatch: pytest.MonkeyPatch, unasked: None) -> None:
    written = written_index()
    assert written is not None, "files of recipes were edited: run make index"
    monkeypatch.undo()
    current = current_index()
    differing = [name for name in {**written, **current} if written.get(name) != current.get(name)]
    assert not differing, f"{', '.join(differing)}: other than the index says: run make index"
    assert list(written) == list(current), "in another order than the index has it: run make index"


def test_commands_answer_without_pytorch() -> None:
    """The list, a recipe, its help and a misspelt name, in a process of its own."""
    commands = [["recipes"], ["recipes", "tiny_lidar"], ["train", "tiny_lidar", "-h"], ["train", "tiny_lidr"],
                ["recipes", "tiny_lidr"]]  # fmt: skip
    script = f"""import contextlib, io, json, sys
from distill3d.cli import main
told = []
for words in {commands}:
    out = io.TextIOWrapper(io.BytesIO(), encoding="utf-8")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out), contextlib.suppress(SystemExit):
        main(words)
    out.seek(0)
    told.append(out.read())
print(json.dumps([told, "torch" in sys.modules]))"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (listed, shown, overview, *misspelt), slow = json.loads(done.stdout)
    assert not slow
    assert [line.split()[0] for line in listed.splitlines()] == list(recipe_index._read() or ())
    assert shown.startswith("name: tiny_lidar\nstages:\n- name: second\n")
    assert overview.startswith("usage: distill3d train tiny_lidar --data-root DIR [options]\n")
    assert misspelt == ["distill3d: there is no recipe 'tiny_lidr': did you mean 'tiny_lidar'?\n"] * 2


def test_where_there_may_be_other_recipes_it_is_not_asked(monkeypatch: pytest.MonkeyPatch, unasked: None) -> None:
    assert written_index() is not None
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "_loaded", {"mine.py"})
        assert written_index() is None
    with monkeypatch.context() as patch:
        patch.setattr(plugins, "entry_points", lambda group: ["an installed package's"])
        assert written_index() is None
    monkeypatch.setitem(sys.modules, PACKAGE, sys)
    assert written_index() is None


@pytest.mark.parametrize("what", ["edited", "damaged", "absent"])
def test_where_it_may_be_wrong_it_is_not_asked(
    what: str, monkeypatch: pytest.MonkeyPatch, unasked: None, tmp_path: Path
) -> None:
    for path in FOLDER.glob("*.py"):
        (tmp_path / path.name).write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    index = tmp_path / FILE.name
    index.write_bytes(FILE.read_bytes())
    monkeypatch.setattr(recipe_index, "FOLDER", tmp_path)
    monkeypatch.setattr(recipe_index, "FILE", index)
    assert written_index() is not None  # whatever the line ends
    recipe_index._read.cache_clear()
    if what == "edited":
        (tmp_path / "mine.py").write_text("def mine() -> None: ...")
    elif what == "damaged":
        index.write_bytes(FILE.read_bytes()[:-100])
    else:
        index.unlink()
    assert written_index() is None
    recipe_index._read.cache_clear()
