"""Events of fitting operators to a source: of passes over calibration data, and of the text that a model writes."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import ClassVar

from bot_dist.events.event import Event

OWN_TEXT = "a text that the model writes"
"""The purpose of the events of a text that the model writes itself."""


@dataclass(frozen=True, kw_only=True)
class CalibrateEvent(Event):
    """An event of calibration; most have a purpose that tells one pass over the data from the others."""

    stage: str = "calibrate"
    purpose: str = ""
    """Says what the pass is for, in words; empty where nobody has said so."""

    @property
    def work(self) -> str:
        """Names the piece of work that the event belongs to, for people."""
        return f"{self.stage}, {self.purpose or 'statistics'}"


@dataclass(frozen=True, kw_only=True)
class PassStarted(CalibrateEvent):
    """A pass of the calibration data through the model begins."""

    kind: ClassVar[str] = "start"
    level: ClassVar[int] = logging.INFO
    tokens: int
    """Positions of all samples together."""
    windows: int
    """Number of samples."""
    blocks: int
    """Blocks that the samples go through."""
    shares: int
    """Number of workers that the samples are shared out to."""

    def __str__(self) -> str:
        return f"{self.work}: {self.tokens:,} tokens in {self.windows} samples go through {self.blocks} blocks"


@dataclass(frozen=True, kw_only=True)
class BlockDone(CalibrateEvent):
    """All samples have gone through a block."""

    kind: ClassVar[str] = "block"
    block: int
    """Index of the block, from 0."""
    of: int
    """Number of blocks."""
    seconds: float
    """Seconds since the pass began."""


@dataclass(frozen=True, kw_only=True)
class TakenUp(CalibrateEvent):
    """Statistics or a text were found done by an earlier attempt, and are taken as they are."""

    kind: ClassVar[str] = "cached"
    level: ClassVar[int] = logging.INFO
    url: str
    """URL of the statistics or text, without secrets."""
    tokens: int
    """Tokens that they are about."""
    loss: float | None
    """Mean cross entropy in nats that is recorded with statistics; None where there is none."""

    def __str__(self) -> str:
        return f"{self.work}: {self.tokens:,} tokens, found done in {self.url}"


@dataclass(frozen=True, kw_only=True)
class StatisticsCommitted(CalibrateEvent):
    """The statistics of a pass are stored."""

    kind: ClassVar[str] = "committed"
    level: ClassVar[int] = logging.INFO
    url: str
    """URL of the stored statistics, without secrets."""
    tokens: int
    """Positions that they are means over."""
    loss: float | None
    """Mean cross entropy in nats; None where the model has no head."""
    seconds: float
    """Seconds that the pass took."""

    def __str__(self) -> str:
        return f"{self.work}: committed {self.url}"


@dataclass(frozen=True, kw_only=True)
class TextProgress(CalibrateEvent):
    """The model has written some more tokens of its text."""

    kind: ClassVar[str] = "writing"
    purpose: str = OWN_TEXT
    tokens: int
    """Tokens written so far."""
    of: int
    """Tokens to be written."""
    seconds: float
    """Seconds since writing began."""


@dataclass(frozen=True, kw_only=True)
class TextWritten(CalibrateEvent):
    """The model's own text is written and kept."""

    kind: ClassVar[str] = "written"
    level: ClassVar[int] = logging.INFO
    purpose: str = OWN_TEXT
    url: str
    """Path of the text's file."""
    tokens: int
    """Tokens of the text."""
    seconds: float
    """Seconds that writing took."""

    def __str__(self) -> str:
        return f"{self.work}: {self.tokens:,} tokens in {self.url}"


@dataclass(frozen=True, kw_only=True)
class LossMeasured(CalibrateEvent):
    """The held-out loss of the model as it is fitted so far is measured."""

    kind: ClassVar[str] = "loss"
    level: ClassVar[int] = logging.INFO
    after: str
    """Names the fit that the model has come through last; ``source`` before the first."""
    loss: float | None
    """Mean cross entropy over held-out calibration data, in nats; None where the model has no head."""

    def __str__(self) -> str:
        where = "source" if self.after == "source" else f"after {self.after}"
        return f"held-out loss, {where}: {'none' if self.loss is None else f'{self.loss:.3f}'}"
