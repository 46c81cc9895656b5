"""Events of planning a transfer and of executing its plan."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bot_dist.events.event import Event
from bot_dist.units import size


@dataclass(frozen=True, kw_only=True)
class Planned(Event):
    """The plan of a run is made, with everything that had to be fitted for it."""

    kind: ClassVar[str] = "planned"
    level: ClassVar[int] = logging.INFO
    stage: str = "plan"
    digest: str
    """Identifies the plan."""

    def __str__(self) -> str:
        return f"planned: {self.digest}"


@dataclass(frozen=True, kw_only=True)
class TransferStarted(Event):
    """The steps of a plan are about to be executed."""

    kind: ClassVar[str] = "start"
    level: ClassVar[int] = logging.INFO
    stage: str = "transfer"
    steps: int
    """Steps of the plan, those that an earlier attempt has finished included."""
    bytes: int
    """Bytes that these steps read and write."""

    def __str__(self) -> str:
        return f"transfer begins: {self.steps:,} steps that read and write {size(self.bytes)}"


@dataclass(frozen=True, kw_only=True)
class StepMeasures:
    """The measurements of one finished step of a plan."""

    step: str
    """The step's id."""
    module: int
    """Index of the step's module in the plan."""
    bytes_read: int
    """Bytes read from the source's storage, halo included."""
    bytes_written: int
    """Bytes written to the target's storage."""
    bytes_transformed: int
    """Bytes that went into and came out of the operators."""
    energy_source: float
    """Squared norm of the part of the source that this step stands for."""
    energy_target: float
    """Squared norm of what was written, as an orthonormal filter bank would have written it."""
    overflowed: int
    """Finite values that the target's dtype can't hold."""
    read_s: float = 0.0
    """Seconds spent reading."""
    transform_s: float = 0.0
    """Seconds spent in the operators."""
    write_s: float = 0.0
    """Seconds spent writing."""
    rank: int = 0
    """Rank of the actor that did the step."""
    peak_rss_bytes: int = 0
    """Highest resident memory of the actor's process so far, in bytes."""
    resumed: bool = False
    """Whether the step was found finished and intact on storage, and was not done again."""


@dataclass(frozen=True, kw_only=True)
class StepDone(StepMeasures, Event):
    """A step of the plan is finished."""

    kind: ClassVar[str] = "step"
    stage: str = "transfer"


@dataclass(frozen=True, kw_only=True)
class ActorReady(Event):
    """A shard actor has opened its source and target and takes steps."""

    kind: ClassVar[str] = "actor"
    stage: str = "transfer"
    rank: int
    """The actor's rank in the mesh."""
    pid: int
    """Its process on its node."""
    node: str
    """IP address of its node."""


@dataclass(frozen=True, kw_only=True)
class ActorDied(Event):
    """A shard actor died; others do its steps, and a new one is started in its place."""

    kind: ClassVar[str] = "actor_died"
    level: ClassVar[int] = logging.WARNING
    stage: str = "transfer"
    rank: int
    """The actor's rank in the mesh."""
    steps: tuple[str, ...]
    """Ids of the steps that it was doing."""
    why: str
    """Ray's own words about the death."""

    def __str__(self) -> str:
        steps = ", ".join(self.steps) or "nothing"
        return f"actor {self.rank} died while doing {steps}; others go on, a new one starts ({self.why})"


@dataclass(frozen=True, kw_only=True)
class TransferCommitted(Event):
    """The target is whole and committed."""

    kind: ClassVar[str] = "committed"
    level: ClassVar[int] = logging.INFO
    stage: str = "transfer"
    url: str
    """URL of the committed store, without secrets."""
    report: Mapping[str, Any]
    """The measurements of the transfer as JSON has them; their keys stand beside ``url`` in the event's own JSON."""

    def __str__(self) -> str:
        return f"committed {self.url}"

    def to_json(self) -> dict[str, Any]:
        record = super().to_json()
        report: dict[str, Any] = record.pop("report")
        return record | report
