"""Checkpoints: never half-written, never executed, and clear about what does not fit."""

import multiprocessing
import os
import pickle
import random
import resource
import signal
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from distill3d.detectors.monodle import MonoDLE, tiny
from distill3d.errors import UserError
from distill3d.settings import to_plain
from distill3d.train import checkpoint, seal
from distill3d.train.checkpoint import (
    last_state,
    load_detector,
    load_state,
    load_weights,
    save_state,
    save_weights,
)

#: Kills at random moments of a process that does nothing but write.
KILLS = 20
#: PyTorch fills and compares so few values in the calling thread; a forked process has no others to wait for.
ROWS, SINGLE_THREADED = 10, 20_000


def numbered(step: int) -> list[torch.Tensor]:
    return [torch.full((SINGLE_THREADED,), float(step)) for _ in range(ROWS)]


def is_whole(state: dict) -> bool:
    return all(torch.equal(row, wanted) for row, wanted in zip(state["weights"], numbered(state["step"]), strict=True))


def write_forever(path: Path) -> None:
    step = 0
    while True:
        step += 1
        save_state(path, {"step": step, "weights": numbered(step)})


def test_a_killed_writer_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    path, seed = tmp_path / "last.ckpt", random.Random(0)
    save_state(path, {"step": 0, "weights": numbered(0)})
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
        assert is_whole(state)
        if (previous := path.with_name("previous.ckpt")).exists():
            assert is_whole(load_state(previous))
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


def not_finite(folder: Path) -> Path:
    weights = {"w": torch.zeros(3), "b": torch.tensor([0.0, float("nan")])}
    with pytest.MonkeyPatch.context() as patch:  # which refuses to write them
        patch.setattr(checkpoint, "refuse_not_finite", lambda weights, where: None)
        save_weights(folder, weights, card())
    return folder


def other_type(folder: Path) -> Path:
    weights = {name: value.double() for name, value in MonoDLE(tiny()).state_dict().items()}
    save_weights(folder, weights, card())
    return folder


def impossible_settings(folder: Path) -> Path:
    settings = to_plain(tiny())
    settings["trunk"]["channels"] = [2**14] * 6  # more memory than most machines have
    save_weights(folder, MonoDLE(tiny()).state_dict(), {"detector": "monodle", "config": settings})
    return folder


def no_settings(folder: Path) -> Path:
    save_weights(folder, {"w": torch.zeros(1)}, {"detector": "monodle", "config": {"trunk": [1]}})
    return folder


def card_without_settings(folder: Path) -> Path:
    save_weights(folder, {"w": torch.zeros(1)}, {"detector": "monodle"})
    return folder


def mistyped_card(folder: Path) -> Path:
    save_weights(folder, {"w": torch.zeros(1)}, {**card(), "canvas": "large"})
    return folder


