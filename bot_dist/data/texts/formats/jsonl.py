"""JSON lines: an object per line, one field of which is a document."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, cast

from bot_dist.data.texts.formats import TextFormat
from bot_dist.data.texts.pieces import Piece, pieces_of, too_large
from bot_dist.errors import InputError, some
from bot_dist.storage.files import existing_bytes, open_file
from bot_dist.urls import label

COMPRESSION = 4
"""How many times smaller gzip makes a text, about."""


@dataclass(frozen=True, kw_only=True)
class JsonLines:
    """A file in UTF-8, perhaps compressed by gzip. Ranges are of its bytes; a line is of the one that it begins in."""

    url: str
    section: str
    column: str
    limit: int
    """Bytes that a line may have."""
    nbytes: int

    @classmethod
    def open(cls, url: str, section: str, column: str, limit: int) -> JsonLines:
        """Raises InputError when it is missing or empty."""
        nbytes = existing_bytes(url)
        if not nbytes:
            raise InputError(f"{section}.text: {label(url)} is empty; leave it out")
        return cls(url=url, section=section, column=column, limit=limit, nbytes=nbytes)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.url,)

    @property
    def kind(self) -> tuple[str, ...]:
        return ("jsonl.gz" if self.compressed else "jsonl", self.column)

    @property
    def compressed(self) -> bool:
        return self.url.endswith(".gz")

    def ranges(self, nbytes: int) -> list[tuple[int, int, int]]:
        if self.compressed:
            return [(0, self.nbytes, COMPRESSION * self.nbytes)]
        stops = [min(start + nbytes, self.nbytes) for start in range(0, self.nbytes, nbytes)]
        return [(start, stop, stop - start) for start, stop in zip(range(0, self.nbytes, nbytes), stops, strict=True)]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        for position, line in self._lines(start, stop):
            if line.strip():
                yield from self._document(line, position)

    def _lines(self, start: int, stop: int) -> Iterator[tuple[int, bytes]]:
        """Lines, and the bytes before each of them."""
        with self._open() as file:
            position = max(start - 1, 0)
            file.seek(position)
            begins = not start  # else a line that began before is left out, or its end alone
            try:
                while (self.compressed or position < stop) and (line := file.readline(self.limit + 1)):
                    if begins and len(line) > self.limit:
                        where = f"{label(self.url)}, line {self._number(position)},"
                        raise too_large(where, self.section, self.limit)
                    if begins:
                        yield position, line
                    position += len(line)
                    begins = line.endswith(b"\n")
            except (EOFError, gzip.BadGzipFile, zlib.error) as error:
                raise InputError(
                    f"{self.section}.text: {label(self.url)} is not whole, or no gzip ({error}); get it again"
                ) from None

    def _open(self) -> IO[bytes]:
        file = open_file(self.url)
        return cast(IO[bytes], gzip.GzipFile(fileobj=file)) if self.compressed else file

    def _document(self, line: bytes, position: int) -> Iterator[Piece]:
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:  # what is no UTF-8 is one, too
            raise self._wrong(position, f"is no JSON ({error}); wanted an object per line") from None
        if not isinstance(row, dict):
            raise self._wrong(position, f"is no JSON object but a {type(row).__name__}; wanted an object per line")
        if self.column not in row:
            fields = some(sorted(row))
            raise self._wrong(position, f"has no field '{self.column}'; fields: {fields}; set {self.section}.column")
        document = row[self.column]
        if not isinstance(document, str | None):
            raise self._wrong(position, f"'{self.column}' is of type {type(document).__name__}, wanted a string")
        try:
            yield from pieces_of(document or "")
        except UnicodeEncodeError as error:
            raise self._wrong(position, f"has a '{self.column}' that is no Unicode text ({error.reason})") from None

    def _wrong(self, position: int, what: str) -> InputError:
        return InputError(f"{self.section}.text: {label(self.url)}, line {self._number(position)}, {what}")

    def _number(self, position: int) -> int:
        """The number of the line that begins at a position."""
        line, left = 1, position
        with self._open() as file:
            while left > 0 and (data := file.read(min(left, 2**20))):
                line, left = line + data.count(b"\n"), left - len(data)
        return line


FORMAT = TextFormat(open=JsonLines.open, ends=(".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz"))
