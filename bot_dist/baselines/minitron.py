"""Selection by rank, in the manner of Minitron (Muralidharan et al., *Compact Language Models via Pruning and Knowledge
Distillation*, NeurIPS 2024, arXiv 2407.14679), without its distillation.

FFN units and heads are ranked within each layer, coordinates of the residual width over all layers, and those of
highest rank are kept in their order, weights as they are. Ranked by magnitude: the norm of all weights that belong to
it. Ranked by activation: the root mean square of what it puts out on a text or on images (of coordinates, what
norms put out; of heads, what attention gives them); layers by how much they change the residual stream (block
importance).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch

from bot_dist.baselines.rule import Given, Made, Moments, Rule, changed, only_shrinks, refuse_axes
from bot_dist.errors import PlanError
from bot_dist.model import Model, Weight

Array = npt.NDArray[np.float64]
Kept = dict[tuple[str, int], torch.Tensor]
"""By axis and layer of the source: indices, ascending. Coordinates of the residual width: layer 0."""
HEADS = ("heads", "kv_heads", "group")


def magnitude(source: Model, target: Model) -> Rule:
    _check("magnitude", source, target)
    return Rule(name="Minitron, by magnitude", make=_by_magnitude, made=target)


def activation(source: Model, target: Model) -> Rule:
    _check("activation", source, target)
    return Rule(name="Minitron, by activation", make=_by_activation, made=target)


def _check(by: str, source: Model, target: Model) -> None:
    what = f"selection by {by}"
    only_shrinks(what, source, target)
    refuse_axes(what, source, target, "head_dim", "position")


def _by_magnitude(given: Given) -> Made:
    squares = {weight: given.values(weight).double().square() for weight in given.model.weights}

    def energy(axis: str, layer: int) -> Array:
        found = np.zeros(given.model.sizes[axis])
        for weight, values in squares.items():
            part = values[layer] if weight.layered and axis != "embed" else values.sum(0)
            for i, use in enumerate(weight.uses):
                if use.axis == axis and use.role != "fixed" and (weight.layered or axis == "embed"):
                    found += part.movedim(i, 0).flatten(1).sum(1).numpy() if part.dim() > 1 else part.numpy()
        return found

    writers = [
        values.flatten(1).sum(1) for weight, values in squares.items() if weight.layered and weight.into_residual
    ]
    return _selected(given, energy, torch.stack(writers).sum(0).numpy(), flops=0.0)


def _by_activation(given: Given) -> Made:
    found, model = given.statistics(), given.model
    reader = {axis: _reader(model, axis) for axis in changed(model, given.target) if axis in ("mlp", *HEADS)}

    def energy(axis: str, layer: int) -> Array:
        if axis == "embed":
            return _of_norms(given, found)
        weight = reader[axis]
        names = [use.axis for use in weight.uses if use.role == "read" or use.axis == "head_dim"]
        moment = np.diag(found.moment(weight.name.removesuffix(".weight"), layer))
        shaped = moment.reshape([model.sizes[name] for name in names])
        return np.asarray(np.moveaxis(shaped, names.index(axis), 0).reshape(model.sizes[axis], -1).sum(1))

    flops = float(found.tokens * model.flops_per_token(model.tokens_per_sample(given.calibration_context)))
    return _selected(given, energy, 1 - found.similarity, flops=flops)


def _reader(model: Model, axis: str) -> Weight:
    readers = model.readers(axis)
    if len(readers) != 1:
        raise PlanError(
            f"minitron: '{axis}' is read by {', '.join(w.name for w in readers) or 'no map'}, and one map alone "
            f"can tell what is kept of it; use another baseline"
        )
    return readers[0]


def _of_norms(given: Given, found: Moments) -> Array:
    """Mean squares of what the norms of the residual stream put out, ``(embed,)``, over all of them."""
    model = given.model
    total = np.zeros(model.sizes["embed"])
    norms = {name: w for w in model.weights if (name := model.family.norm_of(w)) and not w.into_residual}
    for name in norms:
        parts = {w: given.values(w).double().numpy() for w in model.weights if model.family.norm_of(w) == name}
        scale = next(v + w.offset for w, v in parts.items() if not w.name.endswith(".bias"))
        shift = next((v for w, v in parts.items() if w.name.endswith(".bias")), np.zeros_like(scale))
        for layer in range(len(scale)):
            square = np.diag(found.moment(name, layer))
            if model.family.post_norm:  # it is of the norm's output
                total += square
            else:
                total += scale[layer] ** 2 * square + shift[layer] * (
                    2 * scale[layer] * found.mean(name, layer) + shift[layer]
                )
    return total


def _selected(given: Given, energy: Callable[[str, int], Array], importance: Array, *, flops: float) -> Made:
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
