"""The inner chunks of a shard: what is checked and read at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

CHUNK_BYTES = 2**18
"""Inner chunks are at most this large where an axis can be cut: small enough that a ZeRO rank's rows are few chunks."""

PIECE_BYTES = 2**22
"""Most bytes of a tensor that one read of a storage brings at a time."""


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
