"""How commands end and what they print, whatever the terminal, the names and the machine are like."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from distill3d import cli
from distill3d.cli import main
from distill3d.console import BROKEN_PIPE
from distill3d.data.kitti.check import Problem
from distill3d.errors import LONGEST, UserError, one_line

HOSTILE = "Straße \x1b[31m\r\n\u202e\ud800\0"


def raised_by_command(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    """Makes the command ``doctor`` fail with an error."""

    def fail(arguments: list[str]) -> None:
        raise error

    monkeypatch.setitem(cli.COMMANDS, "doctor", fail)


def ending(capsys: pytest.CaptureFixture, *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(list(arguments))
    out, err = capsys.readouterr()
    assert isinstance(stop.value.code, int)
    return stop.value.code, out, err


# ------------------------------------------------------------------------------------------------------------ sentences


def test_one_line() -> None:
    assert one_line("runs/Straße: no such file") == "runs/Straße: no such file"
    assert one_line(HOSTILE) == "Straße \\x1b[31m\\r\\n\\u202e\\ud800\\x00"
    for long in ("begin" + "x" * 5000 + "end", "begin" + "\x1b" * 5000 + "end"):
        shown = one_line(long)
        assert len(shown) <= LONGEST and shown.startswith("begin") and " ..." in shown and shown.isprintable()
    assert one_line("x" * 5000 + "end").endswith("end")


def test_sentences_are_shown_on_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    raised_by_command(monkeypatch, UserError(HOSTILE * 200))
    code, out, err = ending(capsys, "doctor")
    assert code == 2 and not out and len(err.splitlines()) == 1 and len(err) < LONGEST + 20
    assert err.rstrip("\n").isprintable() and err.startswith("distill3d: Straße")
    code, _, err = ending(capsys, "\x1b[2J" * 1000)
    assert code == 2 and err.rstrip("\n").isprintable() and len(err) < LONGEST + 20


def test_problems_are_shown_on_one_line(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = [
        Problem(Path("a\x1b[31m.txt"), 1, "unknown class '" + "\x07" * 9000 + "'"),
        Problem(Path("b"), None, "x"),
    ]
    monkeypatch.setattr("distill3d.data.check.check_kitti", lambda *_: problems)
    code, out, _ = ending(capsys, "check", ".", "--layout", "kitti")
    lines = out.splitlines()
    assert code == 2 and len(lines) == 3 and all(line.isprintable() and len(line) <= LONGEST for line in lines)


# ---------------------------------------------------------------------------------------------------- what is not ours


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "runs/x"),
            "runs/x: cannot be used (No space left on device)",
        ),
        (PermissionError(errno.EACCES, "Permission denied", b"runs/x"), "runs/x: cannot be used (Permission denied)"),
        (OSError(errno.EMFILE, "Too many open files"), "the system refused a request (Too many open files)"),
        (MemoryError(), "the memory does not suffice"),
        (MemoryError("Unable to allocate 134 GiB"), "the memory does not suffice (Unable to allocate 134 GiB)"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA out of memory"), "the memory of the device does not"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_surroundings(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, error: Exception, words: str
) -> None:
    raised_by_command(monkeypatch, error)
    monkeypatch.delenv("DISTILL3D_TRACEBACK", raising=False)
    code, _, err = ending(capsys, "doctor")
    assert code == 2 and err.startswith(f"distill3d: {words}") and len(err.splitlines()) == 1
    monkeypatch.setenv("DISTILL3D_TRACEBACK", "1")
    with pytest.raises(type(error)):
        main(["doctor"])


@pytest.mark.parametrize(
    "error", [KeyError("x"), ValueError("x"), RuntimeError("x"), AssertionError(), RecursionError()]
)
def test_faults_of_the_program_are_not_hidden(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    raised_by_command(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["doctor"])


# -------------------------------------------------------------------------------------------------------------- streams


#: Runs the command line with a command that needs no module of weight.
LIGHT = r"""
import sys
from distill3d import cli

def table(arguments):
    'Prints.'
    from rich.console import Console
    from rich.table import Table
    shown = Table("Stra\u00dfe", title="\u00b1")
    for row in range(3000):
        shown.add_row("x" * 40)
    Console(width=60).print(shown)

def lines(arguments):
    'Prints.'
    for row in range(20000):
        print("Stra\u00dfe \u2500", row)

def refused(arguments):
    'Prints.'
    from distill3d.errors import UserError
    raise UserError("Stra\u00dfe \u2500" * 2)

