"""Promises of every executor: to run plans, works that are cut into shares, and tasks."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import ClassVar, Protocol, TypeVar

import torch

from bot_dist.events import OnEvent
from bot_dist.events.transfer import StepMeasures
from bot_dist.execute.shares import OnStep, SharedWork
from bot_dist.plan import TransferPlan
from bot_dist.recipe import ClusterConfig
from bot_dist.tensors import Box
from bot_dist.tensors.axes import Parameter

S = TypeVar("S")
T = TypeVar("T")


class Reader(Protocol):
    """The part of a source that a step needs. Threads may share it."""

    def dtype(self, parameter: Parameter) -> torch.dtype: ...

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor: ...

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        """Fill a CPU tensor of the box's shape and the parameter's dtype; at most two pieces of ``PIECE_BYTES`` (or
        rows) are held besides."""


@dataclass(frozen=True, kw_only=True)
class StepResult(StepMeasures):
    """A finished step as the driver hears of it; never a tensor."""

    digests: dict[str, dict[str, bytes]]
    """Digests of the chunks that were written, by parameter and shard."""


class Executor(AbstractContextManager["Executor"], ABC):
    """Who does the work that a ``ClusterConfig`` asks for: whoever it is, the results are the same bytes.

    Nothing is started before the first work, and what was started ends with the context. Works are done one after the
    other, by one thread of the caller's, in which all callbacks are called.
    """

    workers: ClassVar[str]
    """The word for those who do the work, in messages: ``threads``."""

    def __init__(self, config: ClusterConfig) -> None:
        self.config = config

    @property
    def places(self) -> int:
        """Places of the mesh, for each of which there is one worker."""
        return self.config.tensor * self.config.data

    def shares(self, parts: int) -> int:
        """The number of shares that so many parts of a work are cut into."""
        return min(self.places, parts)

    @abstractmethod
    def check(self) -> None:
        """Raise InputError where this machine can be seen to lack what the configuration asks for. Starts nothing."""

    @abstractmethod
    def run_plan(
        self,
        plan: TransferPlan,
        source: Reader,
        target_url: str,
        on_step: Callable[[StepResult], None],
        on_event: OnEvent,
        attempt: str = "",
    ) -> None:
        """Run every step of a plan against a store that was created, which is not committed.

        ``attempt`` is the name of the store's attempt, by default that of the plan. ``on_step`` is called with the
        first result of each step, ``on_event`` with what else happens.
        """

    @abstractmethod
    def run_shares(self, work: SharedWork, on_step: OnStep) -> None:
        """Do every step of a work, all shares side by side. Raises what these and ``on_step`` raise."""

    @abstractmethod
    def at_once(self, wanted: int | None = None) -> int:
        """The number of tasks that are done at a time: ``wanted``, or as many as there is room for. Raises RunError
        where there is no room for so many."""

    @abstractmethod
    def run_tasks(
        self, do: Callable[[S], T], tasks: Sequence[S], on_result: Callable[[int, T], None], at_once: int
    ) -> None:
        """Call ``do`` with each of the tasks, which depend on nothing of each other and whose ``str`` names them.

        ``on_result`` is called with the number of each task and what came of it, in the order in which they are done.
        Raises what ``do`` and ``on_result`` raise.
        """
