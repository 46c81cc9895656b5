"""Shares of a work by Ray actors, one each: no tensor leaves an actor but to storage.

A dead actor's hidden state is lost, so another begins its share anew; what was put together already is not again.
"""

from __future__ import annotations

import secrets
from contextlib import AbstractContextManager, suppress
from typing import Any

import ray

from bot_dist.errors import RunError
from bot_dist.execute.allocator import return_freed_memory
from bot_dist.execute.ray.cluster import START_TIMEOUT_S, answer_of, result_of
from bot_dist.execute.shares import OnStep, Share, SharedWork

TRIES = 3
"""Actors that may die over a share before it is given up."""


class ShareActor:
    """One share at a time, in a process of its own."""

    def __init__(self) -> None:
        import torch

        torch.set_num_threads(1)
        return_freed_memory()
        self._opened: Share | None = None

    def open(self, work: SharedWork, share: int) -> None:
        """Get ready for step 0. Raises what the work gives cause for."""
        self._opened = work.open(share)

    def run(self, step: int, keep: bool) -> None:
        assert self._opened is not None
        self._opened.run(step, keep)

    def close(self) -> None:
        """Let go of the share."""
        if self._opened is not None:
            self._opened.close()
        self._opened = None


class _Member:
    """The actor of a share, and how far it is."""

    def __init__(self, share: int) -> None:
        self.share = share
        self.handle: Any = None
        self.begin()

    def begin(self) -> None:
        """A work has begun."""
        self.deaths = self.next = 0
        self.opened = False
        self.asked: Any = None
        """The reference of what it is doing."""


class Actors(AbstractContextManager["Actors"]):
    """Actors of the connected cluster that do one work after another, and are gone afterwards."""

    def __init__(self) -> None:
        self._name = secrets.token_hex(4)
        self._members: list[_Member] = []
        self._hired = 0

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            if member.handle is not None:
                ray.kill(member.handle)

    def run(self, work: SharedWork, on_step: OnStep) -> None:
        """Do all steps, by an actor for every share.

        Raises what a step raises, and RunError when the cluster has too few CPUs or starts no actor, or when ``TRIES``
        of them have died over one share; nothing more can be run then.
        """
        there = int(ray.cluster_resources().get("CPU", 0))
        if there < work.shares:
            raise RunError(
                f"{work.shares} actors are wanted and the cluster has {there} CPUs; use a smaller mesh or a larger "
                f"cluster"
            )
        self._members += [_Member(share) for share in range(len(self._members), work.shares)]
        members, reference, done = self._members[: work.shares], ray.put(work), 0
        for member in members:
            member.begin()
            self._open(member, reference, work)
        while done < work.steps:
            for member in members:  # the next step for all that have none and are not as far ahead as they may be
                if member.opened and member.asked is None and member.next < min(work.steps, done + work.ahead + 1):
                    call = member.handle.run.options(name=f"step {member.next} of share {member.share}")
                    member.asked = call.remote(member.next, member.next >= done)
            if min(member.next for member in members) > done:
                on_step(done)
                done += 1
                continue
            asked = {member.asked: member for member in members if member.asked is not None}
            working = any(member.opened for member in asked.values())
            ready, _ = ray.wait([*asked], num_returns=1, timeout=None if working else START_TIMEOUT_S)
            if not ready:
                raise RunError(
                    f"the cluster started no actor within {START_TIMEOUT_S} s; use a smaller mesh, or wait until "
                    f"other jobs have ended"
                )
            member = asked[ready[0]]
            if (died := self._hear(member)) is not None:
                self._replace(member, died, reference, work)
        for closed in [member.handle.close.remote() for member in members]:
            with suppress(ray.exceptions.RayActorError):  # who has died meanwhile is replaced by the next work
                result_of(closed)

    def _open(self, member: _Member, reference: Any, work: SharedWork) -> None:
        if member.handle is None:
            actor: Any = ray.remote(ShareActor)
            member.handle = actor.options(
                name=f"bot_dist-share-{member.share}-of-{work.shares}-{self._name}-{self._hired}",
                num_cpus=1,
                scheduling_strategy="SPREAD",
            ).remote()
            self._hired += 1
        member.opened, member.next = False, 0
        member.asked = member.handle.open.options(name=f"open share {member.share}").remote(reference, member.share)

    def _hear(self, member: _Member) -> str | None:
        """Take what an actor has to say: that it is ready, that a step is done, an error; or why it died."""
        reference, member.asked = member.asked, None
        _, died = answer_of(reference)
        if died is None:
            member.next += member.opened
            member.opened = True
        return died

    def _replace(self, member: _Member, why: str, reference: Any, work: SharedWork) -> None:
        member.deaths += 1
        ray.kill(member.handle)
        member.handle = None
        if member.deaths == TRIES:
            raise RunError(
                f"{TRIES} actors have died over share {member.share} of {work.shares} ({why}); give them more memory, "
                f"or use fewer"
            )
        self._open(member, reference, work)
