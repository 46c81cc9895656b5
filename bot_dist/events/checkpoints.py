"""Events of work that goes through a whole checkpoint: exporting, verifying and comparing it."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from bot_dist.events.event import Event
from bot_dist.units import duration, size


@dataclass(frozen=True, kw_only=True)
class ExportStarted(Event):
    """An export begins."""

    kind: ClassVar[str] = "start"
    level: ClassVar[int] = logging.INFO
    stage: str = "export"
    bytes: int
    """Bytes of weights that will be written."""

    def __str__(self) -> str:
        return f"export of {size(self.bytes)} begins"


@dataclass(frozen=True, kw_only=True)
class ExportWritten(Event):
    """An export has written some more."""

    kind: ClassVar[str] = "written"
    stage: str = "export"
    bytes: int
    """Bytes of weights written since the last such event."""


@dataclass(frozen=True, kw_only=True)
class ExportDone(Event):
    """An export is whole."""

    kind: ClassVar[str] = "done"
    level: ClassVar[int] = logging.INFO
    stage: str = "export"
    folder: str
    """Folder or file of the export, without secrets."""
    seconds: float
    """Seconds that it took."""

    def __str__(self) -> str:
        return f"exported to {self.folder} in {duration(self.seconds)}"


@dataclass(frozen=True, kw_only=True)
class VerifyStarted(Event):
    """A verification begins."""

    kind: ClassVar[str] = "start"
    level: ClassVar[int] = logging.INFO
    stage: str = "verify"
    bytes: int
    """Bytes that will be read."""

    def __str__(self) -> str:
        return f"verification of {size(self.bytes)} begins"


@dataclass(frozen=True, kw_only=True)
class VerifyRead(Event):
    """A verification has read some more."""

    kind: ClassVar[str] = "read"
    stage: str = "verify"
    bytes: int
    """Bytes read since the last such event."""


@dataclass(frozen=True, kw_only=True)
class VerifyDone(Event):
    """A verification is done."""

    kind: ClassVar[str] = "done"
    level: ClassVar[int] = logging.INFO
    stage: str = "verify"
    url: str
    """The store, without secrets."""
    damaged: int
    """Number of chunks and files that are damaged or missing."""

    def __str__(self) -> str:
        return f"{self.url}: {f'{self.damaged} damaged or missing' if self.damaged else 'intact'}"


@dataclass(frozen=True, kw_only=True)
class DiffStarted(Event):
    """A comparison of two checkpoints begins to read values."""

    kind: ClassVar[str] = "start"
    level: ClassVar[int] = logging.INFO
    stage: str = "diff"
    elements: int
    """Elements of either checkpoint that will be read."""

    def __str__(self) -> str:
        return f"comparison of {self.elements:,} elements begins"


@dataclass(frozen=True, kw_only=True)
class DiffRead(Event):
    """A comparison of two checkpoints has read some more."""

    kind: ClassVar[str] = "read"
    stage: str = "diff"
    elements: int
    """Elements read of either checkpoint since the last such event."""


@dataclass(frozen=True, kw_only=True)
class DiffDone(Event):
    """A comparison of two checkpoints is done."""

    kind: ClassVar[str] = "done"
    level: ClassVar[int] = logging.INFO
    stage: str = "diff"
    differing: int
    """Number of parameters and keys of the configuration that differ."""

    def __str__(self) -> str:
        return f"{self.differing} parameters and settings differ" if self.differing else "no difference"
