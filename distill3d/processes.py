"""Processes of this machine and of others: who wrote a file, and whether that process still lives."""

from __future__ import annotations

import hashlib
import os
import socket
from functools import cache
from pathlib import Path

#: A start that the system does not tell.
UNKNOWN = "0"


@cache
def machine() -> str:
    """A short name of what process numbers hold for: this start of this machine, or of this container."""
    parts = [socket.gethostname()]
    try:
        parts += [Path("/proc/sys/kernel/random/boot_id").read_text(), os.readlink("/proc/self/ns/pid")]
    except OSError:
        pass  # only Linux tells
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=4).hexdigest()


def start_of(process: int) -> str:
    """When a process started, in the system's own count, which tells it from a later one of the same number;
    ``UNKNOWN`` where the system does not tell."""
    return _stat(process)[1]


def is_alive(process: int, start: str = UNKNOWN) -> bool:
    """Whether there is a process of this number on this machine, and if its start is known, whether it is that one."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    state, started = _stat(process)
    return state != "Z" and (UNKNOWN in (start, started) or start == started)


def _stat(process: int) -> tuple[str, str]:
    """State and start of a process as Linux tells them."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        return fields[0], fields[19]
    except (OSError, IndexError):
        return "", UNKNOWN
