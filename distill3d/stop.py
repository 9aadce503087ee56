"""Signals that ask a process to end: what is under way is finished or undone first, and one sentence says so."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

#: What asks a process to end: Ctrl-C, a scheduler or ``kill``, a terminal that was closed.
SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
#: A second signal this long (s) after the first is meant to end what takes its time to end; one that comes sooner is
#: the same wish, sent to the process and to its group.
IMPATIENCE = 1.0

AGAIN = 0.01  # s after which a signal is sent once more

#: Exit codes of a process that a signal ended are this and the signal's number, as shells have them.
EXIT_BEGIN = 128

_received: signal.Signals | None = None
_holds, _waiting = 0, False  # blocks of ``held`` that are open, and whether a signal came in one


class Stopped(KeyboardInterrupt):
    """The process was asked to end."""

    def __init__(self, number: int) -> None:
        self.signal = signal.Signals(number)
        super().__init__(self.signal.name)


def received() -> signal.Signals | None:
    """The signal that asked the present command to end; None if none did."""
    return _received


@contextmanager
def raised() -> Iterator[None]:
    """In the block a signal raises ``Stopped`` wherever the program is, so that what is half-written is removed.

    Python drops what is raised in a finaliser or a callback of a weak reference: the signal is then sent once more.
    """
    global _received, _holds, _waiting
    _received, _holds, _waiting, since = None, 0, False, -math.inf

    def handle(number: int, frame: FrameType | None) -> None:
        global _received, _waiting
        nonlocal since
        if time.monotonic() - since > IMPATIENCE:
            _received, since = signal.Signals(number), time.monotonic()
            if _holds:
                _waiting = True
                return
            raise Stopped(number)

    def dropped(event: Any) -> None:
        nonlocal since
        if not isinstance(event.exc_value, Stopped):
            former(event)
            return
        since = -math.inf
        threading.Timer(AGAIN, os.kill, (os.getpid(), event.exc_value.signal)).start()

    former = sys.unraisablehook
    with _handled_by(handle):
        sys.unraisablehook = dropped
        try:
            yield
        finally:
            sys.unraisablehook = former


@contextmanager
def held() -> Iterator[None]:
    """A block of moments, such as taking a lock, that a signal does not part: ``Stopped`` is raised at its end."""
    global _holds, _waiting
    _holds += 1
    try:
        yield
    finally:
        _holds -= 1
        if _waiting and not _holds and _received is not None:
            _waiting = False
            raise Stopped(_received)


@contextmanager
def noted() -> Iterator[Callable[[], int]]:
    """In the block a signal is only noted; the function tells its number, 0 for none.

    A second Ctrl-C raises ``Stopped`` at once.  Processes that are forked in the block leave the end to this one.
    """
    owner, asked, since, ignored = os.getpid(), 0, 0.0, 0

    def handle(number: int, frame: FrameType | None) -> None:
        global _received
        nonlocal asked, since, ignored
        if os.getpid() != owner:
            # Ctrl-C and schedulers ask whole groups of processes; what this one asks of those that it forked comes
            # after that.
            if number != signal.SIGINT and ignored:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            ignored += 1
            return
        _received = signal.Signals(number)
        if asked and number == signal.SIGINT and time.monotonic() - since > IMPATIENCE:
            raise Stopped(number)
        if not asked:
            asked, since = number, time.monotonic()

    with _handled_by(handle):
        yield lambda: asked


@contextmanager
def _handled_by(handle: Callable[[int, FrameType | None], Any]) -> Iterator[None]:
    """Signals go to a function; those that the caller has the process ignore (``nohup``) do not, and in threads other
    than the main one all stays as it is."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    former = {number: signal.getsignal(number) for number in SIGNALS}
    former = {number: f for number, f in former.items() if f not in (signal.SIG_IGN, None)}
    try:
        for number in former:
            signal.signal(number, handle)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def end_with(pipe: int, end: Callable[[], object]) -> None:
    """Calls ``end`` from a thread as soon as the other end of a pipe is closed, as it is when its process is killed."""

    def wait() -> None:
        while os.read(pipe, 1):
            pass
        end()

    threading.Thread(target=wait, daemon=True).start()
