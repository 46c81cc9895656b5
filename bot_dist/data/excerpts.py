"""Excerpts of texts as tokens: of little text all of it, of much from places that lie evenly over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from bot_dist.data.encoder import RANGE, Encoder, Tokens, pieces_in
from bot_dist.data.texts import Piece, TextFile
from bot_dist.data.texts.formats.plain import PlainText

CHARACTERS = 12
"""Characters of a text that are tokenised to have a token: more than most languages and tokenizers need."""
LITTLE = 2**22
"""Least text, in bytes, that is sampled; less is tokenised as a whole."""
SMALLEST = 2**16
"""Least distance between places that excerpts are taken from, in bytes of text, about; the largest is ``RANGE``."""
SPARE = 2
"""Factor by which more tokens are taken of much text than are wanted, so that there is a choice of documents."""


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """Tokens that follow one another in a document."""

    tokens: Tokens
    """With those that stand before a document, and behind it, where it has that part."""
    document: tuple[int, ...]
    """Which one it is of: the same for all excerpts of one."""
    begins: bool
    """Whether the document begins with it."""
    ends: bool
    """Whether the document ends with it, so that another may follow."""


def excerpts(
    texts: Sequence[TextFile], encoder: Encoder, tokens: int, context: int, withheld: Mapping[str, int]
) -> list[Excerpt]:
    """Excerpts with ``SPARE`` times ``tokens`` in all, where there are as many, each of ``context`` or a document's
    end at least; ``withheld`` tokens at the ends of texts, by URL, are left out.

    Raises InputError for what can't be read or is no text.
    """
    nbytes = sum(size for text in texts for *_, size in text.ranges(RANGE))
    if nbytes >= LITTLE:
        wanted = 4 * SPARE * tokens // context  # more places than that many windows need
        step = min(max(nbytes // wanted, SMALLEST), RANGE)
        ranges = [(i, start, stop) for i, text in enumerate(texts) for start, stop, _ in text.ranges(step)]
        sampled = _sampled(texts, ranges, encoder, tokens, context, withheld)
        if sum(len(excerpt.tokens) for excerpt in sampled) >= SPARE * tokens:
            return sampled
    return [
        excerpt
        for number, text in enumerate(texts)
        for excerpt in _without_end([*_documents(text, number, encoder)], withheld.get(text.url, 0))
    ]


def tokens_at_ends(texts: Sequence[TextFile], encoder: Encoder, tokens: int) -> dict[str, int]:
    """The number of those tokens that lie in each text, by URL, among the last ``tokens`` of all texts."""
    by_url: dict[str, int] = {}
    for text in reversed(texts):
        if tokens <= 0:
            break
        by_url[text.url] = _counted(encoder, pieces_in(text), tokens)
        tokens -= by_url[text.url]
    return by_url


def _counted(encoder: Encoder, pieces: Iterable[Piece], most: int) -> int:
    """The tokens of the pieces, or ``most``; no more of them is read than that takes."""
    n = 0
    for piece in pieces:
        n += sum(map(len, encoder.tokens([piece])))
        if n >= most:
            return most
    return n


def _documents(text: TextFile, number: int, encoder: Encoder) -> Iterator[Excerpt]:
    """All documents of a text."""
    pieces, same = itertools.tee(pieces_in(text))
    held: list[Tokens] = []
    n = 0
    for piece, tokens in zip(pieces, encoder.tokens(same), strict=True):
        held.append(tokens)
        if piece.ends:
            yield Excerpt(tokens=np.concatenate(held), document=(number, n), begins=True, ends=True)
            held, n = [], n + 1


def _without_end(excerpts: list[Excerpt], tokens: int) -> list[Excerpt]:
    """The excerpts without so many of the last tokens."""
    while excerpts and tokens > 0:
        last = excerpts.pop()
        if (kept := len(last.tokens) - tokens) > 0:
            excerpts.append(Excerpt(tokens=last.tokens[:kept], document=last.document, begins=last.begins, ends=False))
        tokens -= len(last.tokens)
    return excerpts


def _sampled(
    texts: Sequence[TextFile],
    ranges: list[tuple[int, int, int]],
    encoder: Encoder,
    tokens: int,
    context: int,
    withheld: Mapping[str, int],
) -> list[Excerpt]:
    """Excerpts from ranges ``(text, start, stop)`` that lie evenly, and from those between if these have too little."""
    ranges = [
        place
        for number, own in itertools.groupby(ranges, lambda place: place[0])
        for place in _before_end(texts[number], [*own], encoder, SPARE * tokens, withheld.get(texts[number].url, 0))
    ]
    if not ranges:
        return []
    windows = -(-SPARE * tokens // context)
    each = -(-windows // len(ranges))  # of one range
    n = -(-windows // each)
    first = [i * len(ranges) // n for i in range(n)]
    by_range: dict[int, list[Excerpt]] = {}
    held = 0
    for i in (*first, *sorted({*range(len(ranges))} - {*first})):
        if held >= SPARE * tokens:
            break
        by_range[i] = [*_of_range(texts[ranges[i][0]], ranges[i], encoder, each * context, context)]
        held += sum(len(excerpt.tokens) for excerpt in by_range[i])
    return [excerpt for i in sorted(by_range) for excerpt in by_range[i]]


def _before_end(
    text: TextFile, ranges: list[tuple[int, int, int]], encoder: Encoder, taken: int, tokens: int
) -> list[tuple[int, int, int]]:
    """The ranges of which ``taken`` tokens can be taken without any of the last ``tokens`` of the text."""
    while ranges and tokens > 0:
        _, start, stop = ranges[-1]
        spread = isinstance(text, PlainText)  # over all of a range, not from its beginning on
        n = _counted(encoder, text.pieces(start, stop), tokens if spread else tokens + taken)
        if not spread and n == tokens + taken:
            break
        ranges, tokens = ranges[:-1], tokens - n
    return ranges


def _of_range(
    text: TextFile, place: tuple[int, int, int], encoder: Encoder, tokens: int, context: int
) -> Iterator[Excerpt]:
    """About so many tokens: of a document in a file of its own, excerpts of ``context`` tokens that lie evenly over the
    range; else documents from its beginning on, the last of them not whole."""
    number, start, stop = place
    pieces = text.pieces(start, stop)
    if isinstance(text, PlainText):
        span = CHARACTERS * context
        for piece in pieces:
            n = max(min(-(-tokens // context), len(piece.text) // span), 1)
            cell = len(piece.text) // n
            for at in (i * cell + max(cell - span, 0) // 2 for i in range(n)):
                yield _part(piece, at, span, encoder, context, (number,))
        return
    n = 0
    for piece in pieces:
        if tokens <= 0:
            return
        n += piece.begins
        excerpt = _part(piece, 0, CHARACTERS * max(tokens, context), encoder, max(tokens, context), (number, start, n))
        tokens -= len(excerpt.tokens)
        yield excerpt


def _part(piece: Piece, start: int, characters: int, encoder: Encoder, most: int, document: tuple[int, ...]) -> Excerpt:
    """At most ``most`` tokens of a piece, from ``characters`` of it."""
    stop = min(start + characters, len(piece.text))
    begins, ends = piece.begins and start == 0, piece.ends and stop == len(piece.text)
    (ids,) = encoder.tokens([Piece(piece.text[start:stop], begins=begins, ends=ends)])
    first = 0 if begins else 1  # what stands there may be the rest of a word, as may what stands last
    last = len(ids) if ends else len(ids) - 1
    return Excerpt(
        tokens=ids[first : min(last, first + most)],
        document=document,
        begins=begins,
        ends=ends and last <= first + most,
    )
