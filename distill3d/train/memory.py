"""How the C library treats memory that training frees."""

from __future__ import annotations

import ctypes

#: Parameters of glibc's ``mallopt`` (malloc.h), and the largest value that it takes.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
LARGEST = 2**31 - 1
#: Bytes by which the heap grows at a time.
GROWTH = 2**28


def keep_freed_memory() -> None:
    """Lets freed memory be used again, where glibc would give that of large tensors back after every step.

    Getting it anew costs a page fault and a cleared page for every 4 KiB: a quarter of a step on the CPU at paper size.
    Does nothing where there is another C library.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, LARGEST), (M_TOP_PAD, GROWTH)):
        mallopt(parameter, value)
