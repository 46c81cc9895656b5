"""Published rules to compare with, one small file each; a rule about layers can be joined to one about widths."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from bot_dist.baselines.aki import aki
from bot_dist.baselines.copying import fpi, hypercloning, hypercloning_noise
from bot_dist.baselines.depth import even_layers, interpolate, llama_pro, stack
from bot_dist.baselines.front import front
from bot_dist.baselines.ligo import ligo
from bot_dist.baselines.minitron import activation, magnitude
from bot_dist.baselines.rule import Baseline, Batch, Given, Made, Moments, Rule, changed
from bot_dist.baselines.weight_selection import weight_selection
from bot_dist.errors import PlanError, RecipeError, nearest
from bot_dist.model.declaration import Model

DEPTHS: Mapping[str, Baseline] = {
    "stack": stack,
    "interpolate": interpolate,
    "llama-pro": llama_pro,
    "even-layers": even_layers,
}
BASELINES: Mapping[str, Baseline] = {
    "weight-selection": weight_selection,
    "minitron-magnitude": magnitude,
    "minitron-activation": activation,
    "hypercloning": hypercloning,
    "hypercloning-noise": hypercloning_noise,
    "bert2bert-fpi": fpi,
    "bert2bert-aki": aki,
    "ligo": ligo,
    "front": front,
    **DEPTHS,
}


def baseline(name: str) -> Baseline:
    """The rule of a name, or of two: ``hypercloning+stack`` takes widths by the one and layers by the other. It raises
    PlanError where an axis changes that neither speaks of.

    Raises RecipeError for names that are not known.
    """
    first, _, depth = name.partition("+")
    if first not in BASELINES:
        raise RecipeError(f"unknown baseline {first!r}; {nearest(first, BASELINES)}")
    if "+" in name and (depth not in DEPTHS or first in DEPTHS):
        raise RecipeError(
            f"baseline {name!r}: {depth!r} is no rule about layers, or {first!r} is one; join one about widths with "
            f"one of {', '.join(DEPTHS)}"
        )

    def rule(source: Model, target: Model) -> Rule:
        if not depth:
            return _complete(BASELINES[first](source, target), source, target, name)
        wide = _of_layers(target, source)
        widths, layers = BASELINES[first](source, wide), DEPTHS[depth](wide, target)
        joined = dataclasses.replace(
            widths, name=f"{widths.name}; {layers.name}", layers=layers.layers, depth=layers.depth
        )
        return _complete(joined, source, target, name)

    return rule


def _of_layers(target: Model, source: Model) -> Model:
    """The target's widths, with the source's layers."""
    model = target.resized({"layers": source.sizes["layer"]})
    for key in target.family.per_layer_fields:
        if isinstance(model.config.get(key), list):
            model.config[key] = source.config[key]
    return model


def _complete(rule: Rule, source: Model, target: Model, name: str) -> Rule:
    """The rule, which speaks of every axis that changes."""
    axes = changed(rule.made or source, target)
    if "layer" in axes and not rule.layers and rule.depth == "auto":
        before, after = axes["layer"]
        of = [d for d in DEPTHS if (d == "even-layers") == (after < before)]
        raise PlanError(
            f"axis 'layer' ({before} → {after}): {rule.name} says nothing of it; join it with a rule that does: "
            f"{name}+{f' or {name}+'.join(of)}"
        )
    places = {w.name: {i for i, _ in rule.operators.get(w.name, {})} for w in target.weights}
    for weight in target.weights:
        for i, use in enumerate(weight.uses):
            if use.axis in axes and i not in places[weight.name]:
                before, after = axes[use.axis]
                raise PlanError(
                    f"axis '{use.axis}' ({before} → {after}): {rule.name} says nothing of it; join it to a rule that "
                    f"does, such as {'hypercloning' if after > before else 'weight-selection'}+{name}"
                )
    return rule


__all__ = ["BASELINES", "Baseline", "Batch", "Given", "Made", "Moments", "Rule", "baseline"]
