"""The parts that all events share: when and in which stage something happened, and how it is written down.

A new kind of event is a subclass with its ``kind``, its ``stage`` and its own fields, in the module of its stage. The
command line's progress, ``events.jsonl`` and the log take it from there.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from time import time as now
from typing import Any, ClassVar


@dataclass(frozen=True, kw_only=True)
class Event:
    """Something that happened during a stage of the work. Events are picklable: they cross processes.

    ``str`` of an event is a sentence for people, without the member of the family.
    """

    kind: ClassVar[str]
    """Names the kind of event within its stage; it is the key ``event`` of the JSON."""
    level: ClassVar[int] = logging.DEBUG
    """Level of ``logging`` that the event is logged at."""

    stage: str
    """Names the stage that the event belongs to, such as ``transfer`` or ``pretrain``."""
    member: str = ""
    """Names the member of the family that the event is about; empty where the recipe is no family."""
    time: float = field(default_factory=now, compare=False)
    """When it happened, in seconds since the epoch."""

    def __str__(self) -> str:
        fields = [f for f in dataclasses.fields(self) if f.name not in ("stage", "member", "time")]
        return ", ".join([self.kind, *(f"{f.name} {getattr(self, f.name)}" for f in fields)])

    def to_json(self) -> dict[str, Any]:
        """The event as a line of ``events.jsonl`` has it: ``time``, ``stage``, ``event`` (its kind) and its fields. A
        text that is empty by default is left out while it is empty."""
        values = dataclasses.asdict(self)
        begin = {"time": values.pop("time"), "stage": values.pop("stage"), "event": self.kind}
        optional = {f.name for f in dataclasses.fields(self) if f.default == ""}
        return begin | {name: value for name, value in values.items() if value != "" or name not in optional}


OnEvent = Callable[[Event], None]
"""A function that long work calls with every event as it happens, sometimes from several threads."""


def ignore(event: Event) -> None:
    """Do nothing with an event."""


def log(event: Event) -> None:
    """Give an event to the logger ``bot_dist.STAGE``, as a sentence; what the package's functions do by default."""
    logger = logging.getLogger(f"bot_dist.{event.stage}")
    if logger.isEnabledFor(event.level):
        logger.log(event.level, "%s", f"{event.member}: {event}" if event.member else event)
