"""Published rules to compare with (``rules``); one about layers can be joined to one about widths."""

from __future__ import annotations

import dataclasses

from bot_dist.baselines.rule import Baseline, Batch, Given, Made, Moments, Rule, changed
from bot_dist.baselines.rules import BASELINES
from bot_dist.errors import PlanError, RecipeError
from bot_dist.model.declaration import Model


def baseline(name: str) -> Baseline:
    """The rule of a name, or of two: ``hypercloning+stack`` takes widths by the one and layers by the other. It raises
    PlanError where an axis changes that neither speaks of.

    Raises RecipeError for names that are not known.
    """
    first, _, depth = name.partition("+")
    whole = BASELINES.choose(first, RecipeError)
    if "+" in name and (depth not in BASELINES or not BASELINES[depth].layers_only or whole.layers_only):
        raise RecipeError(
            f"baseline {name!r}: {depth!r} is no rule about layers, or {first!r} is one; join one about widths with "
            f"one of {', '.join(_about_layers())}"
        )

    def rule(source: Model, target: Model) -> Rule:
        if not depth:
            return _complete(whole(source, target), source, target, name)
        wide = _of_layers(target, source)
        widths, layers = whole(source, wide), BASELINES[depth](wide, target)
        joined = dataclasses.replace(
            widths, name=f"{widths.name}; {layers.name}", layers=layers.layers, depth=layers.depth
        )
        return _complete(joined, source, target, name)

    return Baseline(rule=rule, layers_only=whole.layers_only)


def _about_layers() -> list[str]:
    return [name for name, known in BASELINES.items() if known.layers_only]


def _leads(known: Baseline, source: Model, target: Model) -> bool:
    try:
        known(source, target)
    except PlanError:
        return False
    return True


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
        of = [d for d in _about_layers() if _leads(BASELINES[d], _of_layers(target, source), target)]
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
