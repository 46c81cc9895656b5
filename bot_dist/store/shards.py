"""One shard as bytes: the ``sharding_indexed`` codec of zarr v3, written and read without zarr.

A shard file is its inner chunks, one after the other, and an index. A chunk is its values, row-major and little-endian
(padded with the fill value where the parameter ends inside it), and their crc32c. The index has for every chunk of a
full shard its offset and length, two little-endian uint64 (all bits set for a chunk past the parameter's end), and its
own crc32c. Source: zarr v3 specification, ``sharding_indexed``, ``bytes`` and ``crc32c`` codecs.

Nothing is compressed and the chunks of a shard are in row-major order, so where a chunk lies follows from the layout,
and a reader needs no index.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import crc32c
import numpy as np
import numpy.typing as npt
import xxhash

from bot_dist.store.arrays import fill_value, slices
from bot_dist.store.layout import StoredParameter
from bot_dist.tensors import Box

CRC_BYTES = 4
DIGEST_BYTES = 8
_ABSENT = 2**64 - 1

Array = npt.NDArray[Any]


def digest(data: memoryview) -> bytes:
    """The xxh3-64 digest of an inner chunk's bytes without their crc, big-endian."""
    return xxhash.xxh3_64_digest(data)


def crc(data: bytes | memoryview) -> bytes:
    """The crc32c that zarr's codec appends to some bytes."""
    value: int = crc32c.crc32c(data)
    return value.to_bytes(CRC_BYTES, "little")


def encode(stored: StoredParameter, shard: Box, values: Array) -> tuple[list[bytes | memoryview], bytes]:
    """The bytes of a shard, in parts that share the memory of ``values`` where they can, and the digests of its
    chunks in row-major order, eight bytes each."""
    parts: list[bytes | memoryview] = []
    digests = bytearray()
    for chunk in stored.chunks(shard):
        piece = values[slices(chunk, shard)]
        if piece.shape != stored.chunk:
            padded = np.full(stored.chunk, fill_value(stored.dtype), values.dtype)
            padded[tuple(map(slice, piece.shape))] = piece
            piece = padded
        data = np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data
        parts += [data, crc(data)]
        digests += digest(data)
    return [*parts, index(stored, shard)], bytes(digests)


def shard_bytes(stored: StoredParameter, shard: Box) -> int:
    """Size of the file that holds a shard."""
    full = math.prod(s // c for s, c in zip(stored.shard, stored.chunk, strict=True))
    return math.prod(counts(stored, shard)) * pitch(stored) + 16 * full + CRC_BYTES


def runs(stored: StoredParameter, shard: Box, boxes: Sequence[Box]) -> Iterator[tuple[int, list[Box]]]:
    """The inner chunks of a shard that meet any of ``boxes``, as runs that lie one behind the other in its file: the
    offset of each run, and its chunks."""
    n_chunks = counts(stored, shard)
    corner = stored.chunk_index(shard)
    ordinals: dict[int, Box] = {}
    for box in boxes:
        clipped = tuple((max(a, c), min(b, d)) for (a, b), (c, d) in zip(box, shard, strict=True))
        if any(start >= stop for start, stop in clipped):
            continue
        for chunk in stored.chunks(clipped):
            ordinal = 0
            for i, first, n in zip(stored.chunk_index(chunk), corner, n_chunks, strict=True):
                ordinal = ordinal * n + i - first
            ordinals[ordinal] = chunk
    for _, group in itertools.groupby(enumerate(sorted(ordinals.items())), key=lambda item: item[1][0] - item[0]):
        run = [item for _, item in group]
        yield run[0][0] * pitch(stored), [chunk for _, chunk in run]


def pitch(stored: StoredParameter) -> int:
    """Bytes from one chunk of a shard to the next: its values and their crc."""
    return stored.chunk_bytes + CRC_BYTES


def counts(stored: StoredParameter, shard: Box) -> tuple[int, ...]:
    """The number of inner chunks of a shard along each axis that the parameter reaches into."""
    return tuple(-(-(stop - start) // c) for (start, stop), c in zip(shard, stored.chunk, strict=True))


def index(stored: StoredParameter, shard: Box) -> bytes:
    """The index, with its crc, that follows the chunks of a shard in its file."""
    full = tuple(s // c for s, c in zip(stored.shard, stored.chunk, strict=True))
    table = np.full((*full, 2), _ABSENT, dtype="<u8")
    here = counts(stored, shard)
    offsets = np.arange(math.prod(here), dtype="<u8").reshape(here) * pitch(stored)
    table[tuple(map(slice, here))] = np.stack([offsets, np.full_like(offsets, pitch(stored))], axis=-1)
    data = table.tobytes()
    return data + crc(data)
