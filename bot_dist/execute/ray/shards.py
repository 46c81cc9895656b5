"""Ray shard actors: each owns tiles of the target, reads what they need and writes them. No tensor leaves an actor.

Actors and nodes may die: what they were doing is done by others, and a new actor takes the place of each as soon as the
cluster has room for it.
"""

from __future__ import annotations

import dataclasses
import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bot_dist.errors import RunError
from bot_dist.events import OnEvent
from bot_dist.events.transfer import ActorDied, ActorReady
from bot_dist.execute.allocator import return_freed_memory
from bot_dist.execute.dispatch import Dispatch
from bot_dist.execute.executor import Reader, StepResult
from bot_dist.execute.ray.cluster import PLACEMENT_TIMEOUT_S, START_TIMEOUT_S, answer_of
from bot_dist.execute.ray.metrics import ActorMetrics, DriverMetrics
from bot_dist.execute.worker import Worker
from bot_dist.plan import LANES, Step, TransferPlan

POLL_S = 1.0
STILLBORN = 3
"""So often an actor may die before it is ready: then there is something wrong where it starts."""
DEATHS = 8
DEATHS_PER_ACTOR = 4
"""No more than ``DEATHS``, and this many for each actor, may die in one run."""


class ShardActor:
    """One member of the mesh, in a process of its own."""

    def __init__(
        self, plan: TransferPlan, source: Reader, target_url: str, device: str, attempt: str, rank: int
    ) -> None:
        self._arguments = plan, source, target_url, device, attempt
        self._metrics = ActorMetrics(plan.digest, rank)
        self.rank = rank

    def ready(self) -> dict[str, Any]:
        """Get ready for steps; where this is. Raises what the plan, the source or the target give cause for."""
        import torch

        torch.set_num_threads(1)
        return_freed_memory()
        self.worker = Worker(*self._arguments)
        self.worker.warm_up()
        return {"pid": os.getpid(), "node": ray.util.get_node_ip_address()}

    def run(self, step: Step) -> StepResult:
        result = dataclasses.replace(self.worker.run(step), rank=self.rank)
        self._metrics.add(result)
        return result


def run_by_actors(
    plan: TransferPlan,
    source: Reader,
    target_url: str,
    device: str,
    on_step: Callable[[StepResult], None],
    on_event: OnEvent,
    attempt: str = "",
) -> None:
    """Run a plan on ``mesh.size`` actors of the connected cluster, which are gone when this returns or raises. See
    ``Executor.run_plan``; raises RunError, too, where the cluster has no room for them or they keep dying."""
    bundle = {"CPU": 1.0, **({"GPU": 1.0} if device == "cuda" else {})}
    _check_resources(plan.mesh.size, bundle)
    group = placement_group([bundle] * plan.mesh.size, strategy="SPREAD", name="bot_dist-shards")
    crew = None
    try:
        if not group.wait(PLACEMENT_TIMEOUT_S):
            raise RunError(
                f"the cluster did not free {plan.mesh.size} × {bundle} within {PLACEMENT_TIMEOUT_S} s; "
                f"use a smaller mesh, or wait until other jobs have ended"
            )
        crew = _Crew(plan, group, (ray.put(plan), source, target_url, device, attempt), on_event)
        crew.run(on_step)
    finally:
        if crew is not None:
            crew.dismiss()
        remove_placement_group(group)


@dataclass
class _Member:
    """An actor, and what it has been asked for."""

    rank: int
    handle: Any
    ready: bool = False
    steps: dict[Any, Step] = field(default_factory=dict)
    """Steps that it is doing, by the reference of the result."""


