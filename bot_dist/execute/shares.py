"""Work that is cut into shares, each of which goes through the same steps; here by threads of this process.

After each step, what all shares have found is put together; they go on meanwhile, where the next step can.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Literal, Protocol

from bot_dist.execute.process import usable_cpus

OnStep = Callable[[int], None]
"""Called with every step, in order, once all shares have done it."""


class Share(Protocol):
    """One share at work."""

    def run(self, step: int, keep: bool = True) -> None:
        """Do a step, the one after the last, and put its results on storage; unless ``keep``, they are there."""

    def close(self) -> None:
        """Remove what only this process needed."""


class SharedWork(Protocol):
    """What is to be done. Small and picklable."""

    @property
    def shares(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def ahead(self) -> Literal[0, 1]:
        """1 where a step can begin before what was found in the one before is put together, else 0."""

    def open(self, share: int) -> Share:
        """The share, before its first step."""


def run_in_threads(work: SharedWork, on_step: OnStep) -> None:
    """A thread per share, all of which hold a share's memory; cores beyond their number help each of them.

    Raises what a step or ``on_step`` raises.
    """
    import torch

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
