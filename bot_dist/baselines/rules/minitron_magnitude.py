"""Minitron's selection by magnitude (Muralidharan et al., *Compact Language Models via Pruning and Knowledge
Distillation*, NeurIPS 2024, arXiv 2407.14679), without its distillation.

Units, heads, coordinates and layers are ranked by the norm of all weights that belong to them.
"""

from __future__ import annotations

import numpy as np
import torch

from bot_dist.baselines.rule import Baseline, Given, Made, Rule
from bot_dist.baselines.rules._minitron import Array, check_selected, selected
from bot_dist.model import Model


def magnitude(source: Model, target: Model) -> Rule:
    check_selected("magnitude", source, target)
    return Rule(name="Minitron, by magnitude", make=_by_magnitude, made=target)


def _by_magnitude(given: Given) -> Made:
    squares = {weight: given.values(weight).double().square() for weight in given.model.weights}

    def energy(axis: str, layer: int) -> Array:
        sums = np.zeros(given.model.sizes[axis])
        for weight, values in squares.items():
            part = values[layer] if weight.layered and axis != "embed" else values.sum(0)
            for i, use in enumerate(weight.uses):
                if use.axis == axis and use.role != "fixed" and (weight.layered or axis == "embed"):
                    sums += part.movedim(i, 0).flatten(1).sum(1).numpy() if part.dim() > 1 else part.numpy()
        return sums

    writers = [
        values.flatten(1).sum(1) for weight, values in squares.items() if weight.layered and weight.into_residual
    ]
    return selected(given, energy, torch.stack(writers).sum(0).numpy(), flops=0.0)


BASELINE = Baseline(rule=magnitude)
