"""Texts as tokens."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from bot_dist.data.texts import Piece, TextFile
from bot_dist.errors import InputError, blamed, nearest

if TYPE_CHECKING:
    import tokenizers

Tokens = NDArray[np.int32]

END_OF_TEXT = "<|endoftext|>"
"""Stands between documents wherever a tokenizer has it, since GPT-2. EOS is another token in chat models (of Qwen,
SmolLM2, Phi), which ends a turn."""
BATCH = 2**20
"""Characters, about, that are tokenised at once."""
RANGE = 2**20
"""Bytes of text, about, that are read at once."""


class Encoder:
    """A ``transformers`` tokenizer that is asked for tokens alone. One that is made of Rust pickles as its JSON, so
    that processes that have it need no ``transformers``."""

    def __init__(self, tokenizer: Any, section: str = "train", bos: str = "auto", eos: str = "auto") -> None:
        """``section`` is what messages call the recipe's, ``bos`` and ``eos`` are its keys. Raises InputError where the
        tokenizer has no such token, or none that could separate documents."""
        self.section = section
        own = _around(tokenizer, section) if "auto" in (bos, eos) else ((), ())
        self.before: tuple[int, ...] = own[0] if bos == "auto" else _named(tokenizer, bos, f"{section}.bos")
        """The tokens before a document."""
        self.closing: tuple[int, ...] = own[1] if eos == "auto" else _named(tokenizer, eos, f"{section}.eos")
        """The tokens behind a text that stands alone."""
        self.behind: tuple[int, ...] = self.closing
        """The tokens behind a document that others follow."""
        if eos == "auto" and not self.closing:
            self.behind = _end(tokenizer, section)
        backend = getattr(tokenizer, "backend_tokenizer", None)
        self._json: str | None = None if backend is None else backend.to_str()
        self._slow: Any = tokenizer if backend is None else None

    @cached_property
    def digest(self) -> str:
        """Another where a text may have other tokens."""
        made = self._json or [type(self._slow).__name__, sorted(self._slow.get_vocab().items())]
        return hashlib.sha256(json.dumps([made, self.before, self.behind]).encode()).hexdigest()

    @property
    def size(self) -> int:
        """One above the largest token."""
        vocabulary: dict[str, int] = (self.fast if self._slow is None else self._slow).get_vocab()
        return max([*vocabulary.values(), *self.before, *self.behind]) + 1

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
        """The tokens of every text, without those that stand around one. Raises InputError where the tokenizer can't
        give them."""
        with blamed(lambda why: InputError(f"{self.section}.text: the model's tokenizer can't tokenise it ({why})")):
            if self._json is None:
                return [self._slow(text, add_special_tokens=False, verbose=False)["input_ids"] for text in texts]
            return [encoding.ids for encoding in self.fast.encode_batch_fast([*texts], add_special_tokens=False)]

    def tokens(self, pieces: Iterable[Piece]) -> Iterator[Tokens]:
        """The tokens of documents, ``before`` and ``behind`` around each of them, piece by piece."""
        waiting: list[Piece] = []
        characters = 0
        for piece in pieces:
            waiting.append(piece)
            characters += len(piece.text)
            if characters >= BATCH:
                yield from self._encoded(waiting)
                waiting, characters = [], 0
        yield from self._encoded(waiting)

    def _encoded(self, pieces: Sequence[Piece]) -> Iterator[Tokens]:
        for piece, ids in zip(pieces, self([piece.text for piece in pieces]), strict=True):
            before, behind = self.before if piece.begins else (), self.behind if piece.ends else ()
            yield np.array([*before, *ids, *behind], dtype=np.int32)


def pack_text(texts: Iterable[TextFile], encoder: Encoder) -> Tokens:
    """The tokens of all documents of the texts, in order. Raises InputError for what can't be read or is no text."""
    parts = [part for text in texts for part in encoder.tokens(pieces_in(text))]
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def pieces_in(text: TextFile) -> Iterator[Piece]:
    """All pieces of a text."""
    return (piece for start, stop, _ in text.ranges(RANGE) for piece in text.pieces(start, stop))


def _around(tokenizer: Any, section: str) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The tokens that the tokenizer puts before a text, and those that it puts behind it."""
    with blamed(lambda why: InputError(f"{section}.text: the model's tokenizer can't tokenise 'x' ({why})")):
        plain, whole = (
            tokenizer("x", add_special_tokens=special, verbose=False)["input_ids"] for special in (False, True)
        )
    for n in range(len(whole) - len(plain) + 1):
        if whole[n : n + len(plain)] == plain and (plain or not whole):
            return (*whole[:n],), (*whole[n + len(plain) :],)
    raise InputError(
        f"{section}.text: the tokenizer gives a text other tokens where it puts its own around them; name those in "
        f"{section}.bos and {section}.eos"
    )


def _end(tokenizer: Any, section: str) -> tuple[int, ...]:
    """``END_OF_TEXT``, EOS, or what has its place: BERT's SEP."""
    eos, end = tokenizer.eos_token_id, tokenizer.get_vocab().get(END_OF_TEXT)
    if end is not None and eos is not None and end < eos:  # else transformers may have added it, unknown to the model
        return (end,)
    for token in (eos, getattr(tokenizer, "sep_token_id", None)):
        if token is not None:
            return (token,)
    raise InputError(
        f"{section}.text: the model's tokenizer has no EOS token, which separates documents; give it an 'eos_token', "
        f"or name a token in {section}.eos"
    )


def _named(tokenizer: Any, name: str, key: str) -> tuple[int, ...]:
    if name == "none":
        return ()
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    if name not in vocabulary:
        raise InputError(
            f"{key}: the model's tokenizer has no token '{name}'; {nearest(name, tokenizer.all_special_tokens)}"
        )
    return (vocabulary[name],)
