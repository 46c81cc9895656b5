"""Every layer again, behind itself (Chang et al., *Multi-level Residual Networks from Dynamical Systems View*,
2018)."""

from __future__ import annotations

from bot_dist.baselines.rule import Baseline, Rule, only_grows
from bot_dist.model import Model


def interpolate(source: Model, target: Model) -> Rule:
    only_grows("interpolated layers", source, target)
    return Rule(name="interpolated layers", depth="interpolate")


BASELINE = Baseline(rule=interpolate, layers_only=True)
