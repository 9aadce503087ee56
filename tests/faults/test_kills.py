"""A handful of kills at random moments, drawn by a seed; ``python -m tests.faults`` makes hundreds."""

import random
import signal
import time
from pathlib import Path

import pytest
from kills import CASES, Bench, Command, campaign, synth, two_at_once


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory, streets: Path) -> Bench:
    return Bench(tmp_path_factory.mktemp("faults"), streets)


@pytest.mark.parametrize(("name", "kills"), [("train", 3), ("synth", 2), ("eval --json", 2), ("report", 1)])
def test_killed_commands_give_the_same_in_the_end(name: str, kills: int, bench: Bench) -> None:
    for kill in campaign(bench, CASES[name], kills, random.Random(name)):
        assert not kill.faults, kill


def test_two_writers_of_one_set(bench: Bench) -> None:
    assert not two_at_once(bench, CASES["synth"])


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_workers_end_with_their_command(number: int, tmp_path: Path) -> None:
    command = Command.start(synth("--workers", "2", frames=400), tmp_path / "work")
    end = time.monotonic() + 60
    while len(command.others()) < 3 and time.monotonic() < end:  # itself and two workers
        time.sleep(0.01)
    assert len(command.others()) >= 3, command.said()
    time.sleep(1)
    assert signal.Signals(number) and command.end(number) in (-number, 128 + number)
    end = time.monotonic() + 20
    while command.others() and time.monotonic() < end:
        time.sleep(0.01)
    assert not command.others()
