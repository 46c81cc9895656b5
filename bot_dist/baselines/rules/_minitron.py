"""Selection by rank, in the manner of Minitron (Muralidharan et al., *Compact Language Models via Pruning and Knowledge
Distillation*, NeurIPS 2024, arXiv 2407.14679), without its distillation: what its rules share.

FFN units and heads are ranked within each layer, coordinates of the residual width over all layers, and those of
highest rank are kept in their order, weights as they are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from bot_dist.baselines.rule import Given, Made, changed, only_shrinks, refuse_axes
from bot_dist.model import Model, Weight

Array = npt.NDArray[np.float64]
Kept = dict[tuple[str, int], torch.Tensor]
"""Kept indices, ascending, by axis and layer of the source; coordinates of the residual width are of layer 0."""
HEADS = ("heads", "kv_heads", "group")


def check_selected(by: str, source: Model, target: Model) -> None:
    """Raise PlanError where an axis grows, or can't be selected from."""
    what = f"selection by {by}"
    only_shrinks(what, source, target)
    refuse_axes(what, source, target, "head_dim", "position")


def selected(given: Given, energy: Callable[[str, int], Array], importance: Array, *, flops: float) -> Made:
    """The target's weights: what has most ``energy(axis, layer)``, and the layers of most ``importance``."""
    source, target = given.model, given.target
    axes = changed(source, target)
    kept: Kept = {}
    for axis, (_, n) in axes.items():
        for layer in range(1 if axis == "embed" else source.sizes["layer"]) if axis != "layer" else ():
            kept[axis, layer] = _highest(energy(axis, layer), n)
    layers = _highest(importance, target.sizes["layer"])

    def of_target(weight: Weight) -> torch.Tensor:
        values = given.values(weight)
        if weight.layered:
            return torch.stack([_taken(values[layer], weight, int(layer), kept) for layer in layers])
        return _taken(values[0], weight, 0, kept)[None]

    named = given.named({weight: of_target(weight) for weight in target.weights})
    return Made(weights=named, flops=flops, facts={"layers": layers.tolist()})


def _taken(values: torch.Tensor, weight: Weight, layer: int, kept: Kept) -> torch.Tensor:
    for i, use in enumerate(weight.uses):
        indices = kept.get((use.axis, 0 if use.axis == "embed" else layer))
        if indices is not None and use.role != "fixed":
            values = values.index_select(i, indices)
    return values


def _highest(scores: Array, n: int) -> torch.Tensor:
    """Indices of the ``n`` highest, ascending."""
    return torch.from_numpy(np.sort(np.argsort(-scores, kind="stable")[:n]))
