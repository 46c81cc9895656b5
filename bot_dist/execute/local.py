"""The executor in this process: the oracle of the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from bot_dist.events import OnEvent
from bot_dist.execute.executor import Reader, StepResult
from bot_dist.execute.worker import Worker
from bot_dist.plan import LANES, TransferPlan


class LocalExecutor:
    """Runs the steps in their order, ``LANES`` at a time."""

    def __init__(self, device: str = "cpu") -> None:
        self.device = device

    def run(
        self,
        plan: TransferPlan,
        source: Reader,
        target_url: str,
        on_step: Callable[[StepResult], None],
        on_event: OnEvent,
        attempt: str = "",
    ) -> None:
        worker = Worker(plan, source, target_url, self.device, attempt)
        steps = plan.steps()
        with ThreadPoolExecutor(LANES, thread_name_prefix="bot_dist-step") as lanes:
            running: set[Future[StepResult]] = set()
            while True:
                running |= {lanes.submit(worker.run, step) for step in itertools.islice(steps, LANES - len(running))}
                if not running:
                    return
                done, running = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    on_step(future.result())
