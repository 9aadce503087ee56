"""One writer in a folder: who holds it is told, and who is gone holds nobody up."""

import json
import os
import signal
import time
from pathlib import Path

import pytest

from distill3d import lock, stop
from distill3d.errors import UserError
from distill3d.files import part_of
from distill3d.lock import LOCK, SILENCE, forget_dead_writer, only_writer
from distill3d.processes import is_alive, machine, start_of


def leave(folder: Path, **changes: object) -> Path:
    """A lock as this process writes it, but for changes."""
    mine = {
        "machine": machine(),
        "host": "node7",
        "process": os.getpid(),
        "start": start_of(os.getpid()),
        "since": "dawn",
    }
    (folder / LOCK).write_text(json.dumps({**mine, **changes}))
    return folder / LOCK


def test_the_second_is_told_who_is_first(tmp_path: Path) -> None:
    with only_writer(tmp_path / "stage", "is being trained"):
        with pytest.raises(UserError, match=f"stage: is being trained by process {os.getpid()} on .* since 2"):
            with only_writer(tmp_path / "stage", "is being trained"):
                raise AssertionError
        assert [p.name for p in (tmp_path / "stage").iterdir()] == [LOCK]
        (tmp_path / "stage" / "file").touch()
    assert [p.name for p in (tmp_path / "stage").iterdir()] == ["file"]


def test_a_folder_that_stays_empty_is_removed_again(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), only_writer(tmp_path / "run" / "stage", ""):
        raise RuntimeError
    assert not (tmp_path / "run").exists() and tmp_path.exists()


def begun(folder: Path, name: str) -> int:
    """A process that writes a part below and ends, or lives on."""
    process = os.fork()
    if not process:
        part_of(folder / "below" / name).write_text(name)
        (folder / name).touch()
        time.sleep(0 if name == "dead" else 100)
        os._exit(0)
    return process


def test_what_ended_workers_left_half_written_goes_at_the_end(tmp_path: Path) -> None:
    """Of a living process, which may be another command, nothing goes."""
    (tmp_path / "below").mkdir()
    workers = {name: begun(tmp_path, name) for name in ("dead", "alive")}
    while not {"dead", "alive"} <= {p.name for p in tmp_path.iterdir()}:
        time.sleep(0.01)
    os.waitpid(workers["dead"], 0)
    with pytest.raises(RuntimeError), only_writer(tmp_path, ""):
        raise RuntimeError
    assert [p.read_text() for p in (tmp_path / "below").iterdir()] == ["alive"]
    os.kill(workers["alive"], signal.SIGKILL)
    os.waitpid(workers["alive"], 0)
    with only_writer(tmp_path, ""):
        pass
    assert not any((tmp_path / "below").iterdir())


@pytest.mark.parametrize("changes", [{"process": 4194399}, {"start": "1"}], ids=["dead", "number given anew"])
def test_a_lock_of_a_dead_process_is_taken(changes: dict, tmp_path: Path) -> None:
    leave(tmp_path, **changes)
    with only_writer(tmp_path, ""):
        assert json.loads((tmp_path / LOCK).read_text())["start"] == start_of(os.getpid())
    assert not any(tmp_path.iterdir())


def test_a_dead_writer_is_forgotten_where_nothing_is_left_to_do(tmp_path: Path) -> None:
    path = leave(tmp_path)
    forget_dead_writer(tmp_path)
    assert path.exists()  # it lives
    leave(tmp_path, process=4194399)
    forget_dead_writer(tmp_path)
    assert not any(tmp_path.iterdir())
    forget_dead_writer(tmp_path / "absent")


@pytest.mark.parametrize("moment", ["_take", "_holder"])
def test_a_signal_while_the_lock_is_taken_or_given_back_leaves_none(
    moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = getattr(lock, moment)

    def interrupted(*arguments: object) -> object:
        monkeypatch.setattr(lock, moment, asked)
        os.kill(os.getpid(), signal.SIGTERM)
        return asked(*arguments)

    monkeypatch.setattr(lock, moment, interrupted)
    with stop.raised(), pytest.raises(stop.Stopped), only_writer(tmp_path / "stage", ""):
        pass
    assert not (tmp_path / "stage").exists()


@pytest.mark.parametrize("text", [None, "{", "[]", '{"process": {}}', "\xff" * 10], ids=range(5))
def test_locks_of_other_machines_count_while_they_show_life(text: str | None, tmp_path: Path) -> None:
    """Damaged ones as well: who wrote them cannot be asked for."""
    path = leave(tmp_path, machine="0000")
    if text is not None:
        path.write_text(text, encoding="latin-1")
    before = path.read_bytes()
    with pytest.raises(UserError, match="is filled by"), only_writer(tmp_path, "is filled"):
        raise AssertionError
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == [LOCK]
    old = time.time() - SILENCE - 5
    os.utime(path, (old, old))
    with only_writer(tmp_path, ""):
        pass
    assert not any(tmp_path.iterdir())


def test_a_lock_shows_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "BEAT", 0.01)
    with only_writer(tmp_path, ""):
        os.utime(tmp_path / LOCK, (0, 0))
        end = time.monotonic() + 20
        while (tmp_path / LOCK).stat().st_mtime == 0 and time.monotonic() < end:
            time.sleep(0.01)
        assert time.time() - (tmp_path / LOCK).stat().st_mtime < SILENCE


def test_a_lock_that_is_another_by_now_is_put_back(tmp_path: Path) -> None:
    """Two find a stale lock; the slower one must not remove what the faster one put there."""
    path = leave(tmp_path)
    lock._remove_stale(path, judged=None)
    assert json.loads(path.read_text())["host"] == "node7" and len(list(tmp_path.iterdir())) == 1


def test_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "link", refuse)
    with only_writer(tmp_path, ""), pytest.raises(UserError), only_writer(tmp_path, ""):
        raise AssertionError
    assert not any(tmp_path.iterdir())


def test_a_killed_child_that_nobody_waited_for_is_dead() -> None:
    child = os.fork()
    if not child:
        time.sleep(100)
    start = start_of(child)
    assert is_alive(child, start) and not is_alive(child, "1")
    os.kill(child, 9)
    end = time.monotonic() + 20
    while is_alive(child, start) and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_alive(child, start)
    os.waitpid(child, 0)
