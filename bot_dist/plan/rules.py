"""The one table that says which operator an axis gets: from what a weight does along it, and what the user chose.

If weights are samples of a kernel, ``y(u) = ∫ W(u, v) x(v) dv``, the discrete weight is ``W(u, v) · dv``: an axis that
is summed over carries the measure ``n_source / n_target``, one that is put out carries none (``measure``). The paper's
literal filter bank gives √(n_source / n_target) to every axis (``orthonormal``); norms and biases keep their scale.

On the residual width copies and untouched units follow one formula: with Q an isometry, write √(n_t/n_s) · Q and read
√(n_s/n_t) · Q, so that the stream keeps its root mean square and what is read is what was written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from bot_dist.errors import PlanError
from bot_dist.model import Family, Weight
from bot_dist.operators import Copy, Lazy, Merge, OperatorSpec, Resample, Select, Stack
from bot_dist.recipe import TransferConfig
from bot_dist.tensors.axes import Role

RESIDUAL = "embed"
"""The residual width: the axis along which sublayers add to each other."""

ORDERED = ("layer", "position")
"""The axes whose indices have an order: they are extended symmetrically, where others wrap."""

Fill = Literal["neutral", "init"]
"""The content of target indices that take nothing from the source: nothing that acts, or the family's
initialisation."""


@dataclass(frozen=True, kw_only=True)
class AxisRule:
    """The operator along one axis of a weight, and what goes with it."""

    spec: OperatorSpec
    fill: Fill = "neutral"
    centred: bool = False
    """Whether the mean over the source is subtracted first: LayerNorm, which would do it, sees more units from now on.
    Not for a table that is a tied head too, for which it can't be."""


def axis_rule(
    family: Family, weight: Weight, axis: str, role: Role, n_source: int, n_target: int, config: TransferConfig
) -> AxisRule:
    """The operator along one axis of ``weight``, and what goes with it.

    Raises PlanError where the family can't keep its function under the chosen policy.
    """
    if n_source == n_target or role == "fixed":
        return AxisRule(spec=Resample(n_source=n_source, n_target=n_target))
    if role == "layer":
        return AxisRule(spec=_layers(family, weight, n_source, n_target, config))
    policy = config.width_of(axis, n_source, n_target)
    where = f"{weight.name}: axis '{axis}' ({n_source} → {n_target}): width policy '{policy}'"
    if policy == "resample":
        spec: OperatorSpec = Resample(
            n_source=n_source,
            n_target=n_target,
            gain=_row_sum(family, weight, axis, role, config, n_source, n_target),
            wavelet=config.wavelet_of(weight.name, axis),
            boundary="symmetric" if axis in ORDERED else "periodic",
        )
        return AxisRule(spec=spec)
    resample = f"resample it (width: {{{axis}: resample}})"
    if n_target < n_source:
        raise PlanError(f"{where} only grows; {resample}")
    if axis == "position" or (axis == "head_dim" and policy in ("lazy", "spread")):
        raise PlanError(f"{where} has no meaning there; {resample}")
    if policy == "spread" and axis == RESIDUAL and family.norm == "layer":
        raise PlanError(f"{where} would change LayerNorm's mean; copy or {resample}")
    copies = policy != "lazy"  # those of "spread" until it is known which are copied
    if axis == RESIDUAL and not copies and family.post_norm:
        raise PlanError(f"{where}: new units would change the norms of family '{family.name}'; copy or {resample}")
    if role == "pointwise":
        return AxisRule(spec=_taken(n_source, n_target, copies=copies))
    if axis == RESIDUAL:
        ratio = n_target / n_source if role == "write" else n_source / n_target
        spec = _taken(n_source, n_target, copies=copies, gain=math.sqrt(ratio), split=0.5)
        unequal = not copies or n_target % n_source != 0
        added = weight.into_residual or weight.kind == "table"
        centred = unequal and added and role == "write" and family.norm == "layer"
        return AxisRule(spec=spec, fill="init" if role == "read" else "neutral", centred=centred)
    split = 0.5 if axis == "head_dim" else 1.0 if role == "read" else 0.0
    spec = _taken(n_source, n_target, copies=copies, split=split)
    return AxisRule(spec=spec, fill="init" if role == "write" else "neutral")


def _taken(n_source: int, n_target: int, *, copies: bool, gain: float = 1.0, split: float = 0.0) -> OperatorSpec:
    """The operator of copies, which share the values that they take as ``split`` says, or else of old indices with new
    ones beside them."""
    if copies:
        return Copy(n_source=n_source, n_target=n_target, gain=gain, split=split)
    return Lazy(n_source=n_source, n_target=n_target, gain=gain)


