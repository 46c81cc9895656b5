"""Tensors that a configuration calls tied and that files hold twice: are they the same?

As ``transformers`` does it: what is the same is tied, what differs is not, and where one of two is missing it is the
other.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import numpy as np

from bot_dist.errors import SourceError
from bot_dist.formats.indexed import FileSource, TensorEntry, decode
from bot_dist.model import model_of
from bot_dist.storage.files import read_range
from bot_dist.tensors import PIECE_BYTES
from bot_dist.urls import label


def resolve_ties(source: FileSource) -> FileSource:
    """The source, untied in its configuration where a tensor differs from what it is said to be.

    Reads both tensors, as far as they are the same. Raises SourceError where they can't be compared.
    """
    model = model_of(source.config)
    if not model.tied:
        return source
    ties = model.family.ties
    held = {name: source.entries.get(source.stored_name(name)) for name in (*ties, *ties.values())}
    versions = tuple(sorted((name, str(file.get("version"))) for name, file in source.files.items()))
    own = [
        name
        for name, other in ties.items()
        if (a := held[name]) is not None and (b := held[other]) is not None and not _same(source.url, a, b, versions)
    ]
    entries = dict(source.entries)
    if own:
        for name, other in ties.items():  # those that are no others' own are read from where they are
            entries.setdefault(source.stored_name(name), entries[source.stored_name(other)])
        note = f"'{own[0]}' differs from '{ties[own[0]]}', so they are not tied, whatever tie_word_embeddings says"
        config = {**source.config, "tie_word_embeddings": False}
        return dataclasses.replace(source, config=config, entries=entries, notes=(*source.notes, note))
    for name, other in ties.items():
        if held[other] is None and (entry := held[name]) is not None:
            entries[other] = entry
    return dataclasses.replace(source, entries=entries)


@functools.lru_cache(maxsize=16)
def _same(url: str, a: TensorEntry, b: TensorEntry, versions: object) -> bool:
    """Whether two tensors hold the same values; ``versions`` are of the files, so that changed ones are read again."""
    if a.shape != b.shape or not a.shape:
        return False
    for entry in (a, b):
        if not entry.readable:
            raise SourceError(
                f"{label(url)}: a tied tensor has dtype {entry.encoding}, which is not read; dequantise the model first"
            )
    rows = a.shape[0]
    step = max(1, PIECE_BYTES * rows // max(a.nbytes, b.nbytes, 4 * math.prod(a.shape)))
    for first in range(0, rows, step):
        last = min(first + step, rows)
        x, y = (_rows(entry, first, last) for entry in (a, b))
        if a.encoding == b.encoding:
            if x != y:
                return False
        elif not np.array_equal(_values(x, a, last - first), _values(y, b, last - first)):
            return False
    return True


def _rows(entry: TensorEntry, first: int, last: int) -> bytes:
    row_bytes = entry.nbytes // entry.shape[0]
    start = entry.offset + first * row_bytes
    return read_range(entry.url, start, start + (last - first) * row_bytes, "tied tensor")


def _values(data: bytes, entry: TensorEntry, rows: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    values = decode(data, entry, rows)
    if entry.encoding == "BF16":
        values = (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float64)