cli.COMMANDS.update(table=table, lines=lines, refused=refused)
cli.main(sys.argv[1:])
"""


def run(script: str, **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a shell's line, in which "$@" stands for the command line."""
    command = ["bash", "-c", script, "bash", sys.executable, "-c", LIGHT]
    done = subprocess.run(command, env={**os.environ, **variables}, capture_output=True, timeout=120)
    return done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace")


@pytest.mark.parametrize(
    ("script", "code"),
    [
        ('"$@" lines | true; exit "${PIPESTATUS[0]}"', BROKEN_PIPE),
        ('"$@" table | true; exit "${PIPESTATUS[0]}"', BROKEN_PIPE),
        ('"$@" lines | head -1 >&2; exit "${PIPESTATUS[0]}"', BROKEN_PIPE),
        ('{ sleep 0.5; "$@" --help; } | true; exit "${PIPESTATUS[0]}"', BROKEN_PIPE),
        ('{ sleep 0.5; "$@" bogus 2>&1; } | true; exit "${PIPESTATUS[0]}"', BROKEN_PIPE),
        ('"$@" lines >&-', 0),
        ('"$@" table >&-', 0),
        ('"$@" bogus >&- 2>&-', 2),
    ],
)
def test_readers_that_are_gone(script: str, code: int) -> None:
    found, out, err = run(script)
    assert found == code and not out and err in ("", "Straße ─ 0\n")


@pytest.mark.parametrize(
    "variables", [{"PYTHONIOENCODING": "ascii"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}]
)
@pytest.mark.parametrize(("command", "code"), [("lines", 0), ("table", 0), ("refused", 2)])
def test_streams_that_are_not_utf8(variables: dict[str, str], command: str, code: int) -> None:
    found, out, err = run(f'"$@" {command}', **variables)
    assert found == code and "Traceback" not in err and "Stra\\xdfe" in out + err and (out + err).isascii()


def test_interrupts_before_anything_is_loaded() -> None:
    script = """
import os, signal, sys

class Finder:
    def find_spec(self, name, *_):
        if name == "distill3d.cli":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Finder())
from distill3d.__main__ import start

start()
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, timeout=60, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "distill3d: stopped before it began\n")


# ---------------------------------------------------------------------------------------------------------------- paths

LONG, LONG_PATH, NUL = "x" * 5000, "x/" * 3000, "a\0b"


@pytest.mark.parametrize("path", [LONG, LONG_PATH, NUL], ids=["long name", "long path", "NUL"])
@pytest.mark.parametrize(
    "arguments",
    [
        ["check", "@"], ["check", "@", "--layout", "nuscenes"], ["synth", "@", "--frames", "1"], ["demo", "--out", "@"],
        ["train", "demo", "--data-root", "@"], ["train", "demo", "--out", "@"],
        ["eval", "kitti", "--labels", "@", "--predictions", "."],
        ["eval", "kitti", "--labels", ".", "--predictions", "@"],
        ["eval", "kitti", "--labels", ".", "--predictions", ".", "--split", "@"],
        ["eval", "kitti", "--labels", ".", "--predictions", ".", "--json", "@"],
        ["eval", "nuscenes", "--data-root", "@", "--predictions", "x"],
        ["eval", "nuscenes", "--data-root", ".", "--predictions", "@"],
        ["predict", "@", "x.png", "--intrinsics", "1,1,1,1"], ["predict", "x", "@", "--intrinsics", "1,1,1,1"],
        ["predict", "x", "x.png", "--calib", "@"],
        ["predict", "x", "x.png", "--intrinsics", "1,1,1,1", "--out", "@"], ["export", "@", "--onnx", "x"],
        ["export", "x", "--onnx", "@"], ["raw-list", "@", "--mapping", "x", "--split", "x"],
        ["raw-list", ".", "--mapping", "@", "--split", "x"], ["raw-list", ".", "--mapping", ".", "--split", "@"],
        ["report", "@"], ["report", ".", "--out", "@"], ["diagnose", "@"], ["diagnose", ".", "--data-root", "@"],
        ["diagnose", ".", "--baseline", "@"], ["diagnose", ".", "--out", "@"],
        ["record", "@"], ["record", ".", "--out", "@"], ["record", ".", "--data-root", "@"],
    ],
    ids=lambda arguments: " ".join(arguments),
)  # fmt: skip
def test_paths_that_no_file_can_have(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: list[str], path: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ending(capsys, *(path if one == "@" else one for one in arguments))
    assert code == 2 and not out and len(err.splitlines()) == 1 and len(err) < LONGEST + 20, err
    assert err.startswith("distill3d: ") and not list(tmp_path.iterdir())
