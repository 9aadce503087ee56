"""What training steps take: time and memory, as metrics.jsonl has them."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from typing import Any

import torch

KIBIBYTE = 1024  # the unit of Linux's ru_maxrss; macOS gives bytes


@dataclass
class Stopwatch:
    """Times a run of training steps, data loading included, evaluation not."""

    device: torch.device
    wall: float = 0.0
    processor: float = 0.0

    def start(self) -> None:
        self.wall, self.processor = time.perf_counter(), time.process_time()

    def read(self, steps: int) -> dict[str, Any]:
        """Per step: seconds, and processor seconds over all threads of this process; and the most memory so far, bytes:
        allocated on a GPU, else of the whole process (None where the system does not tell)."""
        count = max(steps, 1)
        return {
            "steps": steps, "seconds": (time.perf_counter() - self.wall) / count,
            "processor_seconds": (time.process_time() - self.processor) / count, "peak_memory": self._peak_memory(),
        }  # fmt: skip

    def _peak_memory(self) -> int | None:
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            import resource
        except ImportError:  # not on Windows
            return None
        unit = 1 if sys.platform == "darwin" else KIBIBYTE
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def told_time(seconds: float) -> str:
    """A length of time in words, to two places: 40 s, 12 min, 3 h 20 min."""
    if seconds < 90:
        return f"{max(round(seconds), 1)} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
