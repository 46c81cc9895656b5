"""Weight selection: the small model is made of evenly spaced rows and columns of the large one (Xu et al.,
*Initializing Models with Larger Ones*, ICLR 2024, arXiv 2311.18823).

Along ``heads`` whole heads are selected, so that each still computes what it did. A language model's head maps to the
same vocabulary, so it is selected along the width like every other map.
"""

from __future__ import annotations

import numpy as np

from bot_dist.errors import PlanError
from bot_dist.evaluate.baselines.rule import Rule
from bot_dist.families import Model
from bot_dist.wavelets import OperatorSpec


def first_layers(source: Model, target: Model) -> Rule:
    """As published: the first layers are kept."""
    return _rule("first layers", source, target, tuple(range(target.sizes["layer"])))


def even_layers(source: Model, target: Model) -> Rule:
    """With layers selected as all other axes are."""
    return _rule("even layers", source, target, evenly(source.sizes["layer"], target.sizes["layer"]))


def evenly(n_source: int, n_target: int) -> tuple[int, ...]:
    """A stride where it divides, else ``round(linspace(0, n_source − 1, n_target))``."""
    if n_source % n_target == 0:
        return tuple(range(0, n_source, n_source // n_target))
    return tuple(np.round(np.linspace(0, n_source - 1, n_target)).astype(int).tolist())


def _rule(which: str, source: Model, target: Model, layers: tuple[int, ...]) -> Rule:
    for axis, n in source.sizes.items():
        if target.sizes[axis] > n:
            raise PlanError(f"axis '{axis}' ({n} → {target.sizes[axis]}): weight selection only shrinks; leave it out")
    operators = {
        weight.name: {
            (i, 1): OperatorSpec(
                n_source=source.sizes[use.axis],
                n_target=target.sizes[use.axis],
                policy="select",
                indices=evenly(source.sizes[use.axis], target.sizes[use.axis]),
            )
            for i, use in enumerate(weight.uses)
            if target.sizes[use.axis] != source.sizes[use.axis]
        }
        for weight in target.weights
    }
    return Rule(name=f"weight selection (Xu et al.), {which}", operators=operators, layers=layers)
