"""Facts of the stages of a fit, which the manifest of the store records that the fit was for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bot_dist.results import Result, Row


@dataclass(frozen=True, kw_only=True)
class CandidateResult:
    """The outcome of one of several ways to fit a stage."""

    name: str
    """Names the way."""
    loss: float | None
    """Mean cross entropy in nats on samples that nothing was fitted to; None where the fit has failed."""
    seconds: float
    """Seconds that fitting and measuring took."""
    failed: str = ""
    """Says why the fit has failed; empty where it has not."""


@dataclass(frozen=True, kw_only=True, repr=False)
class StageFacts(Result):
    """The facts of one stage of a fit; the first one, which has no axes, is of the source."""

    axes: tuple[str, ...]
    """The axes that the stage has fitted."""
    sizes: Mapping[str, tuple[int, int]]
    """Size before and after of every axis that the stage has changed."""
    facts: Mapping[str, Mapping[str, Any]]
    """Facts of the fit by axis, such as which blocks or units are kept and how much stays unexplained."""
    loss: float | None = None
    """Held-out loss after the stage, in nats; None where it was not measured."""
    candidates: tuple[CandidateResult, ...] | None = None
    """The ways that were tried; None where there was one."""
    chosen: str | None = None
    """Names the way that was kept; None where there was one."""

    def rows(self) -> Iterator[Row]:
        yield "axes", ", ".join(self.axes) or "source"
        yield "sizes", ", ".join(f"{axis} {before} → {after}" for axis, (before, after) in self.sizes.items())
        if self.loss is not None:
            yield "held-out loss", f"{self.loss:.3f}"
        for one in self.candidates or ():
            result = one.failed if one.loss is None else f"held-out loss {one.loss:.3f}"
            yield one.name, f"{result}, kept" if one.name == self.chosen else result
