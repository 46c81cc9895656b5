"""Published rules to compare with, one small file each."""

from __future__ import annotations

from collections.abc import Mapping

from bot_dist.evaluate.baselines.rule import Baseline, Rule
from bot_dist.evaluate.baselines.weight_selection import even_layers, first_layers

BASELINES: Mapping[str, Baseline] = {
    "weight-selection": first_layers,
    "weight-selection-even-layers": even_layers,
}

__all__ = ["BASELINES", "Baseline", "Rule"]
