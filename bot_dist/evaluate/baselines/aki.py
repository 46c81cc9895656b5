"""bert2BERT's advanced knowledge initialisation (AKI; Chen et al., ACL 2022, arXiv 2110.07143): readers take the parts
of copies as in FPI, and a layer's new units are copies of the units of the layer above (the last layer's of its own).

That is a sum of two rules, one per layer that units come from, and no single operator per axis.
"""

from __future__ import annotations

import torch

from bot_dist.errors import PlanError
from bot_dist.evaluate.baselines.rule import Given, Made, Rule, changed, only_grows, refuse_axes
from bot_dist.families import Model, Weight

NAME = "bert2BERT, AKI"


def aki(source: Model, target: Model) -> Rule:
    only_grows(NAME, source, target)
    refuse_axes(NAME, source, target, "head_dim", "position")
    if any(w.root_width or w.offset for w in target.weights):
        raise PlanError(f"{NAME}: the embeddings of family '{target.family.name}' are scaled; use another baseline")
    if "layer" in changed(source, target):
        before, after = changed(source, target)["layer"]
        raise PlanError(f"axis 'layer' ({before} → {after}): {NAME} grows widths; join it: bert2bert-aki+stack")
    return Rule(name=NAME, make=_make, made=target)


def _make(given: Given) -> Made:
    return Made(weights=given.named({weight: _grown(given, weight) for weight in given.target.weights}))


def _grown(given: Given, weight: Weight) -> torch.Tensor:
    """``(layers or 1, *sizes)``."""
    source, target = given.model.sizes, given.target.sizes
    values = given.values(weight)
    new = torch.zeros((1,) * values.dim(), dtype=torch.bool)
    for dim, use in enumerate(weight.uses, start=1):
        n_source, n_target = source[use.axis], target[use.axis]
        if n_source == n_target:
            continue
        origin = torch.arange(n_target) % n_source
        shape = [1] * values.dim()
        shape[dim] = n_target
        values = values.index_select(dim, origin)
        if use.role == "read":
            values = values / origin.bincount()[origin].view(shape)
        else:
            new = new | (torch.arange(n_target) >= n_source).view(shape)
    if weight.layered:
        above = torch.cat([values[1:], values[-1:]])
        values = torch.where(new, above, values)
    if given.target.tied and weight.name in given.target.family.before_head:
        values = values * (source["embed"] / target["embed"])
    return values
