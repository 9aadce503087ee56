"""What a person sees while something runs: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

#: Seconds between lines where the output is not a terminal.
LINE_INTERVAL = 10.0


class ProgressBar:
    """Counts steps towards ``total`` with a changing remark; writes to stderr."""

    def __init__(self, title: str, total: int, done: int = 0, visible: bool = True, live: bool = True) -> None:
        self.title, self.total, self.done, self.visible = title, total, done, visible
        self._last = time.monotonic()
        self._live: Progress | None = None
        if visible and live and sys.stderr.isatty():
            self._live = Progress(
                TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
                TextColumn("{task.fields[remark]}"), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._live.add_task(title, total=total, completed=done, remark="")

    def __enter__(self) -> ProgressBar:
        if self._live:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live:
            self._live.stop()

    def advance(self, remark: str = "") -> None:
        """One more step is done."""
        self.done += 1
        if self._live:
            self._live.update(self._task, advance=1, remark=remark)
        elif self.visible and (time.monotonic() - self._last > LINE_INTERVAL or self.done == self.total):
            self._last = time.monotonic()
            print(f"{self.title}: {self.done}/{self.total} {remark}".rstrip(), file=sys.stderr, flush=True)
