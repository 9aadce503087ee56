"""Ctrl-C and kill: exit code and one true sentence."""

import os
import signal
import time
from pathlib import Path

import pytest

from distill3d import cli, files, stop
from distill3d.files import write_output_text
from distill3d.stop import Stopped, noted


def ask(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(
    ("command", "words"),
    [("train", "the same command goes on where it was"), ("synth", "the same command goes on where it was"),
     ("export", "nothing was written"), ("report", "written before that: ")],
)  # fmt: skip
def test_sentence_and_exit_code(number: signal.Signals, command: str, words: str, tmp_path: Path, capsys, monkeypatch):
    def run(_: list[str]) -> None:
        if command == "report":
            write_output_text(tmp_path / "page.html", "whole")
        ask(number)
        raise AssertionError

    monkeypatch.setitem(cli.COMMANDS, command, run)
    monkeypatch.setattr(cli, "outputs", [])
    monkeypatch.setattr(files, "outputs", cli.outputs)
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as end:
        cli.main([command])
    assert end.value.code == 128 + number and signal.getsignal(number) == before
    err = capsys.readouterr().err
    assert err.startswith(f"distill3d: {command} was stopped by {number.name}; {words}") and err.count("\n") == 1


def test_an_interrupt_that_a_library_turned_into_its_own_error(capsys, monkeypatch) -> None:
    """As imports of compiled modules do."""

    def run(_: list[str]) -> None:
        try:
            ask(signal.SIGINT)
        except KeyboardInterrupt:
            raise ImportError("C-extension failed\n" * 70) from None

    monkeypatch.setitem(cli.COMMANDS, "doctor", run)
    with pytest.raises(SystemExit) as end:
        cli.main(["doctor"])
    assert end.value.code == 130 and capsys.readouterr().err.count("\n") == 1


def test_a_signal_in_a_finaliser_is_not_lost(capsys: pytest.CaptureFixture) -> None:
    """Python drops what is raised there."""

    class Thing:
        def __del__(self) -> None:
            ask(signal.SIGTERM)

    with pytest.raises(Stopped), stop.raised():
        thing = Thing()
        del thing
        for _ in range(1000):
            time.sleep(0.01)
    assert capsys.readouterr().err == ""


def test_a_signal_is_noted_until_it_is_asked_for() -> None:
    with noted() as asked:
        assert asked() == 0
        ask(signal.SIGTERM)
        ask(signal.SIGINT)  # the same wish, to the whole group
        assert asked() == signal.SIGTERM
    with stop.raised(), pytest.raises(Stopped) as raised:
        ask(signal.SIGTERM)
    assert raised.value.signal == signal.SIGTERM


def test_impatience_ends_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stop, "IMPATIENCE", -1.0)
    with noted() as asked, pytest.raises(Stopped):
        ask(signal.SIGINT)
        assert asked() == signal.SIGINT
        ask(signal.SIGINT)


def test_what_is_ignored_stays_ignored() -> None:
    """As under nohup."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop.raised():
            ask(signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, former)


def test_a_forked_process_leaves_the_first_signal_to_its_parent() -> None:
    with noted() as asked:
        child = os.fork()
        if not child:
            ask(signal.SIGINT)
            ask(signal.SIGTERM)  # to the group
            ask(signal.SIGTERM)  # from its parent, in the end
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM
        assert asked() == 0
