"""Pieces of documents: what is tokenised at a time."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from bot_dist.errors import InputError

PIECE = 2**20
"""Bytes of UTF-8, about, above which a document is tokenised in pieces. Part of the tokens: another size may give
others."""
LOOK = 2**14
"""Bytes behind a multiple of ``PIECE`` among which a place to cut is looked for."""

_PLACE = re.compile(r"(?<=\S)(?= )|(?<=[^\W_])(?=\s)")
"""Places to cut at: before a space, or before any white space that follows a letter or digit. No tokenizer that cuts
texts into words before it looks for tokens joins anything across such a place, so pieces have the tokens of the whole.
One that cuts nothing, as SentencePiece's, may put another token there."""


class Piece(NamedTuple):
    """A part of a document."""

    text: str
    begins: bool
    """Whether the document begins with it."""
    ends: bool
    """Whether the document ends with it."""


class TextFile(Protocol):
    """Documents in one place. Pickles as its URL and a few numbers; reading raises InputError for what is no text."""

    @property
    def url(self) -> str: ...

    @property
    def sources(self) -> tuple[str, ...]:
        """The files that it is read from, in order."""

    @property
    def kind(self) -> tuple[str, ...]:
        """The format, and what else decides which text is read of the files."""

    def ranges(self, nbytes: int) -> list[tuple[int, int, int]]:
        """All of it, in order, as ``(start, stop, bytes)``: ranges of about ``nbytes`` bytes of text, or one that is
        smaller. What ``start`` and ``stop`` count is the format's own."""

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        """The documents of a range, in order. Those without text, or with none but white space, are left out."""


def cut(data: bytes, at: int) -> int:
    """The place at or after ``at`` where a text is best cut, or else the next character. Nothing but
    ``data[at : at + LOOK]`` decides."""
    end = at + LOOK
    while at < min(end, len(data)) and data[at] & 0xC0 == 0x80:
        at += 1
    text = data[at:end].decode(errors="ignore")
    place = _PLACE.search(text)
    return at + len(text[: place.start()].encode()) if place else at


def too_large(what: str, section: str, limit: int) -> InputError:
    """The error for a document that is larger than may be held."""
    return InputError(
        f"{section}.text: {what} is larger than {section}.document_limit ({limit:,} bytes); leave it out, or raise the "
        f"limit"
    )


def pieces_of(document: str) -> Iterator[Piece]:
    """A document in memory. Raises UnicodeEncodeError where it can't be UTF-8 (half a surrogate pair)."""
    data = document.encode()
    if not document.strip():
        return
    if len(data) <= PIECE:
        yield Piece(document, begins=True, ends=True)
        return
    cuts = [0, *(cut(data, at) for at in range(PIECE, len(data), PIECE)), len(data)]
    for start, stop in itertools.pairwise(cuts):
        yield Piece(data[start:stop].decode(), begins=start == 0, ends=stop == len(data))
