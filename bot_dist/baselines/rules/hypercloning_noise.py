"""HyperCloning with its optional noise, as its authors' code has it (arXiv 2409.12903).

The parts that a map takes of two copies get ± the same normal noise, drawn anew for each pair and for each copy of the
map's output, which cancels as long as the copies are alike.
"""

from __future__ import annotations

import torch

from bot_dist.baselines.rule import Baseline, Given, Made, Rule
from bot_dist.baselines.rules._copying import along, check_copied, check_whole_ratios, copied
from bot_dist.model import Model

NOISE = 10.0
"""Decibels of the weights' power over the noise's: the paper's."""


def hypercloning_noise(source: Model, target: Model) -> Rule:
    check_whole_ratios(source, target)
    check_copied("HyperCloning with noise", "hypercloning-noise", source, target)
    return Rule(name=f"HyperCloning, noise of {NOISE:g} dB", make=_noisy, made=target)


def _noisy(given: Given) -> Made:
    drawn = torch.Generator().manual_seed(given.seed)
    made = {weight: copied(given, weight) for weight in given.target.weights}
    for weight, values in made.items():
        for dim, use in enumerate(weight.uses, start=1):
            n_source = given.model.sizes[use.axis]
            if use.role == "read" and given.target.sizes[use.axis] > n_source:
                values += _noise(values, dim, n_source, drawn)
                break  # noise that cancels along one axis cancels
    return Made(weights=given.named(made))


def _noise(values: torch.Tensor, dim: int, n_source: int, drawn: torch.Generator) -> torch.Tensor:
    """For each layer, of a deviation that its values have: + what is drawn for a copy, − for the next; a last one
    without a partner gets none."""
    index = torch.arange(values.shape[dim])
    copy = index // n_source
    sign = torch.where(copy % 2 == 0, 1.0, -1.0)
    sign[(copy % 2 == 0) & (index + n_source >= len(index))] = 0.0
    power = values.square().mean(dim=tuple(range(1, values.dim())), keepdim=True) / 10 ** (NOISE / 10)
    noise = torch.randn(values.shape, generator=drawn) * power.sqrt()
    return noise.index_select(dim, index - n_source * (copy % 2)) * along(dim, sign, values)


BASELINE = Baseline(rule=hypercloning_noise)
