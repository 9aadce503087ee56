"""What pooling to the ground costs at BEVDepth's size, beside the plain sum over all points of the frustum.

    python benchmarks/voxel_pooling.py [--runs 7] [--threads 1] [--device cpu]

``voxel_pool`` never holds the frustum; ``index_add`` forms each pixel's feature times its depth distribution and adds
the rows to the cells, as one writes it without a kernel of one's own.  Both get the same distributions, features and
cells: six cameras around a vehicle, 44 x 16 cells each, 112 depths, 80 channels, a ground of 128 x 128 cells.  Times
alternate in one process, so that a drifting machine speed cancels; memory is the most that a process of its own holds
more than before, forward and backward.  Writes benchmarks/results/voxel_pooling.json.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe_machine
from methods import resident
from torch import Tensor

from distill3d.detectors.bevdepth import STRIDE, BEVDepthConfig
from distill3d.layers.ground.voxel_pooling import frustum, frustum_points, ground_cells, splat, voxel_pool
from distill3d.train.memory import keep_freed_memory

RESULT = Path(__file__).resolve().parent / "results" / "voxel_pooling.json"
CONFIG = BEVDepthConfig()
#: The canvas (width, height) and, as nuScenes' front camera has them after BEVDepth's test augmentation, focal length
#: and principal point (px).
CANVAS, FOCAL, PRINCIPAL = (704, 256), 557.0, (359.0, 76.0)
#: Where six cameras look (degrees to the left of straight ahead), and how high they stand (m).
DIRECTIONS, HEIGHT = (55, 0, -55, 110, 180, -110), 1.5
#: From a camera that looks ahead (x right, y down, z forward) to the vehicle (x forward, y left, z up).
AHEAD = torch.tensor([[0.0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], dtype=torch.float64)
#: Writing this to the kernel's file makes it count a process's most memory anew.
RESET_PEAK, RESET_FILE = "5", Path("/proc/self/clear_refs")
#: Makes glibc give tensors' memory back as soon as it is freed, so that what a process holds is what is in use.
EXACT_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
#: From distributions (N, D, h, w), features (N, C, h, w) and cells (1, N, D, h, w) to a map (1, C, Y, X).
Way = Callable[[Tensor, Tensor, Tensor], Tensor]
SIZE = (CONFIG.grid.shape[1], CONFIG.grid.shape[0])


def pooled(depth: Tensor, context: Tensor, cells: Tensor) -> Tensor:
    return voxel_pool(depth, context, cells, SIZE)


def index_add(depth: Tensor, context: Tensor, cells: Tensor) -> Tensor:
    rows, weight = context.permute(0, 2, 3, 1), depth.permute(0, 2, 3, 1)
    points = (weight[..., None] * rows[..., None, :]).flatten(0, 3)
    return splat(points[None], cells.permute(0, 1, 3, 4, 2).flatten(1), SIZE)


WAYS: dict[str, Way] = {"voxel_pool": pooled, "index_add": index_add}


def inputs(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Distributions and features in the memory format that a network leaves them in, and where the cameras look."""
    generator = torch.Generator().manual_seed(0)
    n, width, height = len(DIRECTIONS), CANVAS[0] // STRIDE, CANVAS[1] // STRIDE
    eye, intrinsics = torch.eye(4, dtype=torch.float64), torch.eye(4, dtype=torch.float64)
    intrinsics[0, 0] = intrinsics[1, 1] = FOCAL
    intrinsics[:2, 2] = torch.tensor(PRINCIPAL)
    poses = eye.repeat(n, 1, 1)
    for pose, degrees in zip(poses, DIRECTIONS, strict=True):
        c, s = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        pose[:2, :2] = torch.tensor([[c, -s], [s, c]])
        pose[2, 3] = HEIGHT
    points = frustum_points(
        frustum(CANVAS, STRIDE, CONFIG.bins), eye.expand(1, n, 4, 4), intrinsics.expand(1, n, 4, 4),
        (poses @ AHEAD)[None], eye[None],
    )  # fmt: skip
    depth = torch.randn(n, CONFIG.bins.count, height, width, generator=generator).softmax(1)
    context = torch.randn(n, CONFIG.context_channels, height, width, generator=generator)
    depth, context = (t.to(device).contiguous(memory_format=torch.channels_last) for t in (depth, context))
    return depth, context, ground_cells(points, CONFIG.grid).to(device)


def finish(device: torch.device) -> None:
    """Waits for an accelerator's work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def run(way: Way, given: tuple[Tensor, Tensor, Tensor]) -> dict[str, float]:
    """Seconds of one forward and one backward pass."""
    depth, context, cells = given
    leaves = (depth.detach().requires_grad_(), context.detach().requires_grad_())
    finish(depth.device)
    start = time.perf_counter()
    out = way(*leaves, cells)
    finish(depth.device)
    between = time.perf_counter()
    out.backward(torch.ones_like(out))
    finish(depth.device)
    return {"forward": between - start, "backward": time.perf_counter() - between}


def peak_mib(way: Way, device: torch.device) -> float:
    """MiB that a forward and a backward pass take at most, beside the inputs."""
    given = inputs(device)
    if device.type == "cuda":
        run(way, given)
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run(way, given)
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    RESET_FILE.write_text(RESET_PEAK)
    before = resident("VmRSS")
    run(way, given)
    return resident("VmHWM") - before


def alone(name: str, options: argparse.Namespace) -> float:
    """``peak_mib`` of a way in a process of its own."""
    command = [sys.executable, __file__, "--alone", name, "--threads", str(options.threads), "--device",
               str(options.device)]  # fmt: skip
    environment = {**os.environ, **EXACT_MEMORY}
    return float(subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout)


def compare(given: tuple[Tensor, Tensor, Tensor], runs: int) -> dict:
    """Median seconds of each way, forward, backward and both, the second's relative to the first's, and how far their
    maps are from each other."""
    first, second = (way(*given) for way in WAYS.values())
    times: dict[str, list[dict[str, float]]] = {name: [] for name in WAYS}
    for _ in range(runs + 1):
        for name, way in WAYS.items():
            times[name].append(run(way, given))
    result: dict = {"largest_difference": float((first - second).abs().max())}
    for mode in ("forward", "backward", "both"):
        medians = {
            name: statistics.median(sum(t.values()) if mode == "both" else t[mode] for t in taken[1:])
            for name, taken in times.items()  # the first run warms up
        }
        result[mode] = {
            "seconds": {name: round(t, 4) for name, t in medians.items()},
            "times_as_fast": round(medians["index_add"] / medians["voxel_pool"], 1),
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=torch.device, default="cpu")
    parser.add_argument("--alone", choices=WAYS, help=argparse.SUPPRESS)  # memory of one, in a process of its own
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.alone:
        print(peak_mib(WAYS[options.alone], options.device))
        return
    peaks = {name: round(alone(name, options)) for name in WAYS}
    keep_freed_memory()  # as training does
    given = inputs(options.device)
    result = {
        "canvas": CANVAS, "frustum": list(given[2].shape[1:]), "ground": SIZE,
        "channels": CONFIG.context_channels, "inside": round(float((given[2] >= 0).float().mean()), 3),
        **compare(given, options.runs),
        "peak_mib": {**peaks, "share": round(peaks["voxel_pool"] / peaks["index_add"], 3)},
        "runs": options.runs, "machine": describe_machine(),
    }  # fmt: skip
    results = json.loads(RESULT.read_text()) if RESULT.exists() else {}
    results[options.device.type] = result
    RESULT.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
