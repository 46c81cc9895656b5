"""Groups of parameters: every parameter moves at the rate that its change of size asks for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from bot_dist.model import Model
from bot_dist.recipe import TrainConfig
from bot_dist.train.schedule import learning_rate, ramp


def parameter_groups(
    module: torch.nn.Module,
    model: Model,
    train: TrainConfig,
    *,
    factors: Mapping[str, float],
    inserted: Iterable[int] = (),
) -> list[dict[str, Any]]:
    """Parameters of ``module`` by what their steps have in common.

    ``factors`` multiply the learning rate of a parameter (by its name in files) and divide its weight decay, so that a
    step of a model that has changed its size moves its function as far as one of its source; weights decay as fast as
    ever. ``inserted`` blocks follow ``train.inserted`` besides. A group holds ``params``, ``weight_decay``, and for
    ``set_rates`` its ``factor`` and whether it is ``inserted``.
    """
    named, blocks = dict(module.named_parameters()), frozenset(inserted)
    groups: dict[tuple[float, bool, bool], list[torch.nn.Parameter]] = {}
    for weight, layer, p in model.parameters():
        decays = weight.kind in ("matrix", "table")
        key = (factors.get(p.name, 1.0), decays, weight.layered and layer in blocks)
        groups.setdefault(key, []).append(named[model.inside[p.name]])
    return [
        {
            "params": params,
            "weight_decay": train.weight_decay / factor if decays else 0.0,
            "factor": factor * (train.inserted.learning_rate if new else 1.0),
            "inserted": new,
        }
        for (factor, decays, new), params in sorted(groups.items(), key=lambda item: item[0])
    ]


def set_rates(groups: Iterable[dict[str, Any]], train: TrainConfig, step: int, steps: int) -> float:
    """Set ``lr`` of all groups for step ``step`` of ``steps``; returns that of a group whose factor is 1."""
    rate = learning_rate(
        step,
        peak=train.learning_rate,
        warmup=train.warmup,
        steps=steps,
        schedule=train.schedule,
        decay=train.decay,
    )
    for group in groups:
        group["lr"] = rate * group["factor"] * (ramp(step, train.inserted.warmup) if group["inserted"] else 1.0)
    return rate
