"""How the process uses memory: one heap, and what is free goes back to the kernel.

Rule: only hints to glibc's allocator (mallopt(3), malloc_trim(3)); another libc has neither, and nothing depends on
them. Measured with 5,000 peers: about 5 MiB of 85. A heap for each of gRPC's threads is what they save, and holes
that the start leaves.
"""

from __future__ import annotations

import ctypes
import gc

M_MMAP_THRESHOLD, M_ARENA_MAX = -3, -8  # malloc.h
LARGE = 64 << 10  # bytes: what is larger has pages of its own, which go back when it is freed


def tune() -> None:
    """At the start of the process, before there are threads."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_ARENA_MAX, 1)
        mallopt(M_MMAP_THRESHOLD, LARGE)
    # What was imported lives as long as the process: the collector need not look at it again.
    gc.freeze()


def trim() -> None:
    """After work that needed much for a short time."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(0)
