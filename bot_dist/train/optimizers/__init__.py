"""The optimizers of training, a file each: how one is made, what state it keeps, and what it asks of DeepSpeed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bot_dist.plan.module_plan import Moment
from bot_dist.recipe import TrainConfig
from bot_dist.registry import Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """An optimizer that training can be done with."""

    make: Callable[[list[dict[str, Any]], TrainConfig], torch.optim.Optimizer]
    """Makes it for the groups of ``parameter_groups``."""
    states: tuple[Moment, ...]
    """Names that its ``state`` gives to the tensors that it keeps of every parameter, each of the parameter's shape.
    Training states hold them, and a transfer carries them along by the operators of ``plan/optimizer_state.py``."""
    deepspeed: Mapping[str, Any] = field(default_factory=dict)
    """Settings that DeepSpeed needs for it, merged into those of the engine."""


OPTIMIZERS: Registry[Optimizer] = Registry(Optimizer, "OPTIMIZER", __name__, __path__, what="optimizer")
DEFAULT = "adamw"
"""The optimizer of every training."""
