"""The inner chunks of a shard, each of which is read and checked against its digest as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

CHUNK_BYTES = 2**18
"""Largest inner chunk where an axis can be cut. It is so small that the rows of a ZeRO rank begin and end near a
chunk's boundary."""

PIECE_BYTES = 2**22
"""Largest part of a tensor that one read from storage brings."""


def chunk_shape(shard: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Inner chunks for a shard: whole rows, cut from the outermost axis on until they are small enough.

    Every side of the chunk divides the shard's.
    """
    chunk = list(shard)
    for i in range(len(chunk) - 1):
        rest = math.prod(chunk) // chunk[i] * itemsize
        rows = max(1, CHUNK_BYTES // rest)
        chunk[i] = max(d for d in range(1, min(rows, shard[i]) + 1) if shard[i] % d == 0)
        if math.prod(chunk) * itemsize <= CHUNK_BYTES:
            break
    return tuple(chunk)
