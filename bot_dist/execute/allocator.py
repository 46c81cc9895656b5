"""Treatment of freed memory by the allocator."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD, MMAP_THRESHOLD = -3, 2**20
"""Number of glibc's option, and its value in bytes: what is larger goes back to the system as soon as it is freed."""


def return_freed_memory() -> None:
    """Keep no buffer that was freed: glibc would, in the arena of each thread, and more of it than the limit leaves."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
