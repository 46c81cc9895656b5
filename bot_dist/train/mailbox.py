"""Events of a training: rank 0 sends them to the driver's node, where the driver takes them. No file is shared."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import ray
import torch.distributed as dist
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from bot_dist.events import Event, OnEvent

POLL_S = 0.1


class Mailbox:
    """An actor that keeps what rank 0 has sent until the driver takes it."""

    def __init__(self) -> None:
        self._events: list[Event] = []
        self._stopped = self._ended = False
        self._failure: Exception | None = None

    def put(self, event: Event) -> None:
        self._events.append(event)

    def take(self) -> list[Event]:
        taken, self._events = self._events, []
        return taken

    def stop(self) -> None:
        """Ask the workers to save their state and end."""
        self._stopped = True

    def stopped(self) -> bool:
        return self._stopped

    def fail(self, error: Exception) -> None:
        """Remember what a worker has raised that would come again."""
        self._failure = self._failure or error

    def end(self) -> None:
        self._ended = True

    def ended(self) -> bool:
        return self._ended

    def failure(self) -> Exception | None:
        return self._failure


class Teller:
    """Tells the driver events, in order; only rank 0 does."""

    def __init__(self, send: Callable[[Event], Any]) -> None:
        """Take ``send``, which is ``put.remote`` of a Mailbox and does not wait."""
        self._send = send
        self._sent: Any = None

    def __call__(self, event: Event) -> None:
        if dist.get_rank() == 0:
            self._sent = self._send(event)

    def flush(self) -> None:
        """Wait until all of them have come."""
        if self._sent is not None:
            ray.get(self._sent)


@contextmanager
def following(on_event: OnEvent) -> Iterator[Any]:
    """A Mailbox on this node; ``on_event`` is called from a thread with every event that is put into it until the block
    ends, and what it raises is raised there."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    actor: Any = ray.remote(num_cpus=0)(Mailbox)
    mailbox = actor.options(scheduling_strategy=here).remote()
    done = threading.Event()
    failure: list[Exception] = []

    def follow() -> None:
        try:
            last = False
            while not last:
                last = done.wait(POLL_S)  # asked before taking: what was put until then is not missed
                for event in ray.get(mailbox.take.remote()):
                    on_event(event)
        except Exception as error:  # raised again where the caller is
            failure.append(error)

    thread = threading.Thread(target=follow, name="bot_dist-train-events", daemon=True)
    thread.start()
    try:
        yield mailbox
    finally:
        done.set()
        thread.join()
        ray.kill(mailbox)
    if failure:
        raise failure[0]
