"""What a model is calibrated on: windows of a text's tokens, and what is to be predicted of them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from bot_dist.convert.text import Encoder, pack_text, spread_windows
from bot_dist.convert.texts import open_texts
from bot_dist.errors import InputError
from bot_dist.families import Model

if TYPE_CHECKING:
    import torch

IGNORED = -100
"""Label of a token that is not to be predicted."""
MASKED = 0.15
"""Share of the tokens that a masked language model has to predict, as in BERT."""
SEED = 0


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


def check_windows(windows: torch.Tensor, model: Model) -> None:
    """Raise InputError unless the model can take the windows ``(windows, context)``."""
    family = model.family
    if family.objective == "image":
        raise InputError(
            f"calibration of image models needs images, and family '{family.name}' is one of these: it is for "
            f"language models so far; use weight-only statistics"
        )
    if windows.ndim != 2 or windows.shape[0] < 1 or windows.shape[1] < 2:
        raise InputError(f"calibration windows have shape {tuple(windows.shape)}, wanted (windows, at least 2 tokens)")
    longest = model.config.get(family.context_field)
    if longest is not None and windows.shape[1] > longest:
        raise InputError(
            f"calibration windows have {windows.shape[1]} tokens, but the model has {family.context_field}={longest}; "
            f"use windows of {longest} tokens or fewer"
        )
    if not 0 <= int(windows.min()) <= int(windows.max()) < model.sizes["vocab"]:
        found = int(windows.max()) if int(windows.min()) >= 0 else int(windows.min())
        raise InputError(
            f"calibrate.text: the tokenizer gives token {found}, but the model's vocabulary has "
            f"{model.sizes['vocab']}; the tokenizer does not belong to this model"
        )


def task(windows: torch.Tensor, model: Model, mask_token: int | None) -> tuple[torch.Tensor, torch.Tensor]:
    """What the model is shown and what it has to predict, both LongTensors ``(windows, context)``; ``IGNORED`` where
    nothing is.

    Causal: the next token. Masked: ``MASKED`` of the tokens, which ``mask_token`` stands for, always the same ones.
    Raises InputError where that is needed and missing.
    """
    import torch
    import torch.nn.functional as F

    if model.family.objective == "causal":
        return windows, F.pad(windows[:, 1:], (0, 1), value=IGNORED)
    nothing = torch.full_like(windows, IGNORED)
    if model.head is None:
        return windows, nothing
    if mask_token is None:
        raise InputError("the tokenizer has no mask token, which a masked language model needs; give it a 'mask_token'")
    chosen = torch.rand(windows.shape, generator=torch.Generator().manual_seed(SEED)) < MASKED
    return torch.where(chosen, mask_token, windows), torch.where(chosen, windows, nothing)
