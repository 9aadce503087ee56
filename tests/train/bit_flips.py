"""Single flipped bits in states and weights: refused, or without any effect.

    python -m tests.train.bit_flips 1000

flips so many in a small ``last.ckpt`` and as many in a small ``model.safetensors`` and says what came of them.
"""

import random
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill3d.errors import UserError
from distill3d.train.checkpoint import load_state, load_weights, save_weights

sys.path.insert(0, str(Path(__file__).parent))
from tiny_training import TinyTraining, equal  # noqa: E402

CARD = {
    "detector": "monodle",
    "config": {"trunk": {"levels": [1, 1]}},
    "focal": 721.5,
    "trained_on": {"sha256": "0" * 64},
}


def small_state(folder: Path) -> Path:
    """A state in the middle of an epoch."""
    training, path = TinyTraining(), folder / "last.ckpt"
    training.run(6)
    training.save(path)
    return path


def small_weights(folder: Path) -> Path:
    """Weights and their card."""
    save_weights(folder, {"a": torch.randn(20, 20), "b.count": torch.tensor(3)}, CARD)
    return folder / "model.safetensors"


def flip(path: Path, count: int, seed: int, load: Callable[[Path], Any]) -> tuple[int, list[int]]:
    """How many of ``count`` flips were refused, and which were accepted though what was read is not what was written.

    A quarter of them fall into the last and the first 300 bytes each, where containers keep what is easily overlooked.
    """
    whole, draw = path.read_bytes(), random.Random(seed)
    written, bits = load(path), 8 * len(whole)
    refused, changed = 0, []
    for _ in range(count):
        bit = draw.choice(
            [draw.randrange(bits), draw.randrange(bits), draw.randrange(2400), bits - 1 - draw.randrange(2400)]
        )
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            if not equal(load(path), written):
                changed.append(bit)
        except UserError:
            refused += 1
    path.write_bytes(whole)
    assert equal(load(path), written)
    return refused, changed


def main(count: int) -> None:
    for make, load in ((small_state, load_state), (small_weights, load_weights)):
        with tempfile.TemporaryDirectory() as folder:
            path = make(Path(folder))
            refused, changed = flip(path, count, 0, load)
            print(
                f"{path.name} ({path.stat().st_size} bytes): of {count} flips {refused} refused, accepted without any "
                f"change {count - refused - len(changed)}, accepted with other values {len(changed)}"
            )


if __name__ == "__main__":
    main(int(sys.argv[1]))
