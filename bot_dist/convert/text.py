"""Texts as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bot_dist.convert.texts import Piece, TextFile
from bot_dist.convert.texts.plain import PlainText
from bot_dist.errors import InputError

if TYPE_CHECKING:
    import tokenizers

Tokens = NDArray[np.int32]

CHARACTERS = 12
"""Of a text, that are tokenised to have a token: more than most languages and tokenizers need."""
BATCH = 2**20
"""Characters, about, that are tokenised at once."""
RANGE = 2**20
"""Bytes of text, about, between the places that a window can be taken from."""
LITTLE = 2**24
"""Bytes of text that are rather tokenised as a whole."""


class Encoder:
    """A ``transformers`` tokenizer that is asked for tokens alone. One that is made of Rust pickles as its JSON, so
    that processes that have it need no ``transformers``."""

    def __init__(self, tokenizer: Any, section: str = "train") -> None:
        """``section`` is what messages call the recipe's. Raises InputError where the tokenizer has no EOS, nor what
        has its place: BERT's SEP."""
        end = tokenizer.eos_token_id
        if end is None:
            end = getattr(tokenizer, "sep_token_id", None)
        if end is None:
            raise InputError(
                f"{section}.text: the model's tokenizer has no EOS token, which separates documents; give it an "
                f"'eos_token'"
            )
        self.end: int = end
        """The token that ends a document."""
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._json: str | None = None if backend is None else backend.to_str()
        self._slow: Any = tokenizer if backend is None else None

    @cached_property
    def digest(self) -> str:
        """Another where a text may have other tokens."""
        made = self._json or [type(self._slow).__name__, sorted(self._slow.get_vocab().items())]
        return hashlib.sha256(json.dumps([made, self.end]).encode()).hexdigest()

    @property
    def size(self) -> int:
        """One above the largest token."""
        vocabulary: dict[str, int] = (self.fast if self._slow is None else self._slow).get_vocab()
        return max([*vocabulary.values(), self.end]) + 1

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "fast"}

    @cached_property
    def fast(self) -> tokenizers.Tokenizer:
        """The tokenizer itself, where it is made of Rust."""
        import tokenizers

        assert self._json is not None
        fast = tokenizers.Tokenizer.from_str(self._json)
        fast.no_truncation()
        fast.no_padding()
        return fast

    def __call__(self, texts: Sequence[str]) -> list[list[int]]:
        """The tokens of every text, without those that a tokenizer puts around one."""
        if self._json is None:
            return [self._slow(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
        return [found.ids for found in self.fast.encode_batch_fast([*texts], add_special_tokens=False)]

    def tokens(self, pieces: Iterable[Piece]) -> Iterator[Tokens]:
        """The tokens of documents, ``end`` after each of them, in parts of about ``BATCH`` characters."""
        waiting: list[Piece] = []
        characters = 0
        for piece in pieces:
            waiting.append(piece)
            characters += len(piece.text)
            if characters >= BATCH:
                yield self._encoded(waiting)
                waiting, characters = [], 0
        if waiting:
            yield self._encoded(waiting)

    def _encoded(self, pieces: Sequence[Piece]) -> Tokens:
        found: list[Tokens] = []
        for piece, ids in zip(pieces, self([piece.text for piece in pieces]), strict=True):
            found.append(np.array(ids, dtype=np.int32))
            if piece.ends:
                found.append(np.array([self.end], dtype=np.int32))
        return np.concatenate(found)


def pack_text(texts: Iterable[TextFile], encoder: Encoder) -> Tokens:
    """The tokens of all documents of the texts, in order, ``encoder.end`` after each. Raises InputError for what can't
    be read or is no text."""
    parts = [part for text in texts for part in encoder.tokens(_pieces(text))]
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def spread_windows(texts: Sequence[TextFile], encoder: Encoder, n: int, context: int) -> Tokens | None:
    """``(n, context)`` tokens from places that lie evenly over the texts, without tokenising the rest; None where they
    are too short for that. Raises InputError as ``pack_text`` does."""
    if all(isinstance(text, PlainText) for text in texts):
        return _from_files(texts, encoder, n, context)
    return _from_ranges(texts, encoder, n, context)


def _from_files(texts: Sequence[TextFile], encoder: Encoder, n: int, context: int) -> Tokens | None:
    """Windows out of files that are a document each."""
    found = []
    span = CHARACTERS * context
    least = span * -(-n // len(texts))  # so that no two windows overlap
    read: tuple[int, str] = (-1, "")
    for i in range(n):
        number, place = divmod((2 * i + 1) * len(texts), 2 * n)
        if read[0] != number:
            read = number, "".join(piece.text for piece in _pieces(texts[number]))
        if len(read[1]) < least:
            return None
        start = (len(read[1]) - span) * place // (2 * n)
        (ids,) = encoder([read[1][start : start + span]])
        if len(ids) <= context:
            return None
        found.append(ids[1 : context + 1])  # the first may be the rest of a word
    return np.asarray(found, dtype=np.int32)


def _from_ranges(texts: Sequence[TextFile], encoder: Encoder, n: int, context: int) -> Tokens | None:
    """Windows from where ranges start: from every so-manieth one, and from those between if these are too short."""
    ranges = [(text, *found) for text in texts for found in text.ranges(RANGE)]
    if sum(nbytes for *_, nbytes in ranges) < LITTLE:
        return None
    first = sorted({i * len(ranges) // n for i in range(n)})
    each = -(-n // len(first))
    found: list[Tokens] = []
    for number in (*first, *(i for i in range(len(ranges)) if i not in first)):
        text, start, stop, _ = ranges[number]
        found += _first_windows(encoder, text.pieces(start, stop), each, context)
        if len(found) >= n:
            return np.stack(found[:n])
    return None


def _first_windows(encoder: Encoder, pieces: Iterable[Piece], n: int, context: int) -> Iterator[Tokens]:
    """``n`` windows, or fewer where the documents have no more tokens; no more of them is read than that takes."""
    held = np.empty(0, np.int32)
    for piece in pieces:
        held = np.concatenate([held, *encoder.tokens([piece])])
        while len(held) >= context:
            yield held[:context]
            held, n = held[context:], n - 1
            if not n:
                return


def _pieces(text: TextFile) -> Iterator[Piece]:
    return (piece for start, stop, _ in text.ranges(RANGE) for piece in text.pieces(start, stop))
