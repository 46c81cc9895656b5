"""A text's tokens in a folder, packed: written in shards by whoever, committed once, read by windows.

A store holds

- ``manifest.json``: the commit, written last. Of the whole: the key, the dtype; of every shard: tokens, and the digest
  of its record. It ends in a digest of itself;
- ``NUMBER.bin``: a shard's tokens, little-endian, nothing else: ``numpy.fromfile`` reads them;
- ``NUMBER.json``: a shard's record: tokens, documents by text, the largest token, and an xxh3-64 per ``CHUNK`` bytes.

Flat files and not zarr, because a shard has as many tokens as its text gives, which nobody knows before: of a zarr
array all shards but the last have one size, so that tokens would have to be moved once more. They are read by ranges
and not mapped: whole chunks, every time against their digests, which a page that the system maps again is not; and so
from any storage. A window costs a chunk, some 20 µs where that is cached.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from bot_dist.errors import CheckpointError, CheckpointMissingError
from bot_dist.parsing import parse_object
from bot_dist.storage.folder import Request, Storage
from bot_dist.store.manifest import MANIFEST, digest

FORMAT = "bot_dist tokens 1"
CHUNK = 2**16
"""Bytes that have a digest."""
_THREADS = 8
"""Records that are read at a time."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """The record of a shard."""

    tokens: int
    largest: int
    documents: dict[str, int]
    """Number of documents that end in the shard, by the number of their text."""
    chunks: str
    """Digests of its chunks, in hexadecimal."""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self), sort_keys=True).encode()


class TokenStoreWriter:
    """Writes shards, in any order and from any process, and commits. The same shards are the same bytes, so that what
    an unfinished attempt has left need not be written again. Pickles as its URL."""

    def __init__(self, url: str, dtype: str) -> None:
        """``dtype``: ``uint16`` or ``uint32``."""
        self.storage, self.dtype = Storage(url), dtype

    def write(self, number: int, tokens: NDArray[np.int32], documents: Mapping[int, int]) -> ShardRecord:
        """Write a shard. ``documents`` of each text end in it."""
        data = tokens.astype(_little(self.dtype)).tobytes()
        record = ShardRecord(
            tokens=len(tokens),
            largest=int(tokens.max(initial=0)),
            documents={str(text): n for text, n in documents.items()},
            chunks=_digests(data),
        )
        self.storage.write(f"{number}.bin", [data])
        self.storage.write(f"{number}.json", [record.to_bytes()])
        return record

    def written(self) -> dict[int, ShardRecord]:
        """The shards that are there and whole, by number."""
        names = self.storage.names("") if self.storage.exists() else []
        numbers = [name.removesuffix(".json") for name in names if name.removesuffix(".json").isdecimal()]
        with ThreadPoolExecutor(_THREADS, thread_name_prefix="bot_dist-tokens") as pool:
            records = [*pool.map(self._intact, numbers)]
        return {int(number): record for number, record in zip(numbers, records, strict=True) if record is not None}

    def _intact(self, number: str) -> ShardRecord | None:
        """The record of a shard; None where it, or the shard, is not whole: nothing of it was synced."""
        try:
            record = ShardRecord(**parse_object(self.storage.read(f"{number}.json"), number, ValueError))
            data = self.storage.read(f"{number}.bin")
        except (ValueError, TypeError, CheckpointError):
            return None
        whole = len(data) == record.tokens * np.dtype(self.dtype).itemsize
        return record if whole and _digests(data) == record.chunks else None

    def discard(self, shards: int) -> None:
        """Remove so many shards, or what is there of them."""
        self.storage.remove(*(f"{number}.{kind}" for number in range(shards) for kind in ("bin", "json")))

    def commit(self, records: Sequence[ShardRecord], key: Any) -> None:
        """Make the shards a store; ``key`` is what tells it from others."""
        body = {
            "format": FORMAT,
            "key": key,
            "dtype": self.dtype,
            "largest": max((record.largest for record in records), default=0),
            "documents": sum(n for record in records for n in record.documents.values()),
            "shards": [[record.tokens, xxhash.xxh3_128_hexdigest(record.to_bytes())] for record in records],
        }
        self.storage.write(MANIFEST, [json.dumps({**body, "digest": digest(body)}).encode()])


class TokenStore:
    """A committed store. Threads may share it."""

    def __init__(self, url: str) -> None:
        """Raises CheckpointMissingError when nothing is committed there, CheckpointError when it is damaged."""
        self.storage = Storage(url)
        if not self.storage.exists(MANIFEST):
            raise CheckpointMissingError(f"{self.storage.label}: no tokens were committed there; run the same again")
        try:
            body = parse_object(self.storage.read(MANIFEST), MANIFEST, ValueError)
            intact = body.pop("digest") == digest(body) and body["format"] == FORMAT
        except (ValueError, KeyError, TypeError, AttributeError):
            intact = False
        if not intact:
            raise self._damaged(MANIFEST)
        self.dtype, self.largest, self.documents = body["dtype"], body["largest"], body["documents"]
        self._records: list[str] = [record for _, record in body["shards"]]
        self._ends = np.cumsum([0, *(tokens for tokens, _ in body["shards"])])
        self._digests: dict[int, list[str]] = {}

    def __len__(self) -> int:
        """Tokens."""
        return int(self._ends[-1])

    def check_sizes(self) -> None:
        """Raise CheckpointError unless all shards are there in their sizes."""
        sizes = self.storage.sizes("")
        for number, tokens in enumerate(np.diff(self._ends)):
            if sizes.get(f"{number}.bin") != tokens * self._itemsize or f"{number}.json" not in sizes:
                raise self._damaged(f"{number}.bin")

    def read(self, starts: Sequence[int], n: int) -> NDArray[np.int64]:
        """``(len(starts), n)``: the ``n`` tokens from each start on. Raises CheckpointError for what is damaged."""
        pieces = [piece for start in starts for piece in self._within(start, start + n)]
        chunks = sorted({(shard, at) for shard, start, stop in pieces for at in self._chunks(start, stop)})
        held = dict(zip(chunks, self._read_chunks(chunks), strict=True))
        parts = []
        for shard, start, stop in pieces:
            covering = [*self._chunks(start, stop)]
            data = b"".join(held[shard, at] for at in covering) if len(covering) > 1 else held[shard, covering[0]]
            parts.append(
                np.frombuffer(data, _little(self.dtype))[start - covering[0] * self._per_chunk :][: stop - start]
            )
        return np.concatenate(parts).astype(np.int64).reshape(len(starts), n)

    @property
    def _itemsize(self) -> int:
        return int(np.dtype(self.dtype).itemsize)

    @property
    def _per_chunk(self) -> int:
        return CHUNK // self._itemsize

    def _within(self, start: int, stop: int) -> list[tuple[int, int, int]]:
        """Tokens as ``(shard, start, stop)``, counted within the shard."""
        assert 0 <= start <= stop <= len(self), (start, stop, len(self))
        parts = []
        while start < stop:
            shard = int(np.searchsorted(self._ends, start, side="right")) - 1
            first, last = int(self._ends[shard]), int(self._ends[shard + 1])
            parts.append((shard, start - first, min(stop, last) - first))
            start = min(stop, last)
        return parts

    def _chunks(self, start: int, stop: int) -> range:
        return range(start // self._per_chunk, -(-stop // self._per_chunk))

    def _read_chunks(self, chunks: Sequence[tuple[int, int]]) -> list[bytearray]:
        lengths = np.diff(self._ends) * self._itemsize
        buffers = [bytearray(min(CHUNK, int(lengths[shard]) - at * CHUNK)) for shard, at in chunks]
        requests = [
            Request(f"{shard}.bin", at * CHUNK, [memoryview(data)])
            for (shard, at), data in zip(chunks, buffers, strict=True)
        ]
        self.storage.read_into(requests)
        for (shard, at), data in zip(chunks, buffers, strict=True):
            if self._digest(shard, at) != _digest(data):
                raise self._damaged(f"{shard}.bin", f", bytes {at * CHUNK:,} to {at * CHUNK + len(data):,}")
        return buffers

    def _digest(self, shard: int, at: int) -> str:
        if shard not in self._digests:
            record = self.storage.read(f"{shard}.json")
            if xxhash.xxh3_128_hexdigest(record) != self._records[shard]:
                raise self._damaged(f"{shard}.json")
            chunks = parse_object(record, f"{self.storage.label}/{shard}.json", CheckpointError)["chunks"]
            self._digests[shard] = [chunks[i : i + 16] for i in range(0, len(chunks), 16)]
        return self._digests[shard][at]

    def _damaged(self, name: str, where: str = "") -> CheckpointError:
        return CheckpointError(
            f"{self.storage.label}/{name}{where}: damaged, it is not what was written; remove {self.storage.label} and "
            f"run the same again"
        )


def _little(dtype: str) -> np.dtype[Any]:
    return np.dtype(dtype).newbyteorder("<")


def _digest(data: Any) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def _digests(data: Any) -> str:
    """The digests of all chunks, one behind the other."""
    view = memoryview(data)
    return "".join(_digest(view[at : at + CHUNK]) for at in range(0, len(view), CHUNK))
