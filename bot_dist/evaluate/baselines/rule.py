"""What a baseline is: a rule that builds other operators for the same plan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from bot_dist.families import Model
from bot_dist.plan import Fitted


@dataclass(frozen=True, kw_only=True)
class Rule:
    """What a baseline does to one model: these operators, and nothing else."""

    name: str
    """Whose rule it is, and which."""
    operators: Fitted
    """Per module, along its axes that change."""
    layers: tuple[int, ...]
    """Per layer of the target, the source's that it is made of."""


class Baseline(Protocol):
    def __call__(self, source: Model, target: Model) -> Rule:
        """The rule that leads from the one to the other. Raises PlanError where there is none."""
