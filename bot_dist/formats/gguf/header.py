"""The header of a GGUF file: scalar metadata and tensor positions, without its (large) arrays.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The ``gguf`` package's reader makes an object per
vocabulary entry, which takes seconds; this one steps over them. It works on a prefix of the file, so remote files can
be read as well.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass, field
from typing import Any

from bot_dist.errors import SourceError
from bot_dist.storage.files import existing_bytes, read_range
from bot_dist.urls import label

FIRST_BYTES, MAX_HEADER_BYTES = 4 * 2**20, 2**30
MAX_TEXTS = 1000
"""Most texts of an array that is read: languages, tags."""

_SCALARS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor as the header gives it."""

    shape: tuple[int, ...]
    """Row-major: the reverse of GGUF's order."""
    type_id: int
    offset: int
    """Offset in bytes from the beginning of the data."""


@dataclass
class Header:
    """The header of a GGUF file."""

    size: int
    """Size of the file in bytes."""
    scalars: dict[str, Any] = field(default_factory=dict)
    """Metadata that are single values, by key."""
    lengths: dict[str, int] = field(default_factory=dict)
    """Lengths of the metadata that are arrays, by key."""
    lists: dict[str, list[str]] = field(default_factory=dict)
    """Arrays that are texts about the model (``general.languages``), by key."""
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    end: int = 0
    """Bytes of the header."""
    data_offset: int = 0
    """Offset at which the data begin: ``end``, aligned."""
    alignment: int = 32
    """Alignment of the data and of every tensor in them, in bytes."""
    sha256: str = ""

    def aligned(self, at: int) -> int:
        """The next place where data may begin."""
        return -(-at // self.alignment) * self.alignment


def read_gguf_header(url: str) -> Header:
    """Parse the header. Raises SourceError when this is no GGUF file, or one that is damaged or truncated."""
    size = existing_bytes(url)
    data, wanted = b"", FIRST_BYTES
    while True:
        wanted = min(wanted, size)
        data += read_range(url, len(data), wanted, "header")
        try:
            header = _parse(_Cursor(data), size)
        except _ShortError as error:
            if len(data) == size:
                raise SourceError(
                    f"{label(url)}: is truncated inside its header: found {size} bytes, wanted at least {error.stop}; "
                    f"download it again"
                ) from error
            if error.stop > MAX_HEADER_BYTES:
                raise SourceError(f"{label(url)}: the header claims {error.stop} bytes; the file is damaged") from error
            wanted = max(4 * len(data), error.stop)
        except ValueError as error:
            raise SourceError(f"{label(url)}: {error}") from error
        else:
            header.sha256 = hashlib.sha256(data[: header.end]).hexdigest()
            return header


def _parse(cursor: _Cursor, size: int) -> Header:
    if size < 24 or cursor.take(4) != b"GGUF":
        raise ValueError("this is no GGUF file")
    version = cursor.scalar("<I")
    if version not in (2, 3):
        raise ValueError(f"GGUF version is {version} (or big-endian); wanted 2 or 3, little-endian")
    n_tensors, n_fields = cursor.scalar("<Q"), cursor.scalar("<Q")
    header = Header(size)
    for _ in range(n_fields):
        key, kind = cursor.string(), cursor.scalar("<I")
        if key in header.scalars or key in header.lengths:
            raise ValueError(f"metadata {key!r} appears twice; the file is damaged")
        if kind == _ARRAY:
            if key.startswith("general."):
                header.lists[key] = cursor.texts()
            header.lengths[key] = cursor.skip_array()
        elif kind == _STRING:
            header.scalars[key] = cursor.string()
        else:
            header.scalars[key] = cursor.scalar(_format(kind))
    for _ in range(n_tensors):
        name, n_dims = cursor.string(), cursor.scalar("<I")
        if name in header.tensors or n_dims > 8:
            raise ValueError(f"tensor {name!r} appears twice or has {n_dims} dimensions; the file is damaged")
        shape = tuple(cursor.scalar("<Q") for _ in range(n_dims))
        header.tensors[name] = TensorInfo(shape[::-1], cursor.scalar("<I"), cursor.scalar("<Q"))
    alignment = header.scalars.get("general.alignment", header.alignment)
    if type(alignment) is not int or alignment < 1 or alignment.bit_count() != 1:
        raise ValueError(f"general.alignment is {alignment!r}, wanted a power of two; the file is damaged")
    header.alignment, header.end = alignment, cursor.at
    header.data_offset = header.aligned(cursor.at)
    return header


def _format(kind: int) -> str:
    if kind not in _SCALARS:
        raise ValueError(f"unknown metadata type {kind}; the file is damaged")
    return _SCALARS[kind]


class _ShortError(Exception):
    """The prefix ends before ``stop``."""

    def __init__(self, stop: int) -> None:
        super().__init__(stop)
        self.stop = stop


class _Cursor:
    """A position in a prefix of the file."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def skip(self, n: int) -> int:
        """Step over ``n`` bytes; where they began."""
        start, self.at = self.at, self.at + n
        if self.at > len(self.data):
            raise _ShortError(self.at)
        return start

    def take(self, n: int) -> bytes:
        start = self.skip(n)
        return self.data[start : start + n]

    def scalar(self, fmt: str) -> Any:
        return struct.unpack_from(fmt, self.data, self.skip(struct.calcsize(fmt)))[0]

    def string(self) -> str:
        return self.take(self.scalar("<Q")).decode()

    def texts(self) -> list[str]:
        """A short array of strings, without stepping over it; empty where it is something else."""
        start = self.at
        kind, length = self.scalar("<I"), self.scalar("<Q")
        strings = [self.string() for _ in range(length)] if kind == _STRING and length <= MAX_TEXTS else []
        self.at = start
        return strings

    def skip_array(self) -> int:
        """Step over an array; its length."""
        kind, length = self.scalar("<I"), int(self.scalar("<Q"))
        if kind == _STRING:
            for _ in range(length):
                self.skip(self.scalar("<Q"))
        else:  # an array of arrays is refused: no file has one, and a made-up one could nest without end
            self.skip(length * struct.calcsize(_format(kind)))
        return length
