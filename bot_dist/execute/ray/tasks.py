"""Tasks by Ray actors: whoever is free takes the next one, and what a dead actor had goes to the others."""

from __future__ import annotations

import os
import secrets
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import ray

from bot_dist.errors import RunError
from bot_dist.execute.executor import S, T
from bot_dist.execute.ray.cluster import START_TIMEOUT_S, answer_of

TRIES = 3
"""Actors that may die over a task before it is given up."""


class TaskActor:
    """Does one task after the other, in a process of its own that has one core."""

    def __init__(self, do: Callable[[Any], Any]) -> None:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
        self._do = do

    def ready(self) -> None:
        """Answer once the actor runs."""

    def run(self, task: Any) -> Any:
        return self._do(task)


def run_tasks_by_actors(
    do: Callable[[S], T], tasks: Sequence[S], on_result: Callable[[int, T], None], at_once: int
) -> None:
    """Do all tasks by at most ``at_once`` actors of the connected cluster, which are gone afterwards.

    ``do``, the tasks and what comes of them are pickled. Raises what ``do`` and ``on_result`` raise; and RunError when
    no actor is left, when ``TRIES`` of them have died over one task, or when the cluster starts none.
    """
    name, reference = secrets.token_hex(4), ray.put(do)
    actors: list[Any] = [
        ray.remote(TaskActor)
        .options(name=f"bot_dist-task-{i}-of-{at_once}-{name}", num_cpus=1, scheduling_strategy="SPREAD")
        .remote(reference)
        for i in range(min(at_once, len(tasks)))
    ]
    try:
        _Crew(tasks, actors, on_result).run()
    finally:
        for actor in actors:
            ray.kill(actor)


class _Crew:
    """The actors, and who has which task."""

    def __init__(self, tasks: Sequence[Any], actors: Sequence[Any], on_result: Callable[[int, Any], None]) -> None:
        self.tasks, self.on_result = tasks, on_result
        self.waiting = deque(range(len(tasks)))
        self.left = len(tasks)
        self.deaths: Counter[int] = Counter()
        self.idle: list[Any] = []
        self.arriving: dict[Any, Any] = {actor.ready.remote(): actor for actor in actors}
        self.working: dict[Any, tuple[Any, int]] = {}
        self.last_words = ""

    def run(self) -> None:
        while self.left:
            while self.idle and self.waiting:
                actor, number = self.idle.pop(), self.waiting.popleft()
                task = self.tasks[number]
                self.working[actor.run.options(name=str(task)).remote(task)] = actor, number
            if not self.arriving and not self.working:
                raise RunError(f"all actors have died ({self.last_words}); give them more memory, or use no Ray")
            timeout_s = None if self.working else START_TIMEOUT_S
            done, _ = ray.wait([*self.arriving, *self.working], num_returns=1, timeout=timeout_s)
            if not done:
                raise RunError(f"the cluster started no actor within {START_TIMEOUT_S} s; wait until it has room")
            self._hear(done[0])

    def _hear(self, reference: Any) -> None:
        """Take what an actor has to say: that it is ready, a result, an error, or that it died."""
        actor, number = (
            (self.arriving.pop(reference), None) if reference in self.arriving else self.working.pop(reference)
        )
        result, died = answer_of(reference)
        if died is not None:
            self.last_words = died
            if number is not None:
                self._lost(number)
            return
        self.idle.append(actor)
        if number is not None:
            self.left -= 1
            self.on_result(number, result)

    def _lost(self, number: int) -> None:
        """Let others do what a dead actor had, within bounds."""
        self.deaths[number] += 1
        if self.deaths[number] == TRIES:
            raise RunError(
                f"{TRIES} actors have died over {self.tasks[number]} ({self.last_words}); "
                f"give them more memory, or use no Ray"
            )
        self.waiting.appendleft(number)
