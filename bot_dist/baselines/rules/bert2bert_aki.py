"""The baseline of bert2BERT's advanced knowledge initialisation (AKI; Chen et al., ACL 2022, arXiv 2110.07143): readers
take the parts of copies as in FPI, and a layer's new units are copies of the units of the layer above (the last layer's
of its own).

That is a sum of two rules, one per layer that units come from, and no single operator per axis.
"""

from __future__ import annotations

import torch

from bot_dist.baselines.rule import Baseline, Given, Made, Rule
from bot_dist.baselines.rules._copying import along, check_copied, copied
from bot_dist.model import Model, Weight

NAME = "bert2BERT, AKI"


def aki(source: Model, target: Model) -> Rule:
    check_copied(NAME, "bert2bert-aki", source, target)
    return Rule(name=NAME, make=_make, made=target)


def _make(given: Given) -> Made:
    return Made(weights=given.named({weight: _grown(given, weight) for weight in given.target.weights}))


def _grown(given: Given, weight: Weight) -> torch.Tensor:
    """``(layers or 1, *sizes)``."""
    values = copied(given, weight)
    if not weight.layered:
        return values
    above = torch.cat([values[1:], values[-1:]])
    new = torch.zeros((1,) * values.dim(), dtype=torch.bool)
    for dim, use in enumerate(weight.uses, start=1):
        if use.role != "read":
            new = new | along(dim, torch.arange(values.shape[dim]) >= given.model.sizes[use.axis], values)
    return torch.where(new, above, values)


BASELINE = Baseline(rule=aki)
