"""What the lift costs at CMKD's size, beside two other ways from features and depth distributions to a volume.

    python benchmarks/lift.py [--runs 7] [--threads 1]

``lift`` reads every voxel from four pixels; ``frustum`` is the released code's way, an outer product and a trilinear
sample; ``splat`` pushes every cell of the outer product into the voxel where it lies (Philion and Fidler, "Lift, Splat,
Shoot", arXiv:2008.05711), with ``index_add``.  Beside them, on a map of a quarter of CMKD's cells, the deformable
convolution that is built on the lift's way of reading, and torchvision's.  Ways alternate in one process, so that a
drifting machine speed cancels.  Writes benchmarks/results/lift.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import describe_machine
from torch import Tensor
from torchvision.ops import deform_conv2d

from distill3d.camera import Camera
from distill3d.detectors.caddn import STRIDE, CaDDNConfig
from distill3d.layers.ground.bev_blocks import TAPS, deform_conv3
from distill3d.layers.ground.lift import depth_probability, frustum_volume, lift, sample_volume, sampling_grid

RESULT = Path(__file__).resolve().parent / "results" / "lift.json"
#: A KITTI frame's left colour camera, its canvas (width, height) in px, and the way from the LiDAR to the camera.
CAMERA = Camera(torch.tensor([[721.5, 0, 609.6, 44.9], [0, 721.5, 172.9, 0.2], [0, 0, 1, 0]], dtype=torch.float64))
CANVAS = (1248, 384)
LIDAR_TO_CAMERA = torch.tensor(
    [[0, -1, 0, 0.06], [0, 0, -1, -0.08], [1, 0, 0, -0.27], [0, 0, 0, 1]], dtype=torch.float64
)
CONFIG = CaDDNConfig()
#: Cells (y, x) of the map on which deformable convolutions are timed.
DEFORMED = (CONFIG.voxels.shape[1] // 2, CONFIG.voxels.shape[0] // 2)
#: From two tensors to one.
Way = Callable[[Tensor, Tensor], Tensor]


def splat_cells() -> tuple[Tensor, Tensor]:
    """Which cells (d, h, w) of the frustum lie in a voxel, and which voxel (y, x, z) that is, both as flat numbers."""
    bins, voxels = CONFIG.bins, CONFIG.voxels
    width, height = CANVAS[0] // STRIDE, CANVAS[1] // STRIDE
    axes = [torch.arange(n, dtype=torch.float64) + 0.5 for n in (bins.count, height, width)]
    number, v, u = (t.flatten() for t in torch.meshgrid(*axes, indexing="ij"))
    points = CAMERA.back_project(torch.stack((u, v), dim=-1) * STRIDE, bins.depth(number))
    pose = LIDAR_TO_CAMERA.inverse()
    lidar = points @ pose[:3, :3].T + pose[:3, 3]
    place = ((lidar - torch.tensor(voxels.extent[:3])) / torch.tensor(voxels.cell)).floor().long()
    inside = ((place >= 0) & (place < torch.tensor(voxels.shape))).all(-1)
    x, y, z = place[inside].unbind(-1)
    return inside.nonzero()[:, 0], (y * voxels.shape[0] + x) * voxels.shape[2] + z


def ways() -> dict[str, Way]:
    """Each way from features (1, C, h, w) and distributions (1, D, h, w) to a volume."""
    grid = sampling_grid(
        CONFIG.voxels, Camera(CAMERA.projection[None]), LIDAR_TO_CAMERA[None], CONFIG.bins, CANVAS, STRIDE
    )
    cells, voxels = splat_cells()
    nx, ny, nz = CONFIG.voxels.shape

    def splat(features: Tensor, probability: Tensor) -> Tensor:
        rows = frustum_volume(features, probability)[0].permute(1, 2, 3, 0).flatten(0, 2)
        volume = features.new_zeros(ny * nx * nz, features.shape[1])
        return volume.index_add(0, voxels, rows[cells]).view(1, ny, nx, nz, -1).permute(0, 4, 3, 1, 2)

    return {
        "lift": lambda f, p: lift(f, p, grid),
        "frustum": lambda f, p: sample_volume(frustum_volume(f, p), grid),
        "splat": splat,
    }


def frustum_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    size = (CANVAS[1] // STRIDE, CANVAS[0] // STRIDE)
    features = torch.randn(1, CONFIG.lift_channels, *size, generator=generator)
    return features, depth_probability(torch.randn(1, CONFIG.bins.count + 1, *size, generator=generator))


def deformations() -> dict[str, Way]:
    """Each way from a map (1, C, y, x) and offsets (1, 18, y, x) to a map."""
    weight = torch.randn(CONFIG.bev_channels, CONFIG.bev_channels, 3, 3, generator=torch.Generator().manual_seed(0))
    weight.requires_grad_()
    return {
        "deform_conv3": lambda x, offset: deform_conv3(x, offset, weight),
        "torchvision": lambda x, offset: deform_conv2d(x, offset, weight, padding=1),
    }


def deformation_inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, CONFIG.bev_channels, *DEFORMED, generator=generator)
    return x, torch.randn(1, 2 * TAPS, *DEFORMED, generator=generator)


def seconds(way: Way, inputs: tuple[Tensor, Tensor], backward: bool) -> float:
    leaves = [t.detach().requires_grad_(backward) for t in inputs]
    with torch.set_grad_enabled(backward):
        start = time.perf_counter()
        out = way(*leaves)
        if backward:
            out.sum().backward()
        return time.perf_counter() - start


def compare(ways: dict[str, Way], inputs: tuple[Tensor, Tensor], runs: int) -> dict:
    """Median seconds, forward and forward with backward, and all ways relative to the first, and how far the second
    is from it."""
    first, second = list(ways.values())[:2]
    with torch.no_grad():
        result: dict = {"largest_difference": float((first(*inputs) - second(*inputs)).abs().max())}
    for mode, backward in (("forward", False), ("forward_backward", True)):
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(runs + 1):
            for name, way in ways.items():
                times[name].append(seconds(way, inputs, backward))
        medians = {name: statistics.median(t[1:]) for name, t in times.items()}  # the first run warms up
        reference = next(iter(medians.values()))
        result[mode] = {
            "seconds": {name: round(t, 4) for name, t in medians.items()},
            "relative": {name: round(t / reference, 2) for name, t in medians.items()},
        }
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    result = {
        "lift": {
            "canvas": CANVAS, "channels": CONFIG.lift_channels, "bins": CONFIG.bins.count,
            "voxels": CONFIG.voxels.shape, **compare(ways(), frustum_inputs(), options.runs),
        },
        "deformable_convolution": {
            "channels": CONFIG.bev_channels, "cells": DEFORMED,
            **compare(deformations(), deformation_inputs(), options.runs),
        },
        "runs": options.runs,
        "machine": describe_machine(),
    }  # fmt: skip
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
