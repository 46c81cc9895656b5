"""Calibration samples, windows of tokens or images, and what a model has to predict of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
import xxhash

from bot_dist.errors import InputError
from bot_dist.model import Model

IGNORED = -100
"""Label of what is not to be predicted."""
MASKED = 0.15
"""Share of the tokens that a masked language model has to predict, as in BERT."""
SEED = 0


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Samples that are run through a model, one after the other."""

    inputs: torch.Tensor
    """LongTensor ``(windows, context)``; pixels, float32 ``(images, channels, height, width)``."""
    labels: torch.Tensor
    """LongTensor ``(windows, context)`` or ``(images, 1)``; ``IGNORED`` where nothing is predicted."""
    positions: int
    """Number of positions of each sample's hidden states."""

    def __len__(self) -> int:
        return len(self.inputs)

    @property
    def n_positions(self) -> int:
        """The number of positions of all samples together."""
        return len(self) * self.positions

    @cached_property
    def digest(self) -> str:
        """Identifies inputs and labels."""
        contents = xxhash.xxh3_128(repr(tuple(self.inputs.shape)).encode())
        for part in (self.inputs, self.labels):
            contents.update(np.ascontiguousarray(part.numpy()).data)
        return contents.hexdigest()

    @classmethod
    def of_text(
        cls, windows: torch.Tensor, model: Model, mask_token: int | None = None, special: Sequence[int] = ()
    ) -> Samples:
        """Windows ``(windows, context)``, possibly none. Causal models predict the next token; masked ones ``MASKED``
        of the tokens, which ``mask_token`` stands for, always the same ones, but no ``special`` ones.

        Raises InputError where the model can't take them, or ``mask_token`` is needed and missing.
        """
        family, context = model.family, windows.shape[-1]
        if family.objective == "image":
            raise InputError(f"a model of family '{family.name}' takes images, no text; calibrate it on images")
        if windows.ndim != 2 or context < 2:
            raise InputError(f"calibration windows have shape {tuple(windows.shape)}, wanted (windows, at least 2)")
        longest = model.config.get(family.context_field)
        if longest is not None and context > longest:
            raise InputError(
                f"calibration windows have {context} tokens, but the model has {family.context_field}={longest}; use "
                f"windows of {longest} tokens or fewer"
            )
        if len(windows) and not 0 <= int(windows.min()) <= int(windows.max()) < model.sizes["vocab"]:
            token = int(windows.max()) if int(windows.min()) >= 0 else int(windows.min())
            raise InputError(
                f"calibrate.text: the tokenizer gives token {token}, but the model's vocabulary has "
                f"{model.sizes['vocab']}; the tokenizer does not belong to this model"
            )
        if family.objective == "causal":
            return cls(inputs=windows, labels=F.pad(windows[:, 1:], (0, 1), value=IGNORED), positions=context)
        if model.head is None:
            return cls.unlabelled(windows)
        nothing = torch.full_like(windows, IGNORED)
        if mask_token is None:
            raise InputError(
                "the tokenizer has no mask token, which a masked language model needs; give it a 'mask_token'"
            )
        chosen = torch.rand(windows.shape, generator=torch.Generator().manual_seed(SEED)) < MASKED
        chosen &= ~torch.isin(windows, torch.tensor([*special], dtype=windows.dtype))
        return cls(
            inputs=torch.where(chosen, mask_token, windows),
            labels=torch.where(chosen, windows, nothing),
            positions=context,
        )

    @classmethod
    def unlabelled(cls, windows: torch.Tensor) -> Samples:
        """Windows ``(windows, context)`` of which nothing is to be predicted."""
        return cls(inputs=windows, labels=torch.full_like(windows, IGNORED), positions=windows.shape[-1])

    @classmethod
    def of_images(cls, pixels: torch.Tensor, classes: torch.Tensor, model: Model) -> Samples:
        """``pixels`` as ``inputs``, and a LongTensor ``(images,)``: the class that a model with a classifier
        predicts."""
        labels = classes if model.classifies else torch.full_like(classes, IGNORED)
        return cls(inputs=pixels, labels=labels[:, None], positions=model.sizes["position"])


@dataclass(frozen=True, kw_only=True)
class CalibrationData:
    """The samples that operators are fitted to, and those on which the loss is measured after every stage, which may be
    none."""

    fitted: Samples
    held_out: Samples
    named: str = ""
    """The recipe's key that names it, and what it names; empty where it is not expected to be understood."""
