"""The executor in this process: the oracle of the others."""

from __future__ import annotations

from collections.abc import Callable

from bot_dist.checkpoint import CheckpointWriter
from bot_dist.plan import TransferPlan
from bot_dist.runtime.executor import Reader, StepResult, run_step


class LocalExecutor:
    """Runs the steps one after another."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def run(self, plan: TransferPlan, source: Reader, target_url: str, on_step: Callable[[StepResult], None]) -> None:
        writer = CheckpointWriter.open(target_url, plan.digest)
        recorded = writer.recorded()
        for step in plan.steps():
            on_step(run_step(plan, step, source, writer, recorded, self.device))
