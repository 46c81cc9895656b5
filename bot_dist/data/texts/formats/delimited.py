"""CSV and TSV: a column of documents, in the quoting of RFC 4180."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from bot_dist.data.texts.formats import TextFormat
from bot_dist.data.texts.pieces import Piece, pieces_of, too_large
from bot_dist.errors import InputError, blamed, some
from bot_dist.storage.files import existing_bytes, open_file
from bot_dist.urls import label

DELIMITERS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True, kw_only=True)
class Delimited:
    """A file in UTF-8 whose first row names the columns. All of it is one range: whether a line begins a row, or goes
    on with a quoted field, is told by all the lines before it."""

    url: str
    section: str
    column: str
    limit: int
    nbytes: int

    @classmethod
    def open(cls, url: str, section: str, column: str, limit: int) -> Delimited:
        """Raises InputError when it is missing, empty or has no such column."""
        nbytes = existing_bytes(url)
        text = cls(url=url, section=section, column=column, limit=limit, nbytes=nbytes)
        names = next((row for _, row in text._rows()), None)
        if names is None:
            raise InputError(f"{section}.text: {label(url)} is empty; leave it out")
        if (n := names.count(column)) != 1:
            raise InputError(
                f"{section}.text: {label(url)} has {n or 'no'} column{'s' * (n > 1)} '{column}'; columns: "
                f"{some(names)}; set {section}.column"
            )
        return text

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.url,)

    @property
    def kind(self) -> tuple[str, ...]:
        return (self._suffix.removeprefix("."), self.column)

    def ranges(self, nbytes: int) -> list[tuple[int, int, int]]:
        return [(0, self.nbytes, self.nbytes)]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        rows = self._rows()
        _, names = next(rows)
        at = names.index(self.column)
        for line, row in rows:
            if len(row) != len(names):
                raise self._wrong(line, f"has {len(row)} fields, and the first line {len(names)}; quote them, or mend")
            yield from pieces_of(row[at])

    @property
    def _suffix(self) -> str:
        return self.url[-4:].lower()

    def _rows(self) -> Iterator[tuple[int, list[str]]]:
        """Rows that are not blank, and the line that each begins in. Raises InputError for what is no CSV."""
        csv.field_size_limit(max(csv.field_size_limit(), self.limit))  # else 128 KiB; rows are bounded by their lines
        begun = held = 0

        def lines(file: IO[bytes]) -> Iterator[str]:
            nonlocal held
            coding = "utf-8-sig"
            while line := file.readline(self.limit + 1):
                held += len(line)
                if held > self.limit:
                    raise too_large(f"{label(self.url)}: the row in line {begun}", self.section, self.limit)
                yield line.decode(coding)
                coding = "utf-8"

        def unreadable(why: str) -> InputError:
            return self._wrong(begun, f"can't be read as {self.kind[0].upper()} ({why}); mend it")

        with open_file(self.url) as file:
            reader = csv.reader(lines(file), delimiter=DELIMITERS[self._suffix], strict=True)
            while True:
                begun, held = reader.line_num + 1, 0
                with blamed(unreadable):
                    row = next(reader, None)
                if row is None:
                    return
                if row:
                    yield begun, row

    def _wrong(self, line: int, what: str) -> InputError:
        return InputError(f"{self.section}.text: {label(self.url)}, line {line}, {what}")


FORMAT = TextFormat(open=Delimited.open, ends=(*DELIMITERS,))
