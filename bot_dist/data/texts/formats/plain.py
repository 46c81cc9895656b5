"""Plain text: a file is a document."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass

from bot_dist.data.texts.formats import TextFormat
from bot_dist.data.texts.pieces import LOOK, PIECE, Piece, cut
from bot_dist.errors import InputError
from bot_dist.storage.files import existing_bytes, read_range
from bot_dist.urls import label

COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".tar")


@dataclass(frozen=True, kw_only=True)
class PlainText:
    """A file in UTF-8. Ranges are of its bytes."""

    url: str
    section: str
    nbytes: int

    kind = ("text",)

    @classmethod
    def open(cls, url: str, section: str) -> PlainText:
        """Raises InputError when it is missing or empty."""
        nbytes = existing_bytes(url)
        if not nbytes:
            raise _empty(url, section)
        return cls(url=url, section=section, nbytes=nbytes)

    @property
    def sources(self) -> tuple[str, ...]:
        return (self.url,)

    def ranges(self, nbytes: int) -> list[tuple[int, int, int]]:
        step = -(-nbytes // PIECE) * PIECE
        stops = [min(start + step, self.nbytes) for start in range(0, self.nbytes, step)]
        return [(start, stop, stop - start) for start, stop in zip(range(0, self.nbytes, step), stops, strict=True)]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        for first in range(start, stop, PIECE):
            last = min(first + PIECE, stop)
            yield Piece(self._between(first, last), begins=first == 0, ends=last == self.nbytes)

    def _between(self, first: int, last: int) -> str:
        """The text from the cut at or after ``first`` to that at or after ``last``."""
        data = read_range(self.url, first, min(last + LOOK, self.nbytes), "text")
        begin = cut(data, 0) if first else 0
        end = cut(data, last - first) if last < self.nbytes else len(data)
        try:
            text = data[begin:end].decode()
        except UnicodeDecodeError as error:
            raise InputError(
                f"{self.section}.text: {label(self.url)} is no UTF-8 text (byte {first + begin + error.start}: "
                f"{error.reason}); convert it"
            ) from None
        if last - first == self.nbytes and not text.strip():
            raise _empty(self.url, self.section)
        return text


def _empty(url: str, section: str) -> InputError:
    return InputError(f"{section}.text: {label(url)} is empty; leave it out")


def _open(url: str, section: str, column: str, limit: int) -> PlainText:
    if posixpath.basename(url).lower().endswith(COMPRESSED):
        raise InputError(
            f"{section}.text: {label(url)} is compressed, and of such files only .jsonl.gz are read; decompress it"
        )
    return PlainText.open(url, section)


FORMAT = TextFormat(open=_open, ends=(".txt",))
