"""The heap of the C library, from which torch takes its tensors on the CPU."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
LARGEST = 2**31 - 1


@contextmanager
def kept() -> Iterator[None]:
    """Within, what is freed stays with the process; at the end, what is free is given back.

    Left alone, glibc takes new pages for each large tensor, and the kernel clears them: 10 to 20 %
    of the time of a step at batches of 8,192. Its settings cannot be read, so they are not put back
    after the first use. Without glibc this does nothing.
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):
        yield
        return
    for parameter in (M_MMAP_THRESHOLD, M_TRIM_THRESHOLD):
        libc.mallopt(parameter, LARGEST)
    try:
        yield
    finally:
        libc.malloc_trim(0)
