"""Ray shard actors: each owns tiles of the target, reads what they need and writes them. No tensor leaves an actor."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import ray
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from bot_dist.checkpoint import CheckpointWriter
from bot_dist.errors import BotDistError, RunError
from bot_dist.plan import Step, TransferPlan
from bot_dist.runtime.executor import Reader, StepResult, run_step

PLACEMENT_TIMEOUT_S = 120


class ShardActor:
    """One member of the mesh, in a process of its own."""

    def __init__(self, plan: TransferPlan, source: Reader, target_url: str, device: str) -> None:
        import torch

        torch.set_num_threads(1)
        self.plan, self.source, self.device = plan, source, device
        self.writer = CheckpointWriter.open(target_url, plan.digest)
        self.recorded = self.writer.recorded()

    def run(self, step: Step) -> StepResult:
        return run_step(self.plan, step, self.source, self.writer, self.recorded, self.device)


class RayExecutor:
    """Runs a plan on ``mesh.size`` actors of the connected cluster; they are gone when ``run`` returns or raises."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def run(self, plan: TransferPlan, source: Reader, target_url: str, on_step: Callable[[StepResult], None]) -> None:
        bundle = {"CPU": 1.0, **({"GPU": 1.0} if self.device == "cuda" else {})}
        self._check_resources(plan.mesh.size, bundle)
        group = placement_group([bundle] * plan.mesh.size, strategy="SPREAD", name="bot_dist-shards")
        actors: list[Any] = []
        try:
            if not group.wait(PLACEMENT_TIMEOUT_S):
                raise RunError(
                    f"the cluster did not free {plan.mesh.size} × {bundle} within {PLACEMENT_TIMEOUT_S} s; "
                    f"use a smaller mesh, or wait until other jobs have ended"
                )
            plan_ref = ray.put(plan)
            for rank in range(plan.mesh.size):
                actor = ray.remote(ShardActor).options(
                    name=f"bot_dist-shard-{rank}-of-{plan.mesh.size}-{plan.digest[:8]}",
                    num_cpus=1,
                    num_gpus=bundle.get("GPU", 0),
                    scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=rank),
                )
                actors.append(actor.remote(plan_ref, source, target_url, self.device))
            self._run_steps(plan, actors, on_step)
        finally:
            for actor in actors:
                ray.kill(actor)
            remove_placement_group(group)

    @staticmethod
    def _run_steps(plan: TransferPlan, actors: list[Any], on_step: Callable[[StepResult], None]) -> None:
        """Keep one step in flight per actor, in plan order, until all are done."""
        queues: list[deque[Step]] = [deque() for _ in actors]
        for step in plan.steps():
            queues[step.owner].append(step)
        in_flight: dict[Any, int] = {}

        def submit(rank: int) -> None:
            if queues[rank]:
                step = queues[rank].popleft()
                in_flight[actors[rank].run.options(name=f"transfer {step.id}").remote(step)] = rank

        for rank in range(len(actors)):
            submit(rank)
        while in_flight:
            done, _ = ray.wait(list(in_flight), num_returns=1)
            rank = in_flight.pop(done[0])
            try:
                result: StepResult = ray.get(done[0])
            except ray.exceptions.RayTaskError as error:
                if isinstance(error.cause, BotDistError):
                    raise error.cause from None
                raise
            except ray.exceptions.RayActorError as error:
                raise RunError(
                    f"shard actor {rank} of {len(actors)} died ({error}); nothing was committed, "
                    f"run the same command again to resume"
                ) from None
            submit(rank)
            on_step(result)

    @staticmethod
    def _check_resources(size: int, bundle: dict[str, float]) -> None:
        total = ray.cluster_resources()
        for kind, each in bundle.items():
            if total.get(kind, 0) < each * size:
                raise RunError(
                    f"the mesh needs {each * size:g} {kind} for {size} shard actors, the cluster has "
                    f"{total.get(kind, 0):g}; use a smaller mesh or a larger cluster"
                )
