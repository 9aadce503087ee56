"""Time of MonoSKD's loss terms at full KITTI size, forward and backward, against the same with torchsort's soft rank.

Four pairs of maps (64 x 96 x 320, 128 x 48 x 160, 256 x 24 x 80, 512 x 12 x 40) for a batch of 4, as on each GPU of the
published run.  ``released`` is the library's way of the released Spearman term; ``torchsort`` ranks the teacher with
torchsort, as the released code does.  Where torchsort is not installed (it must be compiled), the library's general
route (sort and isotonic regression) stands in for it and the results say so.  The runs of all ways alternate, so that a
busy machine slows all of them; seconds are medians.

    python benchmarks/monoskd_terms.py [--cuda]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from machine import describe_machine
from torch import Tensor

from distill3d.distill import softrank
from distill3d.distill.distances import correlation
from distill3d.distill.methods.monoskd import MonoSKDConfig, spearman_loss
from distill3d.distill.relations import affinity_loss, resized

try:
    import torchsort  # pyright: ignore[reportMissingImports]
except ImportError:
    torchsort = None

SHAPES = ((64, 96, 320), (128, 48, 160), (256, 24, 80), (512, 12, 40))  # channels, rows, columns
BATCH = 4
RUNS = 7
SEED = 0
RESULTS = Path(__file__).parent / "results"

Pairs = list[tuple[Tensor, Tensor]]


def make_pairs(device: str) -> Pairs:
    """Student maps of either sign, as adapters give them, and teacher maps after their ReLU."""
    generator = torch.Generator().manual_seed(SEED)

    def maps(shape: tuple[int, int, int]) -> Tensor:
        return torch.randn(BATCH, *shape, generator=generator).to(device)

    return [(maps(shape).requires_grad_(), maps(shape).relu()) for shape in SHAPES]


def general_route(pairs: Pairs) -> Tensor:
    """The released term with the soft rank always sorted and regressed."""
    with mock.patch.object(softrank, "is_one_block", lambda z: torch.zeros((), dtype=torch.bool, device=z.device)):
        return spearman_loss(pairs, MonoSKDConfig())


def torchsort_route(pairs: Pairs) -> Tensor:
    """The released term with torchsort's ranks, in float32 as there."""
    assert torchsort is not None
    size = (pairs[-1][1].shape[-2], pairs[-1][1].shape[-1])
    losses = []
    for student, teacher in pairs:
        s, t = (resized(maps, size).flatten(1) for maps in (student, teacher))
        losses.append(1 - correlation(s, torchsort.soft_rank(t) / t.shape[1]))
    return torch.stack(losses).sum()


def seconds(loss: Callable[[Pairs], Tensor], pairs: Pairs) -> tuple[float, float]:
    """Time of forward and backward, and the loss."""
    for student, _ in pairs:
        student.grad = None
    synchronise(pairs)
    start = time.perf_counter()
    value = loss(pairs)
    value.backward()
    synchronise(pairs)
    return time.perf_counter() - start, float(value.detach())


def synchronise(pairs: Pairs) -> None:
    if pairs[0][0].is_cuda:
        torch.cuda.synchronize()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cuda", action="store_true", help="run on the GPU")
    pairs = make_pairs("cuda" if parser.parse_args().cuda else "cpu")
    ways: dict[str, Callable[[Pairs], Tensor]] = {
        "spearman_released": lambda p: spearman_loss(p, MonoSKDConfig()),
        "spearman_general_route": general_route,
        "spearman_teacher_rank": lambda p: spearman_loss(p, MonoSKDConfig(spearman_mode="teacher_rank")),
        "spearman_both_rank": lambda p: spearman_loss(p, MonoSKDConfig(spearman_mode="both_rank")),
        "spearman_both_rank_smoothness_3": lambda p: spearman_loss(
            p, MonoSKDConfig(spearman_mode="both_rank", rank_smoothness=3.0)
        ),
        "affinity": lambda p: affinity_loss(p, float(BATCH)),
    }
    if torchsort is not None:
        ways["spearman_torchsort"] = torchsort_route

    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(RUNS + 1):
        for name, way in ways.items():
            measured[name].append(seconds(way, pairs))
    medians = {name: statistics.median(t for t, _ in runs[1:]) for name, runs in measured.items()}  # the first warms up
    reference = "spearman_torchsort" if torchsort is not None else "spearman_general_route"
    figures: dict[str, Any] = {
        "maps": SHAPES,
        "batch": BATCH,
        "runs": RUNS,
        "seconds": {name: round(value, 4) for name, value in medians.items()},
        "loss": {name: runs[-1][1] for name, runs in measured.items()},
        "reference": reference if torchsort is not None else f"{reference}, for torchsort is not installed",
        "reference_over_released": round(medians[reference] / medians["spearman_released"], 1),
        "reference_over_general_route": round(medians[reference] / medians["spearman_general_route"], 2),
        "machine": describe_machine(),
    }
    RESULTS.mkdir(exist_ok=True)
    name = "monoskd_terms_gpu.json" if pairs[0][0].is_cuda else "monoskd_terms.json"
    (RESULTS / name).write_text(json.dumps(figures, indent=1) + "\n")
    print(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
