"""How long a call takes."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Of one call, until the device is done."""
    if device.type == "cuda":
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def fastest(run: Callable[[], object], device: torch.device, runs: int) -> float:
    """Seconds of the fastest of several calls, after one that does not count."""
    run()
    return min(seconds(run, device) for _ in range(runs))
