"""Training FLOPs that a start saves: the measure of a comparison.

``r = (F_scratch − F_method) / F_scratch`` (BoT, arXiv 2603.07506), with F the FLOPs until a held-out loss is reached,
what the method itself takes before its first step included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Held-out losses of one training."""

    steps: Sequence[int]
    """Steps after which the losses were measured, ascending from 0."""
    losses: Sequence[float]
    """Held-out losses at these steps, in nats per token."""
    flops_per_step: float
    flops_before: float = 0.0
    """FLOPs that making the start has taken, such as passes over a calibration text."""

    def flops_to(self, loss: float) -> float | None:
        """FLOPs until the held-out loss first is ``loss``, linear between measurements; None where it never is."""
        for i, reached in enumerate(self.losses):
            if reached <= loss:
                return self.flops_before + self.flops_per_step * self._step(i, loss)
        return None

    def loss_after(self, flops: float) -> float | None:
        """Held-out loss when so many FLOPs are spent, linear between measurements, the last where training ends before;
        None where making the start takes more."""
        step = (flops - self.flops_before) / self.flops_per_step
        return float(np.interp(step, self.steps, self.losses)) if step >= 0 else None

    def _step(self, i: int, loss: float) -> float:
        if i == 0:
            return float(self.steps[0])
        (s0, l0), (s1, l1) = ((self.steps[j], self.losses[j]) for j in (i - 1, i))
        return s0 + (s1 - s0) * (l0 - loss) / (l0 - l1)


def flops_saved(method: Curve, scratch: Curve, loss: float | None = None) -> float | None:
    """The share of scratch's FLOPs that ``method`` saves at a held-out ``loss``, by default the one that scratch ends
    at; negative where it takes more, None where it never gets there. Where scratch does not, all of its FLOPs count:
    at least so much is saved."""
    wanted = scratch.losses[-1] if loss is None else loss
    ours, theirs = method.flops_to(wanted), scratch.flops_to(wanted)
    if theirs is None:
        theirs = scratch.flops_before + scratch.flops_per_step * scratch.steps[-1]
    return None if ours is None else (theirs - ours) / theirs
