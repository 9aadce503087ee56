"""Time of sparse 3D convolutions against dense ones on the same cells, and of SECOND's whole sparse backbone.

    python benchmarks/sparse_conv.py [--threads 2] [--cuda]

The cells are those of two synthetic LiDAR scans on SECOND's grid, at the resolution that each layer sees.  The dense
grid of 41 x 1504 x 1120 cells fits no memory, so both ways run on a window of it: at most ``WINDOW`` cells of one scan,
over the full height, where the scan fills it most, which flatters the dense way.  The results name each window.
Neighbours are looked up once per resolution and shared by its layers, so their time stands apart.  The ways alternate;
the fastest run of each counts, for other work on the machine only adds.  Where spconv can be imported, its forward pass
on the CPU runs on the same cells (it has no backward pass there).  Writes benchmarks/results/sparse_conv.json.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from machine import describe_machine
from torch import Tensor, nn

from distill3d.layers.points.sparse_conv import (
    Kernel,
    SparseConv3d,
    SparseResNet,
    SparseResNetConfig,
    SparseTensor,
    SubMConv3d,
)
from distill3d.layers.points.voxels import VoxelGrid, mean_of_points, voxelise
from distill3d.synth import StreetConfig, render_frame
from distill3d.train.memory import keep_freed_memory

try:
    import spconv.pytorch as spconv  # pyright: ignore[reportMissingImports]
except ImportError:
    spconv = None

RESULTS = Path(__file__).parent / "results"
GRID = VoxelGrid((2.0, -30.08, -3.0, 46.8, 30.08, 1.0), (0.04, 0.04, 0.1))
MAX_POINTS, MAX_VOXELS = 5, 20_000  # of SECOND in training
SCANS = 2
WINDOW = 600_000  # cells
ROUNDS, TURN, LONG_TURN = 4, 0.15, 4.0  # each way runs for at least a turn (s) in each round; long: whole networks
SEED = 0

Way = Callable[[], Tensor]


def make_scans(device: str) -> list[Tensor]:
    """LiDAR points (m, 4) of synthetic streets, as far as the camera sees."""
    config = StreetConfig(rays_per_pixel_side=1)
    return [torch.from_numpy(render_frame(SEED, i, config).points).to(device) for i in range(SCANS)]


def window_of(x: SparseTensor) -> SparseTensor:
    """The first sample's cells in the fullest of the windows that lie half a window apart."""
    depth, height, width = x.shape
    side = int((WINDOW / depth) ** 0.5)
    rows, columns = min(height, side), min(width, side)
    b, _, row, column = x.coords.unbind(1)
    own = torch.bincount((row * width + column)[b == 0], minlength=height * width).view(1, 1, height, width)
    steps = (rows + 1) // 2, (columns + 1) // 2
    filled = F.avg_pool2d(own.float(), (rows, columns), steps)
    fullest = int(filled.argmax())
    top, left = fullest // filled.shape[3] * steps[0], fullest % filled.shape[3] * steps[1]
    inside = (b == 0) & (row >= top) & (row < top + rows) & (column >= left) & (column < left + columns)
    coords = x.coords[inside] - torch.tensor((0, 0, top, left), device=x.coords.device)
    return SparseTensor(x.features[inside], coords, (depth, rows, columns), 1)


def dense_way(x: SparseTensor, layer: SubMConv3d | SparseConv3d) -> tuple[Way, list[Tensor]]:
    """The same convolution of all cells of the window, and what it has gradients for."""
    grid = x.dense().detach().contiguous().requires_grad_()
    weight = layer.weight.detach().permute(0, 4, 1, 2, 3).contiguous().requires_grad_()
    kernel = layer.kernel
    return lambda: F.conv3d(grid, weight, None, kernel.stride, kernel.padding), [grid, weight]


def sparse_way(x: SparseTensor, layer: SubMConv3d | SparseConv3d) -> tuple[Way, list[Tensor]]:
    x = x.with_features(x.features.detach().requires_grad_())
    return lambda: layer(x).features, [x.features, layer.weight]


def spconv_way(x: SparseTensor, layer: SubMConv3d | SparseConv3d) -> Way:
    """spconv's layer of the same sizes, looking neighbours up anew each time."""
    assert spconv is not None
    outputs, *size, inputs = layer.weight.shape
    made: nn.Module
    if isinstance(layer, SubMConv3d):
        made = spconv.SubMConv3d(inputs, outputs, size, bias=False)
    else:
        made = spconv.SparseConv3d(inputs, outputs, size, layer.kernel.stride, layer.kernel.padding, bias=False)
    given = spconv.SparseConvTensor(x.features.detach(), x.coords.int(), list(x.shape), x.batch_size)
    return lambda: made(given).features


def with_backward(way: Way, leaves: list[Tensor]) -> Way:
    def run() -> Tensor:
        out = way()
        torch.autograd.grad(out, leaves, torch.ones_like(out))
        return out

    return run


def without_gradient(way: Way) -> Way:
    def run() -> Tensor:
        with torch.no_grad():
            return way()

    return run


