"""Weight selection: the small model is made of evenly spaced rows and columns of the large one (Xu et al.,
*Initializing Models with Larger Ones*, ICLR 2024, arXiv 2311.18823), and of its first layers.

Along ``heads`` whole heads are selected, so that each still computes what it did. A language model's head maps to the
same vocabulary, so it is selected along the width like every other map.
"""

from __future__ import annotations

import numpy as np

from bot_dist.baselines.rule import Baseline, Rule, only_shrinks
from bot_dist.model import Model
from bot_dist.operators import Select


def weight_selection(source: Model, target: Model) -> Rule:
    only_shrinks("weight selection", source, target)
    operators = {
        weight.name: {
            (i, 1): Select(
                n_source=source.sizes[use.axis],
                n_target=target.sizes[use.axis],
                indices=evenly(source.sizes[use.axis], target.sizes[use.axis]),
            )
            for i, use in enumerate(weight.uses)
            if target.sizes[use.axis] != source.sizes[use.axis]
        }
        for weight in target.weights
    }
    layers = tuple(range(target.sizes["layer"]))
    return Rule(name="weight selection (Xu et al.)", operators=operators, layers=layers)


def evenly(n_source: int, n_target: int) -> tuple[int, ...]:
    """A stride where it divides, else ``round(linspace(0, n_source − 1, n_target))``."""
    if n_source % n_target == 0:
        return tuple(range(0, n_source, n_source // n_target))
    return tuple(np.round(np.linspace(0, n_source - 1, n_target)).astype(int).tolist())


BASELINE = Baseline(rule=weight_selection)
