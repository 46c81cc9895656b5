"""Where a run takes place, and what its driver tells."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot_dist.errors import BotDistError
from bot_dist.events import Event
from bot_dist.events.transfer import StepDone
from tests.chaos.cases import Case
from tests.chaos.endings import Ending
from tests.chaos.proxy import FaultyProxy


@dataclass(frozen=True)
class Arena:
    """Where runs take place."""

    folder: Path
    """Empty, of this run."""
    cases: list[Case]
    proxy: FaultyProxy | None = None
    """In front of an S3 server, whose environment this process has."""
    cluster: Any = None
    """``ray.cluster_utils.Cluster``, for runs in which nodes are lost."""

    @property
    def url(self) -> str:
        """Of the target."""
        return str(self.folder / "store")


Run = Callable[[Arena, random.Random], Ending]


class Seen:
    """What a driver was told: which steps are done."""

    def __init__(self, then: Callable[[int], None] = lambda done: None) -> None:
        self.steps: set[str] = set()
        self.events: list[str] = []
        self._then = then

    def __call__(self, event: Event) -> None:
        self.events.append(event.kind)
        if isinstance(event, StepDone):
            self.steps.add(event.step)
            self._then(len(self.steps))


def attempt(case: Case, url: str, seen: Seen | None = None, **overrides: Any) -> str | None:
    """The case's command; the name of the error that it ended in."""
    try:
        case.transfer(url, seen or Seen(), **overrides)
    except BotDistError as error:
        return type(error).__name__
    return None
