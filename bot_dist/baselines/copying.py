"""Growing by copies of units and heads, whose readers take each copy's part.

- HyperCloning (Samragh et al., *Scaling Smart*, arXiv 2409.12903), for integer ratios:
  ``W.repeat(n_out, n_in) / n_in``; biases, norms and embeddings are tiled; heads are repeated, and keep their width;
  the head's input is divided by n.
- With its optional noise, as its authors' code has it: the parts that a map takes of two copies get ± the same normal
  noise, drawn anew for each pair and for each copy of the map's output, which cancels as long as the copies are alike.
- bert2BERT's function-preserving initialisation (FPI; Chen et al., ACL 2022, arXiv 2110.07143; as Net2Net), for any:
  unit i is a copy of unit i mod n, where the paper draws those beyond n. Off integers the residual stream's norms see
  some units more often than others, and the function is kept only nearly.
"""

from __future__ import annotations

import torch

from bot_dist.baselines.rule import Given, Made, Rule, changed, only_grows, refuse_axes
from bot_dist.errors import PlanError
from bot_dist.model import Model, Weight
from bot_dist.operators import Select
from bot_dist.plan import OperatorTable

NOISE = 10.0
"""Decibels of the weights' power over the noise's: the paper's."""


def hypercloning(source: Model, target: Model) -> Rule:
    _whole_ratios(source, target)
    return Rule(name="HyperCloning", operators=_copies("HyperCloning", source, target), exact=True)


def hypercloning_noise(source: Model, target: Model) -> Rule:
    _whole_ratios(source, target)
    check_copied("HyperCloning with noise", "hypercloning-noise", source, target)
    return Rule(name=f"HyperCloning, noise of {NOISE:g} dB", make=_noisy, made=target)


def fpi(source: Model, target: Model) -> Rule:
    return Rule(name="bert2BERT, FPI", operators=_copies("bert2BERT", source, target), exact=True)


def check_copied(what: str, key: str, source: Model, target: Model) -> None:
    """Raise PlanError where ``copied`` can't say what a rule about widths, which recipes call ``key``, does."""
    only_grows(what, source, target)
    refuse_axes(what, source, target, "head_dim", "position")
    if any(w.root_width or w.offset for w in target.weights):
        raise PlanError(f"{what}: the embeddings of family '{target.family.name}' are scaled; use another baseline")
    if "layer" in changed(source, target):
        before, after = changed(source, target)["layer"]
        raise PlanError(f"axis 'layer' ({before} → {after}): {what} grows widths; join it: {key}+stack")


def copied(given: Given, weight: Weight) -> torch.Tensor:
    """``(layers or 1, *sizes)``: unit i a copy of unit i mod n, readers taking each copy's part."""
    source, target = given.model.sizes, given.target.sizes
    values = given.values(weight)
    for dim, use in enumerate(weight.uses, start=1):
        n_source, n_target = source[use.axis], target[use.axis]
        if n_source == n_target:
            continue
        origin = torch.arange(n_target) % n_source
        values = values.index_select(dim, origin)
        if use.role == "read":
            values = values / along(dim, origin.bincount()[origin], values)
    if given.target.tied and weight.name in given.target.family.before_head:
        values = values * (source["embed"] / target["embed"])
    return values


def along(dim: int, vector: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A vector in a shape that broadcasts along a dimension of ``values``."""
    return vector.view([-1 if i == dim else 1 for i in range(values.dim())])


def _whole_ratios(source: Model, target: Model) -> None:
    for axis, (before, after) in changed(source, target).items():
        if axis != "layer" and after % before:
            raise PlanError(
                f"axis '{axis}' ({before} → {after}): HyperCloning is for integer ratios; use a multiple of {before}, "
                f"or bert2bert-fpi"
            )


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


def _copies(what: str, source: Model, target: Model) -> OperatorTable:
    only_grows(what, source, target)
    refuse_axes(what, source, target, "head_dim", "position")
    return {
        weight.name: {
            (i, 1): Select(
                n_source=source.sizes[use.axis],
                n_target=target.sizes[use.axis],
                indices=tuple(j % source.sizes[use.axis] for j in range(target.sizes[use.axis])),
                split=1.0 if use.role == "read" else 0.0,
            )
            for i, use in enumerate(weight.uses)
            if target.sizes[use.axis] != source.sizes[use.axis]
        }
        for weight in target.weights
    }
