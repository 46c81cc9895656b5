"""What executors promise, and what they tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from bot_dist.events import OnEvent
from bot_dist.events.transfer import StepMeasures
from bot_dist.plan import TransferPlan
from bot_dist.tensors import Box
from bot_dist.tensors.axes import Parameter


class Reader(Protocol):
    """What a step needs of a source. Threads may share it."""

    def dtype(self, parameter: Parameter) -> torch.dtype: ...

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor: ...

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        """Fill a CPU tensor of the box's shape and the parameter's dtype; at most two pieces of ``PIECE_BYTES`` (or
        rows) are held besides."""


@dataclass(frozen=True, kw_only=True)
class StepResult(StepMeasures):
    """A finished step as the driver hears of it; never a tensor."""

    digests: dict[str, dict[str, bytes]]
    """Per parameter and shard that was written, the digests of its chunks."""


class Executor(Protocol):
    """Runs every step of a plan against a created store. Does not commit."""

    def run(
        self,
        plan: TransferPlan,
        source: Reader,
        target_url: str,
        on_step: Callable[[StepResult], None],
        on_event: OnEvent,
        attempt: str = "",
    ) -> None:
        """``attempt``: which of the store's, by default that named after the plan. ``on_step`` gets the first result
        of each step, ``on_event`` what else happens; in the caller's thread."""