def odd_pickle(edit: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    """A maker of states with a valid seal whose pickle was edited."""

    def make(folder: Path) -> Path:
        torch.save({"a": torch.zeros(4)}, folder / "whole.pt")
        with zipfile.ZipFile(folder / "whole.pt") as whole, zipfile.ZipFile(folder / "last.ckpt", "w") as made:
            for entry in whole.infolist():
                data = whole.read(entry)
                made.writestr(entry.filename, edit(data) if entry.filename.endswith("data.pkl") else data)
        seal.seal_archive(folder / "last.ckpt")
        return folder / "last.ckpt"

    return make


def claim(data: bytes, which: int) -> bytes:
    """A pickle in which the first (of the storage), second (of the tensor) or both counts of elements are 10^10."""
    parts = data.split(b"K\x04")
    counts = [b"\x8a\x05" + (10**10).to_bytes(5, "little") if which & (1 << n) else b"K\x04" for n in range(2)]
    return parts[0] + counts[0] + parts[1] + counts[1] + b"K\x04".join(parts[2:])


@pytest.mark.parametrize(
    ("make", "sentence"),
    [(hostile, "was not loaded"), (hostile_pickle, "was not loaded"), (truncated, "damaged"),
     (truncated_safetensors, "damaged"), (other_detector, "'yolo', known are monodle"),
     (other_shape, "depth.2.bias has shape"), (foreign_safetensors, "no card"),
     (not_finite, "model.safetensors: b holds values that are not finite"),
     (other_type, "has values of type torch.float64, this detector's are torch.float32"),
     (impossible_settings, r"this detector's is \(16384, 3, 7, 7\)"),
     (no_settings, "the settings in its card make no monodle"),
     (card_without_settings, "the card says nothing of 'config'"),
     (mistyped_card, "canvas: expected `array`"),
     *((odd_pickle(lambda data, which=which: claim(data, which)), "was not loaded") for which in (1, 2, 3)),
     (odd_pickle(lambda data: b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."), "in place of"),
     (odd_pickle(lambda data: data[:-20]), "was not loaded"), (odd_pickle(lambda data: b""), "was not loaded"),
     (odd_pickle(lambda data: b"X\x04\x00\x00\x00\xff\xfe\xfd\xfc."), "was not loaded"),
     (lambda f: f / "absent", "no such file")],
)  # fmt: skip
def test_bad_checkpoints_are_refused(make, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=sentence):
        load_detector(make(tmp_path))
    assert not (tmp_path / "executed").exists()


def test_what_lies_in_a_folder_without_weights_is_told(tmp_path: Path) -> None:
    """Of a training that was not finished that, of a folder of runs those."""
    stage = tmp_path / "out" / "first" / "student"
    stage.mkdir(parents=True)
    for path in (stage, stage.parent):
        with pytest.raises(UserError, match=r"student: holds no|first: holds no"):
            load_detector(path)
    save_state(stage / "last.ckpt", {"step": 1})
    with pytest.raises(UserError, match=r"student: its training is not finished .*: the same train command goes on"):
        load_detector(stage)
    with pytest.raises(UserError, match=r"first: the training of student is not finished"):
        load_detector(stage.parent)
    (stage.parent / "recipe.yaml").write_text("")
    for path in (tmp_path / "out", tmp_path / "out" / "first"):
        with pytest.raises(UserError, match="holds the run first: give .*out/first|the training of student"):
            load_detector(path)
    (tmp_path / "out" / "second").mkdir()
    (tmp_path / "out" / "second" / "recipe.yaml").write_text("")
    with pytest.raises(UserError, match="out holds the runs first, second: give one of them, such as .*out/first"):
        load_detector(tmp_path / "out")


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


def test_weights_that_are_not_finite_are_not_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="was not written: w holds values that are not finite"):
        save_weights(tmp_path, {"w": torch.tensor([1.0, float("inf")])}, card())
    assert not list(tmp_path.iterdir())
    save_weights(tmp_path, {"w": torch.full((4,), 3e38)}, card())  # whose sum is not finite
    assert load_weights(tmp_path)[0]["w"].max() == 3e38


def test_a_full_disk_leaves_the_state_before(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    save_state(path, {"step": 1, "weights": torch.zeros(1000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
        with pytest.raises(UserError, match=r"last\.ckpt: cannot be written \(File too large\)"):
            save_state(path, {"step": 2, "weights": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert load_state(path)["step"] == 1 and [p.name for p in tmp_path.iterdir()] == ["last.ckpt"]


def test_a_state_that_is_replaced_while_it_is_read_is_whole(monkeypatch, tmp_path: Path) -> None:
    path, test = tmp_path / "last.ckpt", seal.test_archive
    save_state(path, {"step": torch.zeros(3)})

    def replaced_first(file) -> None:
        save_state(path, {"step": torch.ones(70_000)})
        test(file)
        save_state(path, {"step": torch.ones(7)})

    monkeypatch.setattr(seal, "test_archive", replaced_first)
    assert load_state(path)["step"].tolist() == [0, 0, 0]


def test_the_state_before_is_the_way_out(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    assert last_state(tmp_path) is None
    save_state(path, {"step": 1})
    first = path.read_bytes()
    path.write_bytes(first[:-1])
    with pytest.raises(UserError, match="remove it, and training begins anew$"):
        load_state(path)
    path.write_bytes(first)
    save_state(path, {"step": 2})
    path.write_bytes(b"\0" * len(first))
    with pytest.raises(UserError, match=r"remove it, and training goes on from the state before, previous\.ckpt$"):
        load_state(path)
    path.unlink()
    assert last_state(tmp_path) == tmp_path / "previous.ckpt" and load_state(tmp_path / "previous.ckpt") == {"step": 1}