def _layers(family: Family, weight: Weight, n_source: int, n_target: int, config: TransferConfig) -> OperatorSpec:
    depth = config.depth_of(grows=n_target > n_source)
    if depth in ("identity", "interpolate", "stack") and n_target < n_source:
        raise PlanError(
            f"{weight.name}: axis 'layer': depth policy '{depth}' only grows, and {n_source} → {n_target} "
            f"shrinks; use depth 'wavelet' or 'even'"
        )
    if depth in ("even", "similar", "pairs") and n_target > n_source:
        raise PlanError(
            f"{weight.name}: axis 'layer': depth policy '{depth}' only shrinks, and {n_source} → {n_target} "
            f"grows; use depth 'identity', 'wavelet', 'interpolate' or 'stack'"
        )
    if depth == "pairs" and 2 * n_target < n_source:
        raise PlanError(
            f"{weight.name}: axis 'layer': depth policy 'pairs' merges two blocks at most, and {n_source} → {n_target} "
            f"takes more; use {-(-n_source // 2)} layers or more, or depth 'similar'"
        )
    if depth == "stack":
        return Stack(n_source=n_source, n_target=n_target)
    if depth != "wavelet":
        speaks = weight.speaking if depth == "identity" else "every"
        return Copy(n_source=n_source, n_target=n_target, speaks=speaks)
    return Resample(
        n_source=n_source,
        n_target=n_target,
        gain=_row_sum(family, weight, "layer", "layer", config, n_source, n_target),
        wavelet=config.wavelet_of(weight.name, "layer"),
        boundary="symmetric",
    )


def kept_layers(family: Family, weight: Weight, layers: Sequence[int], n_source: int, depth: str) -> OperatorSpec:
    """The operator along layers of which ``layers`` are kept; with depth ``pairs`` they are the first of those that
    become one, whose weights are averaged, but what they write into the residual stream adds up (where no norm
    comes after it)."""
    indices, n_target = tuple(layers), len(layers)
    if depth != "pairs":
        return Select(n_source=n_source, n_target=n_target, indices=indices)
    adds = weight.into_residual and family.half_steps
    return Merge(n_source=n_source, n_target=n_target, indices=indices, split=0.0 if adds else 1.0)


def _is_orthonormal(config: TransferConfig, axis: str, n_source: int, n_target: int) -> bool:
    """Whether an axis is resampled with the paper's gain: ``auto`` gives it to axes that shrink."""
    resampled = axis == "layer" or config.width_of(axis, n_source, n_target) == "resample"
    return resampled and (config.gain == "orthonormal" or (config.gain == "auto" and n_target < n_source))


def _row_sum(
    family: Family, weight: Weight, axis: str, role: Role, config: TransferConfig, n_source: int, n_target: int
) -> float:
    """The sum of each row of a resampling operator."""
    ratio = n_source / n_target
    if role == "pointwise":
        return 1.0
    if _is_orthonormal(config, axis, n_source, n_target) and weight.kind != "vector":
        return math.sqrt(ratio)
    if role == "layer":
        return ratio if weight.into_residual and family.half_steps else 1.0
    return ratio if role == "read" else 1.0


def query_factor(config: TransferConfig, n_source: int, n_target: int) -> float:
    """The factor on queries when head_dim changes, so that scores q·k/√head_dim keep their scale: with rows of
    q and k that sum to g, q·k grows by g² · n_t/n_s and the softmax scale by √(n_s/n_t). Copies share g² out."""
    shared = config.width_of("head_dim", n_source, n_target) == "copy"
    orthonormal = _is_orthonormal(config, "head_dim", n_source, n_target)
    squared = n_source / n_target if shared or orthonormal else 1.0
    return math.sqrt(n_source / n_target) / squared


def tied_head_factor(config: TransferConfig, n_source: int, n_target: int) -> float:
    """The factor on the norm before a tied head: the table has the gain of the written embedding, and the
    head that reads it would have had the gain of a read axis."""
    return 1.0 if _is_orthonormal(config, RESIDUAL, n_source, n_target) else n_source / n_target


def learning_rate_factor(weight: Weight, role: Role, n_source: int, n_target: int, spec: OperatorSpec | None) -> float:
    """The factor of one axis of ``weight`` on Adam's learning rate; weight decay takes its inverse.

    Adam moves every weight by the learning rate, whatever its gradient, and a read axis of n_target terms adds
    n_target of those moves: scaled by n_source/n_target, a step in function space stays what it was. The same holds
    for residual writers where more layers take shorter steps.
    """
    if weight.kind != "matrix" or n_source == n_target:
        return 1.0
    ratio = n_source / n_target
    if role == "layer" and spec is not None:
        shorter = weight.into_residual and math.isclose(spec.gain, ratio)
        return ratio if shorter else 1.0
    return ratio if role == "read" else 1.0
