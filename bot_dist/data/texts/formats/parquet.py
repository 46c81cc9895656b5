"""Parquet: a column of strings, a document per row."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bot_dist.data.texts.formats import TextFormat
from bot_dist.data.texts.pieces import Piece, pieces_of, too_large
from bot_dist.errors import InputError, blamed, some
from bot_dist.storage.files import existing_bytes, open_file
from bot_dist.urls import label

if TYPE_CHECKING:
    from pyarrow.parquet import ParquetFile

ROWS = 256
"""Read at a time."""
PACKED = 1000
"""How many times smaller than a text what is stored of it may be: gzip makes nothing smaller than that, and a few bytes
of Brotli are gigabytes."""


@dataclass(frozen=True, kw_only=True)
class Parquet:
    """Ranges are of its row groups."""

    url: str
    section: str
    column: str
    limit: int
    """Bytes that a document may have."""
    groups: tuple[int, ...]
    """Bytes of the column in each row group, uncompressed."""

    @classmethod
    def open(cls, url: str, section: str, column: str, limit: int) -> Parquet:
        """Raises InputError when it is missing, no Parquet, or has no such column of strings."""
        import pyarrow.types as types

        existing_bytes(url)
        with _reading(url, section), _file(url) as file:
            schema, metadata = file.schema_arrow, file.metadata
            if column not in schema.names:
                raise InputError(
                    f"{section}.text: {label(url)} has no column '{column}'; columns: "
                    f"{some(schema.names)}; set {section}.column"
                )
            kind = schema.field(column).type
            if not (types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)):
                raise InputError(
                    f"{section}.text: {label(url)}: column '{column}' holds {kind}, wanted strings; set "
                    f"{section}.column"
                )
            if not metadata.num_rows:
                raise InputError(f"{section}.text: {label(url)} is empty; leave it out")
            number = next(i for i in range(metadata.num_columns) if metadata.schema.column(i).path == column)
            columns = [metadata.row_group(i).column(number) for i in range(metadata.num_row_groups)]
            groups = [chunk.total_uncompressed_size for chunk in columns]
            for i, chunk in enumerate(columns):
                if groups[i] > max(limit, PACKED * chunk.total_compressed_size):
                    where = (
                        f"row group {i} of {label(url)} has {groups[i]:,} bytes in {chunk.total_compressed_size:,}, and"
                    )
                    raise too_large(where, section, limit)
        return cls(url=url, section=section, column=column, limit=limit, groups=tuple(groups))

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.url,)

    @property
    def kind(self) -> tuple[str, ...]:
        return ("parquet", self.column)

    def ranges(self, nbytes: int) -> list[tuple[int, int, int]]:
        ranges, start, held = [], 0, 0
        for i, size in enumerate(self.groups):
            held += size
            if held >= nbytes or i == len(self.groups) - 1:
                ranges.append((start, i + 1, held))
                start, held = i + 1, 0
        return ranges

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        import pyarrow.compute as compute

        with _reading(self.url, self.section), _file(self.url, read_dictionary=[self.column]) as file:
            groups = [*range(start, stop)]
            for rows in file.iter_batches(ROWS, row_groups=groups, columns=[self.column], use_threads=False):
                values = rows.column(0)
                documents = values.dictionary  # so that one which many rows repeat is held once
                if (compute.max(compute.binary_length(documents)).as_py() or 0) > self.limit:
                    raise too_large(f"a row of {label(self.url)}", self.section, self.limit)
                for number in values.indices.to_pylist():
                    yield from pieces_of("" if number is None else documents[number].as_py())


def _file(url: str, **options: Any) -> ParquetFile:
    from pyarrow.parquet import ParquetFile

    return ParquetFile(open_file(url), page_checksum_verification=True, **options)


def _reading(url: str, section: str) -> AbstractContextManager[None]:
    return blamed(
        lambda why: InputError(
            f"{section}.text: {label(url)} can't be read as Parquet ({why}); get it again, or leave it out"
        )
    )


FORMAT = TextFormat(open=Parquet.open, ends=(".parquet",))
