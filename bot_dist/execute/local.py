"""The executor in this process: the oracle of the others."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, as_completed, wait

import torch

from bot_dist.errors import InputError
from bot_dist.events import OnEvent
from bot_dist.execute.executor import Executor, Reader, S, StepResult, T
from bot_dist.execute.process import default_threads, usable_cpus
from bot_dist.execute.shares import OnStep, Share, SharedWork
from bot_dist.execute.worker import Worker
from bot_dist.plan import LANES, TransferPlan


class LocalExecutor(Executor):
    """Threads of this process, which share its memory limit and its cores."""

    workers = "threads"

    def __exit__(self, *_: object) -> None:
        """Do nothing: threads have ended with the work."""

    @property
    def device(self) -> str:
        if self.config.device != "auto":
            return self.config.device
        return "cuda" if torch.cuda.is_available() else "cpu"

    def check(self) -> None:
        if self.config.device == "cuda" and not torch.cuda.is_available():
            raise InputError(
                "cluster.device is cuda, and PyTorch finds no such device here; leave it out, or use cluster.device=cpu"
            )

    def run_plan(
        self,
        plan: TransferPlan,
        source: Reader,
        target_url: str,
        on_step: Callable[[StepResult], None],
        on_event: OnEvent,
        attempt: str = "",
    ) -> None:
        """Run the steps in their order, ``LANES`` at a time."""
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

    def run_shares(self, work: SharedWork, on_step: OnStep) -> None:
        """Run a thread per share, each of which holds a share's memory; cores beyond their number help all of them."""
        before = torch.get_num_threads()
        each = max(1, min(before, usable_cpus()) // work.shares)
        opened: list[Share] = []
        with ThreadPoolExecutor(work.shares, "bot_dist-share", torch.set_num_threads, (each,)) as pool:
            try:
                for share in range(work.shares):
                    opened.append(pool.submit(work.open, share).result())

                def ask(step: int) -> list[Future[None]]:
                    return [pool.submit(share.run, step) for share in opened] if step < work.steps else []

                running = ask(0)
                for step in range(work.steps):
                    for future in running:
                        future.result()
                    running = ask(step + 1) if work.ahead else []
                    on_step(step)
                    running = running or ask(step + 1)
            finally:
                pool.shutdown()
                for one in opened:
                    one.close()
                torch.set_num_threads(before)

    def at_once(self, wanted: int | None = None) -> int:
        return wanted or default_threads()

    def run_tasks(
        self, do: Callable[[S], T], tasks: Sequence[S], on_result: Callable[[int, T], None], at_once: int
    ) -> None:
        pool = ThreadPoolExecutor(at_once, thread_name_prefix="bot_dist-task")
        try:
            numbers = {pool.submit(do, task): number for number, task in enumerate(tasks)}
            for future in as_completed(numbers):
                on_result(numbers[future], future.result())
        finally:
            pool.shutdown(cancel_futures=True)
