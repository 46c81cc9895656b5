"""Layers dropped uniformly."""

from __future__ import annotations

from bot_dist.baselines.rule import Baseline, Rule, only_shrinks
from bot_dist.baselines.rules.weight_selection import evenly
from bot_dist.model import Model


def even_layers(source: Model, target: Model) -> Rule:
    only_shrinks("dropping layers", source, target)
    layers = evenly(source.sizes["layer"], target.sizes["layer"])
    return Rule(name="layers dropped uniformly", layers=layers)


BASELINE = Baseline(rule=even_layers, layers_only=True)
