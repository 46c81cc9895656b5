"""The executor on a Ray cluster: actors, which may die, do the work; no tensor leaves them but to storage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from bot_dist.errors import RunError
from bot_dist.events import OnEvent
from bot_dist.execute.executor import Executor, Reader, S, StepResult, T
from bot_dist.execute.ray.cluster import connected, resources
from bot_dist.execute.shares import OnStep, SharedWork
from bot_dist.plan import TransferPlan
from bot_dist.recipe import ClusterConfig

if TYPE_CHECKING:
    from bot_dist.execute.ray.shares import Actors


class RayExecutor(Executor):
    """Actors of the cluster that a configuration names, or of one that is embedded in this process.

    It connects at the first work. Actors that have done one work with shares do the next one, too, until there is other
    work or the context ends. Modules that import Ray are imported once ``connected`` has prepared its import.
    """

    workers = "actors"

    def __init__(self, config: ClusterConfig) -> None:
        super().__init__(config)
        self._connection = ExitStack()
        self._hired = ExitStack()
        self._actors: Actors | None = None

    def __exit__(self, *_: object) -> None:
        with self._connection:
            self._dismiss()

    def check(self) -> None:
        """The cluster's machines are not known before it is connected."""

    def run_plan(
        self,
        plan: TransferPlan,
        source: Reader,
        target_url: str,
        on_step: Callable[[StepResult], None],
        on_event: OnEvent,
        attempt: str = "",
    ) -> None:
        self._connect()
        self._dismiss()
        from bot_dist.execute.ray.shards import run_by_actors

        device = self.config.device
        if device == "auto":
            device = resources(self.config, self.places)[0]
        run_by_actors(plan, source, target_url, device, on_step, on_event, attempt)

    def run_shares(self, work: SharedWork, on_step: OnStep) -> None:
        """Do every step of a work, as ``Executor`` has it; raises RunError as ``Actors.run``, too."""
        self._connect()
        if self._actors is None:
            from bot_dist.execute.ray.shares import Actors

            self._actors = self._hired.enter_context(Actors())
        self._actors.run(work, on_step)

    def at_once(self, wanted: int | None = None) -> int:
        self._connect(wanted or 1)
        import ray

        there = int(ray.cluster_resources().get("CPU", 0))
        if there < (wanted or 1):
            raise RunError(f"{wanted or 1} actors are wanted and the cluster has {there} CPUs; ask for fewer")
        return wanted or there

    def run_tasks(
        self, do: Callable[[S], T], tasks: Sequence[S], on_result: Callable[[int, T], None], at_once: int
    ) -> None:
        """Do tasks, as ``Executor`` has it; raises RunError as ``run_tasks_by_actors``, too."""
        self._connect(at_once)
        self._dismiss()
        from bot_dist.execute.ray.tasks import run_tasks_by_actors

        run_tasks_by_actors(do, tasks, on_result, at_once)

    def _connect(self, cpus: int = 1) -> None:
        """Join the cluster, unless this process has joined it already."""
        self._connection.enter_context(connected(self.config, max(cpus, self.places)))

    def _dismiss(self) -> None:
        """End the actors that are kept for works with shares: others need their CPUs."""
        self._actors = None
        self._hired.close()
