"""Verifying a store by Ray actors: each reads the parts it is given; only what is damaged comes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import ray

from bot_dist.errors import RunError
from bot_dist.execute.ray.cluster import PLACEMENT_TIMEOUT_S, result_of
from bot_dist.store import CheckpointReader, Damage
from bot_dist.store.verification import Part, verify_part

TRIES = 3
"""Actors that may die over a part before it is given up."""


class VerifyActor:
    """One reader, in a process of its own."""

    def __init__(self, reader: CheckpointReader) -> None:
        self.reader = reader

    def ready(self) -> None:
        """Answers once the actor runs."""

    def verify(self, part: Part) -> list[Damage]:
        return verify_part(self.reader, part)


def actors_of(wanted: int | None) -> int:
    """How many actors the connected cluster gets: ``wanted``, or one per CPU. Raises RunError when it has fewer."""
    there = int(ray.cluster_resources().get("CPU", 0))
    if there < (wanted or 1):
        raise RunError(f"{wanted or 1} actors are wanted and the cluster has {there} CPUs; give fewer (--actors)")
    return wanted or there


def verify_by_actors(
    reader: CheckpointReader, work: Sequence[Part], n_actors: int, on_part: Callable[[Part], None]
) -> list[Damage]:
    """Verify all parts of a store, whose path is absolute, by at most ``n_actors`` of the connected cluster, which are
    gone afterwards; damages in the order of ``work``.

    Whoever is free takes the next part. What a dead actor had goes to the others. Raises RunError when none is left,
    when ``TRIES`` of them have died over one part, or when the cluster starts none.
    """
    digest = reader.manifest.digest
    actors: list[Any] = [
        ray.remote(VerifyActor)
        .options(name=f"bot_dist-verify-{i}-of-{n_actors}-{digest[:8]}", num_cpus=1, scheduling_strategy="SPREAD")
        .remote(reader)
        for i in range(min(n_actors, len(work)))
    ]
    try:
        return _Crew(work, actors, on_part).run()
    finally:
        for actor in actors:
            ray.kill(actor)


class _Crew:
    """The actors of one verification, and who has which part."""

    def __init__(self, work: Sequence[Part], actors: Sequence[Any], on_part: Callable[[Part], None]) -> None:
        self.work, self.on_part = work, on_part
        self.left = deque(range(len(work)))
        self.deaths = [0] * len(work)
        self.found: dict[int, list[Damage]] = {}
        self.idle: list[Any] = []
        self.arriving: dict[Any, Any] = {actor.ready.remote(): actor for actor in actors}
        self.reading: dict[Any, tuple[Any, int]] = {}
        self.last_words = ""

    def run(self) -> list[Damage]:
        while len(self.found) < len(self.work):
            while self.idle and self.left:
                actor, i = self.idle.pop(), self.left.popleft()
                self.reading[actor.verify.options(name=f"verify {self.work[i]}").remote(self.work[i])] = actor, i
            if not self.arriving and not self.reading:
                raise RunError(f"all actors have died ({self.last_words}); give them more memory, or use no Ray")
            timeout_s = None if self.reading else PLACEMENT_TIMEOUT_S
            done, _ = ray.wait([*self.arriving, *self.reading], num_returns=1, timeout=timeout_s)
            if not done:
                raise RunError(f"the cluster started no actor within {PLACEMENT_TIMEOUT_S} s; wait until it has room")
            self._hear(done[0])
        return [damage for i in range(len(self.work)) for damage in self.found[i]]

    def _hear(self, reference: Any) -> None:
        """Take what an actor has to say: that it is ready, what it found, an error, or that it died."""
        actor, part = (
            (self.arriving.pop(reference), None) if reference in self.arriving else self.reading.pop(reference)
        )
        try:
            found = result_of(reference)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self.last_words = " ".join(str(error).split())
            if part is not None:
                self._lost(part)
            return
        self.idle.append(actor)
        if part is not None:
            self.found[part] = found
            self.on_part(self.work[part])

    def _lost(self, part: int) -> None:
        """The actor that had a part has died: others take it, within bounds."""
        self.deaths[part] += 1
        if self.deaths[part] == TRIES:
            raise RunError(
                f"{TRIES} actors have died over {self.work[part]} ({self.last_words}); "
                f"give them more memory, or use no Ray"
            )
        self.left.appendleft(part)
