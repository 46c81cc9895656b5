"""Cross-entropy that holds nothing of the size of the logits but the logits."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F

IGNORED = -100
"""Label where nothing is to be predicted."""

PART, PARTS = 2**20, 32
"""Logits that go through at a time: so many, or the rows of so many parts if that is more."""


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Sum over all labels of the cross-entropy in nats, computed in float32 at least.

    ``logits`` are ``(rows, classes)``, ``labels`` ``(rows,)``. ``F.cross_entropy`` keeps a probability of every class
    for the backward pass, and makes a gradient beside it: with a large vocabulary that is most of what a step holds.
    Here both are of a few rows at a time, and the gradient takes the place of the logits: after the backward pass they
    are gone, and a second one raises RuntimeError.
    """
    loss: torch.Tensor = _CrossEntropy.apply(logits, labels)  # type: ignore[no-untyped-call]
    return loss


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(logits, labels)
        losses = [
            F.cross_entropy(_exact(some), wanted, ignore_index=IGNORED, reduction="sum")
            for some, wanted in _parts(logits, labels)
        ]
        return torch.stack(losses).sum()

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None]:
        logits, labels = ctx.saved_tensors
        for some, wanted in _parts(logits, labels):
            p = torch.softmax(_exact(some), -1)
            kept = (wanted != IGNORED).unsqueeze(1)
            p.scatter_add_(1, torch.where(kept, wanted.unsqueeze(1), 0), -kept.to(p.dtype))
            some.copy_(p.mul_(grad * kept))
        return logits, None


def _parts(logits: torch.Tensor, labels: torch.Tensor) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    rows = max(1, PART // logits.shape[1], len(logits) // PARTS)
    return zip(logits.split(rows), labels.split(rows), strict=True)


def _exact(logits: torch.Tensor) -> torch.Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
