"""Losses that jump: what counts as a spike. A batch that makes one can be left out before it changes anything."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from bot_dist.events.training import TrainingStep

WINDOW = 32
"""Steps that a loss is compared with; before there are as many, only one that is not finite is a spike."""


def highest(steps: Sequence[TrainingStep], deviations: float | None) -> float:
    """The highest loss that is no spike after ``steps``: the mean of the last ``WINDOW`` that were taken and so many
    standard ``deviations``; infinity where there are none."""
    last = [step.loss for step in steps[-2 * WINDOW :] if not step.skipped][-WINDOW:]
    if deviations is None or len(last) < WINDOW:
        return math.inf
    return statistics.fmean(last) + deviations * statistics.pstdev(last)


def is_spike(loss: float, limit: float) -> bool:
    return not (math.isfinite(loss) and loss <= limit)
