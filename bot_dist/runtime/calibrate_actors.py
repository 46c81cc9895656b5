"""Shares of a work by Ray actors, one each: no tensor leaves an actor but to storage.

A dead actor's hidden state is lost, so another begins its share anew; what was put together already is not again.
"""

from __future__ import annotations

from typing import Any

import ray

from bot_dist.errors import RunError
from bot_dist.runtime.cluster import PLACEMENT_TIMEOUT_S, last_words, result_of
from bot_dist.runtime.memory import return_freed_memory
from bot_dist.runtime.shares import OnStep, SharedWork

TRIES = 3
"""Actors that may die over a share before it is given up."""


class ShareActor:
    """One share, in a process of its own."""

    def __init__(self, work: SharedWork, share: int) -> None:
        self._work, self._share = work, share

    def open(self) -> None:
        """Get ready for step 0. Raises what the work gives cause for."""
        import torch

        torch.set_num_threads(1)
        return_freed_memory()
        self._opened = self._work.open(self._share)

    def run(self, step: int, keep: bool) -> None:
        self._opened.run(step, keep)


def run_by_actors(work: SharedWork, name: str, on_step: OnStep) -> None:
    """Do all steps by an actor of the connected cluster for every share; they are gone afterwards.

    ``name`` tells their names from those of other runs. Raises what a step raises, and RunError when the cluster has
    too few CPUs or starts no actor, or when ``TRIES`` of them have died over one share.
    """
    there = int(ray.cluster_resources().get("CPU", 0))
    if there < work.shares:
        raise RunError(
            f"{work.shares} actors are wanted and the cluster has {there} CPUs; use a smaller mesh or a larger cluster"
        )
    crew = _Crew(work, name)
    try:
        crew.run(on_step)
    finally:
        crew.dismiss()


class _Member:
    """The actor of a share, and how far it is."""

    def __init__(self, share: int) -> None:
        self.share = share
        self.deaths = 0
        self.handle: Any = None
        self.asked: Any = None
        """The reference of what it is doing."""
        self.opened = False
        self.next = 0


class _Crew:
    """The actors of one work."""

    def __init__(self, work: SharedWork, name: str) -> None:
        self.work, self.name = work, name
        self.work_reference = ray.put(work)
        self.members = [_Member(share) for share in range(work.shares)]
        self.done = 0
        """Steps that ``on_step`` has been called with."""

    def run(self, on_step: OnStep) -> None:
        for member in self.members:
            self._hire(member)
        while self.done < self.work.steps:
            for member in self.members:
                self._employ(member)
            if min(member.next for member in self.members) > self.done:
                on_step(self.done)
                self.done += 1
                continue
            asked = {member.asked: member for member in self.members if member.asked is not None}
            working = any(member.opened for member in asked.values())
            ready, _ = ray.wait([*asked], num_returns=1, timeout=None if working else PLACEMENT_TIMEOUT_S)
            if not ready:
                raise RunError(
                    f"the cluster started no actor within {PLACEMENT_TIMEOUT_S} s; use a smaller mesh, or wait until "
                    f"other jobs have ended"
                )
            self._hear(asked[ready[0]])

    def dismiss(self) -> None:
        for member in self.members:
            if member.handle is not None:
                ray.kill(member.handle)

    def _hire(self, member: _Member) -> None:
        suffix = f"-{member.deaths}" if member.deaths else ""
        actor: Any = ray.remote(ShareActor)
        member.handle = actor.options(
            name=f"bot_dist-share-{member.share}-of-{self.work.shares}-{self.name[:8]}{suffix}",
            num_cpus=1,
            scheduling_strategy="SPREAD",
        ).remote(self.work_reference, member.share)
        member.opened, member.next = False, 0
        member.asked = member.handle.open.options(name=f"open share {member.share}").remote()

    def _employ(self, member: _Member) -> None:
        """Give an actor its next step, unless it has one or is as far ahead as it may be."""
        step = member.next
        if member.opened and member.asked is None and step < self.work.steps and step <= self.done + self.work.ahead:
            call = member.handle.run.options(name=f"step {step} of share {member.share}")
            member.asked = call.remote(step, step >= self.done)

    def _hear(self, member: _Member) -> None:
        """Take what an actor has to say: that it is ready, that a step is done, an error, or that it died."""
        reference, member.asked = member.asked, None
        try:
            result_of(reference)
        except ray.exceptions.RayTaskError:
            raise
        except ray.exceptions.RayError as error:
            self._replace(member, last_words(error))
            return
        if member.opened:
            member.next += 1
        member.opened = True

    def _replace(self, member: _Member, why: str) -> None:
        member.deaths += 1
        ray.kill(member.handle)
        if member.deaths == TRIES:
            raise RunError(
                f"{TRIES} actors have died over share {member.share} of {self.work.shares} ({why}); give them more "
                f"memory, or use fewer"
            )
        self._hire(member)
