"""Who does works that are cut into shares: threads of this process, or actors of a Ray cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack
from typing import TYPE_CHECKING

from bot_dist.execute.ray.cluster import connected
from bot_dist.execute.shares import OnStep, SharedWork, run_in_threads
from bot_dist.recipe import ClusterConfig

if TYPE_CHECKING:
    from bot_dist.execute.ray.shares import Actors


class Crew(AbstractContextManager["Crew"]):
    """As many as a cluster's mesh has places, for one work after another: actors are hired for the first of them, and
    gone at the end of the context."""

    def __init__(self, cluster: ClusterConfig) -> None:
        self._cluster = cluster
        self._actors: Actors | None = None
        self._stack = ExitStack()

    @property
    def _places(self) -> int:
        return self._cluster.tensor * self._cluster.data

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def shares(self, parts: int) -> int:
        """How many shares there are of so many parts."""
        return min(self._places, parts)

    def run(self, work: SharedWork, on_step: OnStep) -> None:
        """Do all steps of a work. Raises what these and ``on_step`` raise, and RunError as ``Actors.run`` does."""
        if self._cluster.executor == "local":
            run_in_threads(work, on_step)
            return
        if self._actors is None:
            self._stack.enter_context(connected(self._cluster, self._places))
            from bot_dist.execute.ray.shares import Actors  # after connected() has prepared Ray's import

            self._actors = self._stack.enter_context(Actors())
        self._actors.run(work, on_step)