def fastest(ways: dict[str, Way], cuda: bool, turn: float = TURN) -> dict[str, float]:
    """Seconds of the fastest run of each, in ``ROUNDS`` turns after one that warms up."""
    seconds = dict.fromkeys(ways, float("inf"))
    for i in range(ROUNDS + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            while True:
                start = time.perf_counter()
                way()
                if cuda:
                    torch.cuda.synchronize()
                end = time.perf_counter()
                if i:
                    seconds[name] = min(seconds[name], end - start)
                if end - begin > turn:
                    break
    return seconds


def looking_up(x: SparseTensor, layer: SubMConv3d | SparseConv3d) -> Way:
    return lambda: layer(SparseTensor(x.features, x.coords, x.shape, x.batch_size)).features


def measure(x: SparseTensor, layer: SubMConv3d | SparseConv3d, cuda: bool) -> dict[str, Any]:
    """One layer, sparse and dense in the window, and sparse in both scans as a whole."""
    window = window_of(x)
    dense = dense_way(window, layer)
    ways = {"window, dense forward": without_gradient(dense[0]), "window, dense both": with_backward(*dense)}
    for name, cells in (("window", window), ("scans", x)):
        sparse = sparse_way(cells, layer)
        ways[f"{name}, forward"] = without_gradient(sparse[0])
        ways[f"{name}, both"] = with_backward(*sparse)
        ways[f"{name}, look-up and forward"] = without_gradient(looking_up(cells, layer))
        if spconv is not None and not cuda:
            ways[f"{name}, spconv look-up and forward"] = without_gradient(spconv_way(cells, layer))
    s = fastest(ways, cuda)
    found = {
        "channels": [layer.weight.shape[-1], layer.weight.shape[0]],
        "window": {"grid": list(window.shape), "active": len(window.coords)},
        "scans": {"grid": list(x.shape), "active": len(x.coords)},
        "milliseconds": {name: round(1000 * value, 3) for name, value in s.items()},
        "dense_over_sparse": {
            "forward": round(s["window, dense forward"] / s["window, forward"], 2),
            "forward and backward": round(s["window, dense both"] / s["window, both"], 2),
            "forward with look-up": round(s["window, dense forward"] / s["window, look-up and forward"], 2),
        },
    }
    if "scans, spconv look-up and forward" in s:
        ratio = s["scans, spconv look-up and forward"] / s["scans, look-up and forward"]
        found["spconv_over_sparse"] = {"forward with look-up, scans": round(ratio, 2)}
    return found


def layers(x: SparseTensor, config: SparseResNetConfig) -> dict[str, tuple[SparseTensor, SubMConv3d | SparseConv3d]]:
    """Every kind of layer of the backbone with cells at its resolution and random features."""
    generator = torch.Generator().manual_seed(SEED)

    def filled(tensor: SparseTensor, channels: int) -> SparseTensor:
        features = torch.randn(len(tensor.coords), channels, generator=generator).to(tensor.features.device)
        return tensor.with_features(features)

    width = config.channels[0]
    found: dict[str, tuple[SparseTensor, SubMConv3d | SparseConv3d]] = {
        "input, submanifold": (filled(x, config.inputs), SubMConv3d(config.inputs, width)),
        "stage 1, submanifold": (filled(x, width), SubMConv3d(width, width)),
    }
    widths = (*config.channels[1:], config.outputs)
    for number, (kernel, channels) in enumerate(zip(config.kernels, widths, strict=True), start=2):
        name = f"stage {number}" if number <= len(config.channels) else "last"
        x = filled(x, width)
        conv = strided(x, width, channels, kernel)
        found[f"{name}, strided"] = (x, conv)
        with torch.no_grad():
            x = conv(x)
        if name != "last":
            found[f"{name}, submanifold"] = (filled(x, channels), SubMConv3d(channels, channels).to(x.features.device))
        width = channels
    return found


def strided(x: SparseTensor, inputs: int, outputs: int, kernel: Kernel) -> SparseConv3d:
    return SparseConv3d(inputs, outputs, kernel).to(x.features.device)


def measure_backbone(x: SparseTensor, config: SparseResNetConfig, cuda: bool) -> dict[str, Any]:
    """The whole network on both scans, neighbours looked up anew each time."""
    net = SparseResNet(config).to(x.features.device)
    teacher = SparseResNet(config).to(x.features.device).eval()

    def fresh() -> SparseTensor:
        return SparseTensor(x.features, x.coords, x.shape, x.batch_size)

    s = fastest(
        {
            "forward as a teacher": without_gradient(lambda: teacher(fresh())),
            "training, forward and backward": with_backward(lambda: net(fresh()), list(net.parameters())),
        },
        cuda,
        LONG_TURN,
    )
    voxels = torch.bincount(x.coords[:, 0], minlength=x.batch_size).tolist()
    return {"voxels": voxels, "seconds": {name: round(value, 4) for name, value in s.items()}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--cuda", action="store_true", help="run on the GPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(SEED)
    if not options.cuda:
        keep_freed_memory()  # as training does
    scans = make_scans("cuda" if options.cuda else "cpu")
    voxels = voxelise(scans, GRID, MAX_POINTS, MAX_VOXELS)
    x = SparseTensor(mean_of_points(voxels), voxels.coords, GRID.sparse_shape, voxels.batch_size)
    config = SparseResNetConfig()
    voxelising = fastest({"voxelise": lambda: voxelise(scans, GRID, MAX_POINTS, MAX_VOXELS).slots}, options.cuda)
    results: dict[str, Any] = {
        "points": [len(scan) for scan in scans],
        "voxelise_milliseconds": round(1000 * voxelising["voxelise"], 2),
        "backbone": measure_backbone(x, config, options.cuda),
        "window_cells_at_most": WINDOW,
        "layers": {},
        "spconv": "its CPU forward" if spconv is not None else "not importable here, so not compared",
        "rounds": ROUNDS,
        "machine": describe_machine(),
    }
    for name, (tensor, layer) in layers(x, config).items():
        results["layers"][name] = measure(tensor, layer.to(tensor.features.device), options.cuda)
        print(name, json.dumps(results["layers"][name]), flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / ("sparse_conv_gpu.json" if options.cuda else "sparse_conv.json")
    path.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps({k: v for k, v in results.items() if k != "layers"}, indent=1))


if __name__ == "__main__":
    main()
