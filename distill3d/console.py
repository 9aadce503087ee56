"""The terminal that a command speaks to: what it can show, and how a command ends when something outside fails it."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

#: Exit code of a command whose reader went away (``distill3d check DIR | head``), as shells have it for SIGPIPE.
BROKEN_PIPE = 128 + 13


def prepare_streams() -> None:
    """Makes writing safe: to streams that are closed, and of letters that their encoding does not have."""
    for name in ("stdout", "stderr"):
        stream: TextIO | None = getattr(sys, name)
        if stream is None:  # closed by the caller (>&-)
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115 (open to the end)
            continue
        # File names that are no UTF-8 go through as they came where Python arranged for that.
        as_they_came = stream.encoding.lower() in ("utf-8", "utf8") and stream.errors == "surrogateescape"
        if not as_they_came and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]


def discard_output() -> None:
    """Keeps Python from complaining, when it ends, that nobody reads what is left to be written."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # a stream without a file; one that is closed
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)


def surroundings(error: BaseException) -> str | None:
    """What the machine or the system did not give, as a sentence; None for an error that is the program's own."""
    if isinstance(error, OSError):
        names = ", ".join(
            os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)
        )
        reason = error.strerror or str(error) or type(error).__name__
        return f"{names}: cannot be used ({reason})" if names else f"the system refused a request ({reason})"
    # PyTorch's are RuntimeErrors; the module is not asked, for it may not be loaded.
    of_device = type(error).__name__ == "OutOfMemoryError"
    of_host = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if isinstance(error, MemoryError) or of_device or of_host:
        where = "of the device " if of_device else ""
        reason = str(error).split("\n")[0]
        return f"the memory {where}does not suffice{f' ({reason})' if reason else ''}"
    return None
