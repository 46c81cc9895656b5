"""The learning rate as a function of the step."""

from __future__ import annotations

import math
from typing import Literal

FLOOR = 0.1
"""Share of the peak at which both schedules end."""

DECAY = 0.2
"""Share of the steps in which ``stable`` falls, where their number is not given."""


def learning_rate(
    step: int,
    *,
    peak: float,
    warmup: int,
    steps: int,
    schedule: Literal["cosine", "stable"] = "cosine",
    decay: int | None = None,
) -> float:
    """Learning rate of optimizer step ``step`` (the first is 0) of ``steps``.

    Linear from ``peak / warmup`` to ``peak`` over the first ``warmup`` steps. Then ``cosine``: half a cosine from
    ``peak`` (at step ``warmup``) down to ``FLOOR · peak`` (at the last step). ``stable``: ``peak``, and over the last
    ``decay`` steps (never earlier than the warm-up ends) linear to ``FLOOR · peak``.
    """
    if step < warmup:
        return peak * ramp(step, warmup)
    if schedule == "cosine":
        progress = min(1.0, (step - warmup) / max(1, steps - 1 - warmup))
        return peak * (FLOOR + (1 - FLOOR) * (1 + math.cos(math.pi * progress)) / 2)
    falls = min(round(DECAY * steps) if decay is None else decay, steps - warmup)
    return peak * (1 - (1 - FLOOR) * min(1.0, max(0, step - (steps - 1 - falls)) / max(1, falls)))


def ramp(step: int, warmup: int) -> float:
    """Share of the peak in step ``step`` of a linear warm-up over ``warmup`` steps; 1 after them."""
    return min(1.0, (step + 1) / max(1, warmup))
