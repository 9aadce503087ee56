"""What the machine could do: arithmetic, traffic with memory and calls, as PyTorch gets them at best."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from ..stopwatch import fastest

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
#: Sides of square matrices, and channels of 3 x 3 convolutions of so many images of so many cells a side: the best
#: counts.  A processor's matrix products and convolutions may come from different libraries, one slower than the other.
MATRIX_SIDES, CHANNELS, CONVOLVED, CONVOLVED_SIDE = (1024, 2048, 4096), (128, 256, 512), 8, 64
#: The same for a look whether all runs.
SMOKE_SIDES, SMOKE_CHANNELS = (128, 256), (32, 64)
#: Bytes that are copied; more than any cache holds.
COPIED, SMOKE_COPIED = (2**28, 2**29), (2**24,)
#: Runs of each, of which the fastest counts, and additions to one number that are timed together.
RUNS, CALLS = 5, 2000


@dataclass(frozen=True)
class Limits:
    """What is possible, on one device with one number of threads."""

    flops: dict[str, float]  # operations per second, a multiplication and an addition being two, by precision
    bandwidth: float  # bytes per second, read and written
    call: float  # s that the call of an operator takes that has nothing to do


@torch.no_grad()
def measure_limits(device: torch.device, smoke: bool = False) -> Limits:
    """By products of large matrices, large convolutions, large copies, and additions to a single number."""
    sides, channels = (SMOKE_SIDES, SMOKE_CHANNELS) if smoke else (MATRIX_SIDES, CHANNELS)
    flops = {
        precision: max(
            *(_matrix_product(n, dtype, device) for n in sides), *(_convolution(c, dtype, device) for c in channels)
        )
        for precision, dtype in DTYPES.items()
    }
    bandwidth = max(_copy(size, device) for size in (SMOKE_COPIED if smoke else COPIED))
    one = torch.zeros(1, device=device)
    call = fastest(lambda: [one.add_(1) for _ in range(CALLS)], device, RUNS) / CALLS
    return Limits(flops, bandwidth, call)


def _matrix_product(side: int, dtype: torch.dtype, device: torch.device) -> float:
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    return 2 * side**3 / fastest(lambda: a @ b, device, RUNS)


def _convolution(channels: int, dtype: torch.dtype, device: torch.device) -> float:
    side = CONVOLVED_SIDE
    x, weight = (
        torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
        for shape in ((CONVOLVED, channels, side, side), (channels, channels, 3, 3))
    )
    operations = 2 * CONVOLVED * side**2 * weight.numel()
    return operations / fastest(lambda: F.conv2d(x, weight, padding=1), device, RUNS)


def _copy(size: int, device: torch.device) -> float:
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / fastest(lambda: target.copy_(source), device, RUNS)
