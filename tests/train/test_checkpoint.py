"""Checkpoints: never half-written, never executed, and clear about what does not fit."""

import multiprocessing
import os
import pickle
import random
import time
from pathlib import Path

import pytest
import torch

from distill3d.detectors.monodle import MonoDLE, tiny
from distill3d.errors import UserError
from distill3d.settings import to_plain
from distill3d.train.checkpoint import load_detector, load_state, load_weights, save_state, save_weights

#: Kills at random moments of a process that does nothing but write.
KILLS = 20


def write_forever(path: Path) -> None:
    step = 0
    while True:
        step += 1
        save_state(path, {"step": step, "weights": torch.full((200_000,), float(step))})


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path, seed = tmp_path / "last.ckpt", random.Random(0)
    save_state(path, {"step": 0, "weights": torch.zeros(200_000)})
    seen = set()
    for _ in range(KILLS):
        writer = multiprocessing.get_context("fork").Process(target=write_forever, args=(path,))
        writer.start()
        written = path.stat().st_mtime_ns
        while path.stat().st_mtime_ns == written:  # machines differ in how soon it writes
            time.sleep(0.001)
        time.sleep(seed.uniform(0, 0.03))
        writer.kill()
        writer.join()
        state = load_state(path)
        seen.add(state["step"])
        assert torch.equal(state["weights"], torch.full((200_000,), float(state["step"])))
        if (previous := path.with_name("previous.ckpt")).exists():
            before = load_state(previous)
            assert torch.equal(before["weights"], torch.full((200_000,), float(before["step"])))
    assert len(seen) > 1, "the writers never wrote"


class Hostile:
    """Unpickling this creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple:
        return (os.system, (f"touch {self.mark}",))


def card(detector: str = "monodle") -> dict:
    return {"detector": detector, "config": to_plain(tiny())}


def hostile(folder: Path) -> Path:
    path = folder / "model.ckpt"
    torch.save({"model": Hostile(folder / "executed")}, path)
    return path


def hostile_pickle(folder: Path) -> Path:
    path = folder / "model.pth"
    path.write_bytes(pickle.dumps(Hostile(folder / "executed")))
    return path


def truncated(folder: Path) -> Path:
    path = folder / "last.ckpt"
    save_state(path, {"weights": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    return path


def truncated_safetensors(folder: Path) -> Path:
    save_weights(folder, {"w": torch.zeros(1000)}, card())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    return path


def other_detector(folder: Path) -> Path:
    save_weights(folder, {"w": torch.zeros(1)}, card("yolo"))
    return folder


def other_shape(folder: Path) -> Path:
    weights = MonoDLE(tiny()).state_dict()
    weights["depth.2.bias"] = torch.zeros(5)
    save_weights(folder, weights, card())
    return folder


def foreign_safetensors(folder: Path) -> Path:
    import safetensors.torch

    path = folder / "model.safetensors"
    safetensors.torch.save_file({"w": torch.zeros(1)}, path)
    return path


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(hostile, "was not loaded"), (hostile_pickle, "was not loaded"), (truncated, "damaged"),
     (truncated_safetensors, "damaged"), (other_detector, "'yolo', known are monodle"),
     (other_shape, "depth.2.bias has shape"), (foreign_safetensors, "no card"),
     (lambda f: f / "absent", "no such file")],
)  # fmt: skip
def test_bad_checkpoints_are_refused(make, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        load_detector(make(tmp_path))
    assert not (tmp_path / "executed").exists()


def test_weights_and_card_come_back(tmp_path: Path) -> None:
    model = MonoDLE(tiny())
    save_weights(tmp_path, model.state_dict(), card())
    weights, read = load_weights(tmp_path / "model.safetensors")
    assert read == card()
    again, _ = load_detector(tmp_path, expected="monodle")
    assert again.config == model.config
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value) and torch.equal(again.state_dict()[name], value)
    with pytest.raises(UserError, match="expected 'second'"):
        load_detector(tmp_path, expected="second")
