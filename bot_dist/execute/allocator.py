"""What the allocator does with memory that was freed."""

from __future__ import annotations

import ctypes

M_MMAP_THRESHOLD, MMAP_THRESHOLD = -3, 2**20
"""glibc's number for the option, and bytes: what is larger goes back to the system as soon as it is freed."""


def return_freed_memory() -> None:
    """Keep no buffer that was freed: glibc would, in the arena of each thread, and more of it than the limit leaves."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(M_MMAP_THRESHOLD, MMAP_THRESHOLD)
