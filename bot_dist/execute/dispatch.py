"""Who does which step next, when some are slow and some die. Pure: no Ray, no clock of its own.

Every actor begins with the steps that it owns. One that has none left takes the last of whoever has most, and when none
is left at all, a second copy of a step that takes its actor too long: steps are idempotent, the first result counts.
"""

from __future__ import annotations

import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field

from bot_dist.plan import Step

STRAGGLER = 3.0
"""A step that takes this many times the median is done by another actor too, if one has nothing else to do."""
STRAGGLER_S = 5.0
"""Seconds before which no step is given to another actor, however long the median."""
COPIES = 2
"""Most actors that do the same step at a time."""
LIVES = 4
"""A step that was in progress when this many actors died is the reason, rather than a victim."""


@dataclass
class _Running:
    """A step that is being done, and by whom since when."""

    step: Step
    since_s: dict[int, float] = field(default_factory=dict)


class Dispatch:
    """The steps that are left. Times are in seconds, of one clock that never goes back."""

    def __init__(self, steps: Iterable[Step], actors: int) -> None:
        self._queues: list[deque[Step]] = [deque() for _ in range(actors)]
        for step in steps:
            self._queues[step.owner].append(step)
        self._running: dict[str, _Running] = {}
        self._deaths: dict[str, int] = {}
        self._durations_s: list[float] = []

    @property
    def left(self) -> int:
        """Steps without a result."""
        return sum(map(len, self._queues)) + len(self._running)

    def take(self, rank: int, now_s: float) -> Step | None:
        """The step that an actor should do next; None when there is nothing for it."""
        longest = max(self._queues, key=len)
        if self._queues[rank]:
            step = self._queues[rank].popleft()
        elif longest:
            step = longest.pop()
        elif (slow := self._straggling(rank, now_s)) is not None:
            slow.since_s[rank] = now_s
            return slow.step
        else:
            return None
        self._running[step.id] = _Running(step, {rank: now_s})
        return step

    def done(self, step: Step, rank: int, now_s: float) -> bool:
        """A result has come; whether it is the step's first."""
        running = self._running.pop(step.id, None)
        if running is None:
            return False
        self._durations_s.append(now_s - running.since_s.get(rank, now_s))
        return True

    def lost(self, rank: int) -> list[Step]:
        """An actor died: what nobody else is doing is put back, and what has cost too many actors is returned."""
        fatal = []
        for running in [*self._running.values()]:
            if running.since_s.pop(rank, None) is None:
                continue
            step = running.step
            self._deaths[step.id] = self._deaths.get(step.id, 0) + 1
            if self._deaths[step.id] >= LIVES:
                fatal.append(step)
            if not running.since_s:
                del self._running[step.id]
                self._queues[rank].appendleft(step)
        return fatal

    def _straggling(self, rank: int, now_s: float) -> _Running | None:
        """The step that has been in progress longest, if that is too long."""
        if not self._durations_s:
            return None
        patience_s = max(STRAGGLER_S, STRAGGLER * statistics.median(self._durations_s))
        slow = [
            running
            for running in self._running.values()
            if len(running.since_s) < COPIES
            and rank not in running.since_s
            and now_s - min(running.since_s.values()) > patience_s
        ]
        return min(slow, key=lambda running: min(running.since_s.values()), default=None)
