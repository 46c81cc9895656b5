"""Windows of a text's tokens, to calibrate a language model on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bot_dist.convert.text import Encoder, pack_text, spread_windows
from bot_dist.convert.texts import open_texts
from bot_dist.errors import InputError

if TYPE_CHECKING:
    import torch


def windows(
    files: Iterable[str], tokenizer: Any, tokens: int, context: int, column: str = "text", section: str = "calibrate"
) -> torch.Tensor:
    """LongTensor ``(tokens // context, context)``: windows that lie evenly over the whole text.

    ``files`` are as in a recipe, whose ``section`` messages name; ``column`` holds the documents. Raises InputError
    when there are none, one can't be read or is no text, or they have fewer than ``tokens`` tokens.
    """
    import numpy as np
    import torch

    if not 2 <= context <= tokens:
        raise InputError(
            f"{tokens} calibration tokens are no windows of {context}; use at least 2 tokens for a window, and at "
            f"least one window"
        )
    texts = open_texts(files, column, section)
    encoder = Encoder(tokenizer, section)
    n_windows = tokens // context
    found = spread_windows(texts, encoder, n_windows, context)
    if found is None:
        packed = pack_text(texts, encoder)
        if len(packed) < tokens:
            raise InputError(
                f"{section}.text: {len(packed)} tokens in {len(texts)} file(s), wanted at least {tokens}; give more "
                f"text, or calibrate on fewer tokens"
            )
        found = np.stack([packed[s : s + context] for s in (i * len(packed) // n_windows for i in range(n_windows))])
    return torch.from_numpy(found.astype(np.int64))
