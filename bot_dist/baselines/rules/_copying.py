"""Growing by copies of units and heads, whose readers take each copy's part: what several rules share."""

from __future__ import annotations

import torch

from bot_dist.baselines.rule import Given, changed, only_grows, refuse_axes
from bot_dist.errors import PlanError
from bot_dist.model import Model, Weight
from bot_dist.operators import Select
from bot_dist.plan import OperatorTable


def check_copied(what: str, key: str, source: Model, target: Model) -> None:
    """Raise PlanError where ``copied`` can't say what a rule about widths, which recipes call ``key``, does."""
    only_grows(what, source, target)
    refuse_axes(what, source, target, "head_dim", "position")
    if any(w.root_width or w.offset for w in target.weights):
        raise PlanError(f"{what}: the embeddings of family '{target.family.name}' are scaled; use another baseline")
    if "layer" in changed(source, target):
        before, after = changed(source, target)["layer"]
        raise PlanError(f"axis 'layer' ({before} → {after}): {what} grows widths; join it: {key}+stack")


def copied(given: Given, weight: Weight) -> torch.Tensor:
    """``(layers or 1, *sizes)``: unit i a copy of unit i mod n, readers taking each copy's part."""
    source, target = given.model.sizes, given.target.sizes
    values = given.values(weight)
    for dim, use in enumerate(weight.uses, start=1):
        n_source, n_target = source[use.axis], target[use.axis]
        if n_source == n_target:
            continue
        origin = torch.arange(n_target) % n_source
        values = values.index_select(dim, origin)
        if use.role == "read":
            values = values / along(dim, origin.bincount()[origin], values)
    if given.target.tied and weight.name in given.target.family.before_head:
        values = values * (source["embed"] / target["embed"])
    return values


def along(dim: int, vector: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A vector in a shape that broadcasts along a dimension of ``values``."""
    return vector.view([-1 if i == dim else 1 for i in range(values.dim())])


def check_whole_ratios(source: Model, target: Model) -> None:
    """Raise PlanError where a width grows by no whole number."""
    for axis, (before, after) in changed(source, target).items():
        if axis != "layer" and after % before:
            raise PlanError(
                f"axis '{axis}' ({before} → {after}): HyperCloning is for integer ratios; use a multiple of {before}, "
                f"or bert2bert-fpi"
            )


def copies(what: str, source: Model, target: Model) -> OperatorTable:
    """Operators that copy the units of each width that grows. Raises PlanError where one shrinks or can't be copied."""
    only_grows(what, source, target)
    refuse_axes(what, source, target, "head_dim", "position")
    return {
        weight.name: {
            (i, 1): Select(
                n_source=source.sizes[use.axis],
                n_target=target.sizes[use.axis],
                indices=tuple(j % source.sizes[use.axis] for j in range(target.sizes[use.axis])),
                split=1.0 if use.role == "read" else 0.0,
            )
            for i, use in enumerate(weight.uses)
            if target.sizes[use.axis] != source.sizes[use.axis]
        }
        for weight in target.weights
    }
