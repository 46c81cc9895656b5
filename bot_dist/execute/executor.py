"""What executors promise, and what they tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from bot_dist.plan import TransferPlan
from bot_dist.tensors import Box
from bot_dist.tensors.axes import Parameter

OnEvent = Callable[[dict[str, Any]], None]


class Reader(Protocol):
    """What a step needs of a source. Threads may share it."""

    def dtype(self, parameter: Parameter) -> torch.dtype: ...

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor: ...

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        """Fill a CPU tensor of the box's shape and the parameter's dtype; at most two pieces of ``PIECE_BYTES`` (or
        rows) are held besides."""


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a finished step tells the driver; never a tensor."""

    step: str
    module: int
    digests: dict[str, dict[str, bytes]]
    """Per parameter and shard that was written, the digests of its chunks."""
    bytes_read: int
    """From the source's storage, halo included."""
    bytes_written: int
    bytes_transformed: int
    """In and out of the operators."""
    energy_source: float
    """Squared norm of the part of the source that this step stands for."""
    energy_target: float
    """Squared norm of what was written, as an orthonormal filter bank would have written it."""
    overflowed: int
    """Finite values that the target's dtype can't hold."""
    read_s: float = 0.0
    transform_s: float = 0.0
    write_s: float = 0.0
    rank: int = 0
    """Of the actor that did it."""
    peak_rss_bytes: int = 0
    """Of the process so far."""
    resumed: bool = False
    """Found finished and intact on storage."""


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
