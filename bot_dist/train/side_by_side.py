"""Trainings that one driver runs at once, each in a thread: how many there is room for, and how a signal stops all."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from typing import Any, TypeVar

from bot_dist.execute.ray.cluster import resources
from bot_dist.recipe import ClusterConfig

Result = TypeVar("Result")

SIGNALS_S = 1
"""Seconds for which a signal may go unnoticed that has not come to the main thread."""

_RUNNING: list[Any] = []
"""The mailboxes of trainings."""
_STOPPED = threading.Event()


def places(cluster: ClusterConfig, workers: int, most: int) -> int:
    """The number of trainings of so many workers that there is room for on the connected cluster, at most ``most``; or
    what ``cluster.side_by_side`` says."""
    if most < 2 or cluster.side_by_side is not None:
        return cluster.side_by_side or 1
    return max(1, min(most, resources(cluster, workers)[1] // workers))


def per_node(at_once: int) -> int:
    """The number of the trainings that run at once which share a node of the connected cluster, if they are spread
    evenly."""
    import ray

    nodes: int = sum(node["Alive"] for node in ray.nodes())
    return math.ceil(at_once / nodes)


def side_by_side(
    works: Mapping[str, Callable[[], Result]], at_once: int, on_end: Callable[[str, Result], None]
) -> None:
    """Do each of the ``works``, so many at once; ``on_end`` takes what they return. Raises the first failure once the
    others are done; a signal stops all, and the trainings among them save their states."""
    failures: list[BaseException] = []
    with ThreadPoolExecutor(at_once, "bot_dist-training") as pool:
        running = {pool.submit(work): name for name, work in works.items()}
        left = {*running}
        try:
            while left:
                completed, left = wait(left, SIGNALS_S, FIRST_COMPLETED)
                for one in completed:
                    if (failure := one.exception()) is not None:
                        failures.append(failure)
                    else:
                        on_end(running[one], one.result())
        except BaseException:  # a signal
            pool.shutdown(wait=False, cancel_futures=True)
            with _stopping():
                ended_by = [one.exception() for one in running if not one.cancelled()]
            failures = [failure for failure in ended_by if failure is not None]
            if not failures:
                raise
    if failures:
        raise failures[0]


@contextlib.contextmanager
def stoppable(mailbox: Any) -> Iterator[None]:
    """Let a signal that stops all stop the workers that ask this mailbox, for the time of the block."""
    _RUNNING.append(mailbox)
    try:
        if _STOPPED.is_set():
            mailbox.stop.remote()
        yield
    finally:
        _RUNNING.remove(mailbox)


@contextlib.contextmanager
def _stopping() -> Iterator[None]:
    """Have the workers of all trainings save their states and end with an error, for the time of the block; so do those
    that begin in it."""
    _STOPPED.set()
    try:
        for mailbox in [*_RUNNING]:
            mailbox.stop.remote()
        yield
    finally:
        _STOPPED.clear()
