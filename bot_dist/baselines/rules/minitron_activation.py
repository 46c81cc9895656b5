"""Minitron's selection by activation (Muralidharan et al., *Compact Language Models via Pruning and Knowledge
Distillation*, NeurIPS 2024, arXiv 2407.14679), without its distillation.

Units and heads are ranked by the root mean square of what they put out on a text or on images (of coordinates, what
norms put out; of heads, what attention gives them); layers by how much they change the residual stream (block
importance).
"""

from __future__ import annotations

import numpy as np

from bot_dist.baselines.rule import Baseline, Given, Made, Moments, Rule, changed
from bot_dist.baselines.rules._minitron import HEADS, Array, check_selected, selected
from bot_dist.errors import PlanError
from bot_dist.model import Model, Weight


def activation(source: Model, target: Model) -> Rule:
    check_selected("activation", source, target)
    return Rule(name="Minitron, by activation", make=_by_activation, made=target)


def _by_activation(given: Given) -> Made:
    statistics, model = given.statistics(), given.model
    reader = {axis: _reader(model, axis) for axis in changed(model, given.target) if axis in ("mlp", *HEADS)}

    def energy(axis: str, layer: int) -> Array:
        if axis == "embed":
            return _of_norms(given, statistics)
        weight = reader[axis]
        names = [use.axis for use in weight.uses if use.role == "read" or use.axis == "head_dim"]
        moment = np.diag(statistics.moment(weight.name.removesuffix(".weight"), layer))
        shaped = moment.reshape([model.sizes[name] for name in names])
        return np.asarray(np.moveaxis(shaped, names.index(axis), 0).reshape(model.sizes[axis], -1).sum(1))

    flops = float(statistics.tokens * model.flops_per_token(model.tokens_per_sample(given.calibration_context)))
    return selected(given, energy, 1 - statistics.similarity, flops=flops)


def _reader(model: Model, axis: str) -> Weight:
    readers = model.readers(axis)
    if len(readers) != 1:
        raise PlanError(
            f"minitron: '{axis}' is read by {', '.join(w.name for w in readers) or 'no map'}, and one map alone "
            f"can tell what is kept of it; use another baseline"
        )
    return readers[0]


def _of_norms(given: Given, statistics: Moments) -> Array:
    """Mean squares of what the norms of the residual stream put out, ``(embed,)``, over all of them."""
    model = given.model
    total = np.zeros(model.sizes["embed"])
    norms = {name: w for w in model.weights if (name := model.family.norm_of(w)) and not w.into_residual}
    for name in norms:
        parts = {w: given.values(w).double().numpy() for w in model.weights if model.family.norm_of(w) == name}
        scale = next(v + w.offset for w, v in parts.items() if not w.name.endswith(".bias"))
        shift = next((v for w, v in parts.items() if w.name.endswith(".bias")), np.zeros_like(scale))
        for layer in range(len(scale)):
            square = np.diag(statistics.moment(name, layer))
            if model.family.post_norm:  # it is of the norm's output
                total += square
            else:
                total += scale[layer] ** 2 * square + shift[layer] * (
                    2 * scale[layer] * statistics.mean(name, layer) + shift[layer]
                )
    return total


BASELINE = Baseline(rule=activation)