class _Crew:
    """The actors of one run, and who does what."""

    def __init__(
        self,
        plan: TransferPlan,
        group: PlacementGroup,
        arguments: tuple[Any, ...],
        on_event: OnEvent,
    ) -> None:
        self.plan, self.group, self.arguments, self.on_event = plan, group, arguments, on_event
        self.actor_class: Any = ray.remote(ShardActor)
        self.dispatch = Dispatch(plan.steps(), plan.mesh.size)
        self.metrics = DriverMetrics(plan.digest)
        self.members: dict[int, _Member] = {}
        self.arriving: dict[Any, _Member] = {}
        """Actors that are not ready yet, by the reference that says that they are."""
        self.deaths = 0
        self.stillborn: Counter[int] = Counter()
        """Number of times that a rank's actor has died before it was ready."""

    def run(self, on_step: Callable[[StepResult], None]) -> None:
        """Do all steps. Raises the first error of a step, and RunError when there is no actor left to go on with."""
        for rank in range(self.plan.mesh.size):
            self._hire(rank)
        alone_since_s = time.monotonic()
        while self.dispatch.left:
            for member in self.members.values():
                self._employ(member)
            working = {reference: member for member in self.members.values() for reference in member.steps}
            asked = [*working, *self.arriving]
            if ray.wait(asked, num_returns=1, timeout=POLL_S)[0]:
                done = ray.wait(asked, num_returns=len(asked), timeout=0)[0]  # all at once: there may be thousands
            else:
                done = []
            for reference in done:
                member = working.get(reference) or self.arriving[reference]
                self._hear(member, reference, on_step)
            if self.members:
                alone_since_s = time.monotonic()
            elif time.monotonic() - alone_since_s > START_TIMEOUT_S:
                raise RunError(
                    f"no shard actor was ready for {START_TIMEOUT_S} s ({self.deaths} died in this run): the cluster "
                    f"has lost the room for them, or its nodes are too slow to start them; nothing was committed, run "
                    f"the same command again to resume"
                )

    def dismiss(self) -> None:
        for member in [*self.members.values(), *self.arriving.values()]:
            ray.kill(member.handle)

    def _hire(self, rank: int) -> None:
        """Start an actor of a rank. It joins when it is ready; with no room in the cluster, that may be never."""
        name = f"bot_dist-shard-{rank}-of-{self.plan.mesh.size}-{self.plan.digest[:8]}"
        handle: Any = self.actor_class.options(
            name=f"{name}-{self.deaths}" if self.deaths else name,
            num_cpus=1,
            num_gpus=self.group.bundle_specs[rank].get("GPU", 0),
            max_concurrency=LANES,
            scheduling_strategy=PlacementGroupSchedulingStrategy(self.group, placement_group_bundle_index=rank),
        ).remote(*self.arguments, rank)
        self.arriving[handle.ready.options(name="get ready").remote()] = _Member(rank, handle)

    def _employ(self, member: _Member) -> None:
        """Give an actor as much as it does at a time."""
        while len(member.steps) < LANES:
            step = self.dispatch.take(member.rank, time.monotonic())
            if step is None:
                return
            member.steps[member.handle.run.options(name=f"transfer {step.id}").remote(step)] = step

    def _hear(self, member: _Member, reference: Any, on_step: Callable[[StepResult], None]) -> None:
        """Take what an actor has to say: that it is ready, a result, an error, or that it died."""
        if not member.ready and reference not in self.arriving:
            return  # it died, which another of its references has told
        step = member.steps.get(reference)
        result, died = answer_of(reference)
        if died is not None:
            self._replace(member, died)
            return
        if step is None:
            del self.arriving[reference]
            member.ready, self.stillborn[member.rank] = True, 0
            self.members[member.rank] = member
            self.on_event(ActorReady(rank=member.rank, **result))
            return
        del member.steps[reference]
        if self.dispatch.done(step, member.rank, time.monotonic()):
            on_step(result)
            self.metrics.left(self.dispatch.left)

    def _replace(self, member: _Member, why: str) -> None:
        """Put back what a dead actor was doing, and start another. Raises RunError when that will not help."""
        self.deaths += 1
        self.members.pop(member.rank, None)
        self.arriving = {reference: m for reference, m in self.arriving.items() if m is not member}
        ray.kill(member.handle)
        steps = tuple(step.id for step in member.steps.values())
        self.on_event(ActorDied(rank=member.rank, steps=steps, why=why))
        fatal = self.dispatch.lost(member.rank)
        self.stillborn[member.rank] += not member.ready
        if self.stillborn[member.rank] >= STILLBORN:
            raise RunError(f"shard actor {member.rank} died {STILLBORN} times before it was ready ({why})")
        if fatal or self.deaths > DEATHS + DEATHS_PER_ACTOR * self.plan.mesh.size:
            what = f"step {fatal[0].id} was in progress each time" if fatal else f"the last was rank {member.rank}"
            raise RunError(
                f"{self.deaths} shard actors died, and {what} ({why}); nothing was committed. If the node's memory "
                f"ran out, lower transfer.memory_limit; then run the same command again to resume"
            )
        member.ready, member.steps = False, {}
        self._hire(member.rank)


def _check_resources(size: int, bundle: dict[str, float]) -> None:
    total = ray.cluster_resources()
    for kind, each in bundle.items():
        if total.get(kind, 0) < each * size:
            raise RunError(
                f"the mesh needs {each * size:g} {kind} for {size} shard actors, the cluster has "
                f"{total.get(kind, 0):g}; use a smaller mesh or a larger cluster"
            )
