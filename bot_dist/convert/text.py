"""Texts as tokens: reading files and packing them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bot_dist.convert.storage import read_file
from bot_dist.errors import InputError
from bot_dist.urls import label

Tokens = NDArray[np.int32]

CHARACTERS = 12
"""Of a text, that are tokenised to have a token: more than most languages and tokenizers need."""


def pack_text(files: Iterable[str], tokenizer: Any, option: str = "train.text") -> Tokens:
    """Tokens of the files in sorted order, after each the tokenizer's EOS (or what it has in its place: BERT's SEP).

    Raises InputError, naming ``option``, for a file that can't be read (SourceError), is empty or no UTF-8 text, and
    for a tokenizer without EOS.
    """
    end = tokenizer.eos_token_id
    if end is None:
        end = getattr(tokenizer, "sep_token_id", None)
    if end is None:
        raise InputError(
            f"{option}: the model's tokenizer has no EOS token, which separates documents; give it an 'eos_token'"
        )
    parts: list[Tokens] = []
    for file in sorted(files):
        ids = tokenizer(_read_text(file, option), add_special_tokens=False, verbose=False)["input_ids"]
        parts.append(np.asarray([*ids, end], dtype=np.int32))
    return np.concatenate(parts) if parts else np.empty(0, np.int32)


def spread_windows(
    files: Sequence[str], tokenizer: Any, n: int, context: int, option: str = "train.text"
) -> Tokens | None:
    """``(n, context)`` tokens from places that lie evenly over the files, without tokenising the rest; None where a
    file is too short for its share. Raises InputError as ``pack_text`` does."""
    files, found = sorted(files), []
    span = CHARACTERS * context
    least = span * -(-n // len(files))  # so that no two windows overlap
    read: tuple[str, str] = ("", "")
    for i in range(n):
        number, place = divmod((2 * i + 1) * len(files), 2 * n)
        if read[0] != files[number]:
            read = files[number], _read_text(files[number], option)
        if len(read[1]) < least:
            return None
        start = (len(read[1]) - span) * place // (2 * n)
        ids = tokenizer(read[1][start : start + span], add_special_tokens=False, verbose=False)["input_ids"]
        if len(ids) <= context:
            return None
        found.append(ids[1 : context + 1])  # the first may be the rest of a word
    return np.asarray(found, dtype=np.int32)


def _read_text(file: str, option: str) -> str:
    try:
        text = read_file(file).decode()
    except UnicodeDecodeError as error:
        raise InputError(
            f"{option}: {label(file)} is no UTF-8 text (byte {error.start}: {error.reason}); convert it"
        ) from None
    if not text.strip():
        raise InputError(f"{option}: {label(file)} is empty; leave it out")
    return text
