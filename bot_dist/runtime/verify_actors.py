"""Verifying a store by Ray actors: each reads the parts it is given; only what is damaged comes back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import ray

from bot_dist.checkpoint import CheckpointReader, Damage
from bot_dist.checkpoint.verification import Part, verify_part
from bot_dist.errors import BotDistError, CheckpointError, RunError

PLACEMENT_TIMEOUT_S = 120
TRIES = 3
"""Actors that may die over a part before it is given up."""


class VerifyActor:
    """One reader, in a process of its own."""

    def __init__(self, url: str, digest: str) -> None:
        self.url, self.digest = url, digest

    @cached_property
    def reader(self) -> CheckpointReader:
        reader = CheckpointReader(self.url)
        if reader.manifest.digest != self.digest:
            raise CheckpointError(f"{reader.storage.label} was replaced while it was verified; verify it again")
        return reader

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
    when a part has outlived ``TRIES`` of them, or when the cluster starts none.
    """
    digest = reader.manifest.digest
    actors: list[Any] = [
        ray.remote(VerifyActor)
        .options(name=f"bot_dist-verify-{i}-of-{n_actors}-{digest[:8]}", num_cpus=1, scheduling_strategy="SPREAD")
        .remote(reader.url, digest)
        for i in range(min(n_actors, len(work)))
    ]
    queue = deque(range(len(work)))
    deaths = [0] * len(work)
    found: dict[int, list[Damage]] = {}
    in_flight: dict[Any, tuple[Any, int | None]] = {actor.ready.remote(): (actor, None) for actor in actors}
    idle: list[Any] = []
    try:
        while len(found) < len(work):
            while idle and queue:
                actor, i = idle.pop(), queue.popleft()
                in_flight[actor.verify.options(name=f"verify {work[i]}").remote(work[i])] = actor, i
            if not in_flight:
                raise RunError(f"all {len(actors)} actors have died; {_way_out(n_actors)}")
            working = idle or any(i is not None for _, i in in_flight.values())
            done, _ = ray.wait(list(in_flight), num_returns=1, timeout=None if working else PLACEMENT_TIMEOUT_S)
            if not done:
                raise RunError(f"the cluster started no actor within {PLACEMENT_TIMEOUT_S} s; wait until it has room")
            actor, part = in_flight.pop(done[0])
            try:
                result = _result(done[0])
            except ray.exceptions.RayActorError as error:
                if part is not None:
                    queue.appendleft(part)
                    deaths[part] += 1
                    if deaths[part] == TRIES:
                        died = f"{TRIES} actors died over {work[part]} ({error})"
                        raise RunError(f"{died}; {_way_out(n_actors)}") from None
                continue
            idle.append(actor)
            if part is not None:
                found[part] = result
                on_part(work[part])
    finally:
        for actor in actors:
            ray.kill(actor)
    return [damage for i in range(len(work)) for damage in found[i]]


def _result(reference: Any) -> Any:
    """What an actor answered; its BotDistError as if it had been raised here."""
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BotDistError):
            raise error.cause from None
        raise


def _way_out(n_actors: int) -> str:
    return f"give each more memory or use fewer than {n_actors} (--actors)" if n_actors > 1 else "verify without Ray"
