"""The learning rate as a function of the step."""

from __future__ import annotations

import math

FLOOR = 0.1
"""Share of the peak at which the cosine ends."""


def learning_rate(step: int, *, peak: float, warmup: int, steps: int) -> float:
    """Learning rate of optimizer step ``step`` (the first is 0) of ``steps``.

    Linear from ``peak / warmup`` to ``peak`` over the first ``warmup`` steps, then half a cosine from ``peak`` (at step
    ``warmup``) down to ``FLOOR · peak`` (at the last step).
    """
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
    return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
