"""A task, what it has to do at least, and how long it takes."""

from __future__ import annotations

import signal
import statistics
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from ..stopwatch import seconds
from .limits import Limits

PrecisionName = Literal["fp32", "bf16"]
aten = torch.ops.aten
#: Operators that give memory and write nothing into it.
EMPTY = ("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided")
LONGEST_REASON = 200  # characters of why something failed
MIB = 2**20
AGAIN = 5.0  # s between alarms, or sooner where patience is short


@dataclass(frozen=True)
class Work:
    """A task that is ready to run."""

    run: Callable[[], object]
    #: The same with every operator called by PyTorch one by one, to be counted; None where others do the work.
    counted: Callable[[], object] | None = None
    least_bytes: int | None = None  # that it must move, where its operators move what need not be moved
    #: The seconds of so many runs, where somebody else takes the time.
    timed: Callable[[int], list[float]] | None = None
    facts: Callable[[], dict[str, Any]] = dict  # of interest when all is done


@dataclass(frozen=True)
class Task:
    """What is timed.  Tasks of a group do the same in several ways, and are compared with the first of them."""

    group: str
    size: str
    make: Callable[[], Work] = field(repr=False)
    way: str = ""
    precision: PrecisionName = "fp32"
    items: int = 1  # frames, moments, pictures that a run handles
    unit: str = "step"  # what an item is
    at_least: str | None = None  # a way of the same group that is a part of this task
    usual: bool = True  # the library does it so
    may_fail: bool = False  # that is a result, too


@dataclass
class Counts:
    """What the operators of a task have to do."""

    operators: int = 0
    flops: int = 0
    bytes: int = 0
    arithmetic: float = 0.0  # s at the limit of each operator's precision
    memory: float = 0.0  # s at the limit
    either: float = 0.0  # s, for each operator the longer of the two


class OperatorCounter(TorchDispatchMode):
    """Counts what operators have to do: arithmetic as ``FlopCounterMode`` counts it, and each operator's inputs read
    and outputs written once; views and empty memory move nothing."""

    def __init__(self, flops: FlopCounterMode, limits: Limits) -> None:
        super().__init__()
        self.flops, self.limits, self.counts = flops, limits, Counts()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.flops.get_total_flops()
        result = func(*args, **(kwargs or {}))
        if func.is_view:
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        empty = func.overloadpacket.__name__ in EMPTY
        moved = 0 if empty else bytes_of(inputs) + bytes_of(t for t in tree_leaves(result) if isinstance(t, Tensor))
        flops = self.flops.get_total_flops() - before
        precision = "bf16" if any(t.dtype == torch.bfloat16 for t in inputs) else "fp32"
        arithmetic, memory = flops / self.limits.flops[precision], moved / self.limits.bandwidth
        counts = self.counts
        counts.operators, counts.flops, counts.bytes = counts.operators + 1, counts.flops + flops, counts.bytes + moved
        counts.arithmetic, counts.memory = counts.arithmetic + arithmetic, counts.memory + memory
        counts.either += max(arithmetic, memory)
        return result


def bytes_of(tensors: Iterable[Tensor]) -> int:
    """What tensors take in memory; an expanded one no more than what it is expanded from."""
    return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


def convolution_backward_flops(
    gradient: list[int], x: list[int], weight: list[int], _bias: Any, _stride: Any, _padding: Any, _dilation: Any,
    transposed: bool, _output_padding: Any, _groups: int, wanted: list[bool], **_: Any,
) -> int:  # fmt: skip
    """As many as forwards for each gradient that is wanted; PyTorch's own count forgets groups in the weight's."""
    return sum(wanted[:2]) * conv_flop_count(x, weight, gradient, transposed)


def count(run: Callable[[], object], limits: Limits) -> Counts:
    """What the operators of a run have to do."""
    flops = FlopCounterMode(display=False, custom_mapping={aten.convolution_backward: convolution_backward_flops})
    with flops, OperatorCounter(flops, limits) as counter:
        run()
    return counter.counts


def limit_of(counts: Counts, limits: Limits) -> tuple[float, str]:
    """The least seconds that the operators can take, and what it is that cannot take less: no less than as many calls
    take as there are operators."""
    calls = counts.operators * limits.call
    if calls > counts.either:
        return calls, "calls"
    return counts.either, "arithmetic" if counts.arithmetic > counts.memory else "memory"


def measure(task: Task, limits: Limits, device: torch.device, repeats: int, patience: float) -> dict[str, Any]:
    """A task's row of the record; one that may fail may take ``patience`` (s) until it has run once."""
    row = {name: value for name, value in vars(task).items() if name != "make"}
    try:
        with at_most(patience if task.may_fail else None):
            work = task.make()
            first = seconds(work.run, device)  # compiles, fills caches, and does not count
        counted = work.counted if task.usual else None  # other ways do the same
        return row | {"first": first} | _measure(replace(work, counted=counted), limits, device, repeats)
    except Exception as error:
        if not task.may_fail:
            raise
        return row | {"failed": one_line(error)}


def _measure(work: Work, limits: Limits, device: torch.device, repeats: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    if work.counted is not None:
        counts = count(work.counted, limits)
        if work.least_bytes is not None:
            memory = work.least_bytes / limits.bandwidth
            either = max(counts.arithmetic, memory)
            counts = replace(counts, bytes=work.least_bytes, memory=memory, either=either)
        limit, limited_by = limit_of(counts, limits)
        found = asdict(counts) | {"limit": limit, "limited_by": limited_by}
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = work.timed(repeats) if work.timed is not None else [seconds(work.run, device) for _ in range(repeats)]
    if device.type == "cuda":
        found["peak_mib"] = torch.cuda.max_memory_allocated() / MIB
    return found | {"seconds": min(times), "median": statistics.median(times)} | work.facts()


@contextmanager
def at_most(patience: float | None) -> Iterator[None]:
    """Raises TimeoutError in what takes longer (s), on systems that have alarms."""
    if patience is None or not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_: object) -> None:
        raise TimeoutError(f"had not run once after {patience:g} s")

    before = signal.signal(signal.SIGALRM, stop)
    # Compilers may take the first alarm for a failure of their own, and go on.
    signal.setitimer(signal.ITIMER_REAL, patience, min(patience, AGAIN))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def one_line(error: Exception) -> str:
    """What went wrong, in short."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    told = 2 if lines and lines[0].endswith(":") else 1  # the next line says what was raised
    return f"{type(error).__name__}: {' '.join(lines[:told])}"[:LONGEST_REASON]
