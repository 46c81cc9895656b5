"""The one table that says what the rows of every operator sum to.

If weights are samples of a kernel, ``y(u) = ∫ W(u, v) x(v) dv``, the discrete weight is ``W(u, v) · dv``: an axis that
is summed over carries the measure ``n_source / n_target``, one that is put out carries none (``measure``). The paper's
literal filter bank gives √(n_source / n_target) to every axis (``orthonormal``); norms and biases keep their scale.
"""

from __future__ import annotations

import math
from typing import Literal

from bot_dist.axes import Role
from bot_dist.families import Weight

Gain = Literal["auto", "measure", "orthonormal"]


def resolve(gain: Gain, n_source: int, n_target: int) -> Gain:
    """What ``auto`` means for an axis: ``measure`` where it grows, ``orthonormal`` where it shrinks."""
    if gain != "auto":
        return gain
    return "measure" if n_target >= n_source else "orthonormal"


def row_sum(weight: Weight, role: Role, gain: Gain, n_source: int, n_target: int) -> float:
    """What each row of the operator along one axis of ``weight`` sums to."""
    ratio = n_source / n_target
    if resolve(gain, n_source, n_target) == "orthonormal" and weight.kind != "vector":
        return math.sqrt(ratio)
    if role == "layer":
        return ratio if weight.into_residual else 1.0
    return ratio if role == "read" else 1.0


def tied_head_factor(gain: Gain, n_source: int, n_target: int) -> float:
    """What the norm before a tied head is multiplied by: the table has the gain of the written embedding, and the
    head that reads it would have had the gain of a read axis."""
    if resolve(gain, n_source, n_target) == "orthonormal":
        return 1.0
    return n_source / n_target
