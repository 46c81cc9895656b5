"""The results of a comparison and of its trials."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bot_dist.compare.savings import Curve
from bot_dist.results import Result, Row


@dataclass(frozen=True, kw_only=True, repr=False)
class TrialResult(Result):
    """The facts of one trial: a start of the target, and its training."""

    method: str
    """Names the way in which the start was made."""
    seed: int
    """The seed of the training."""
    learning_rate: float
    """Highest learning rate of the training."""
    scratch: bool
    """Whether it started from the family's own initialisation."""
    n_parameters: int
    """Parameters of the target."""
    notes: list[str]
    """Sentences about the start that the user should know."""
    curve: Curve
    """Held-out losses over FLOPs; it ends where the loss was not finite any more."""
    accuracy: float | None
    """Share of held-out images whose class is predicted at the end; None where none is measured."""
    diverged: str | None
    """Says where the loss became NaN or infinity; None where it did not."""
    transfer: Mapping[str, Any] = field(default_factory=dict)
    """The measurements of the transfer, as the store of the start records them; empty from scratch."""
    training: Mapping[str, Any] = field(default_factory=dict)
    """The measurements of the training: the fields of a ``RunResult``."""
    decided_by: Mapping[str, Any] = field(default_factory=dict)
    """Everything that decides this result: where it is the same, the result is taken again."""

    def rows(self) -> Iterator[Row]:
        yield "method", f"{self.method}, seed {self.seed}, learning rate {self.learning_rate:g}"
        yield "parameters", f"{self.n_parameters:,}"
        yield "held-out loss", ", ".join(f"{loss:.3f}" for loss in self.curve.losses)
        if self.diverged is not None:
            yield "diverged", self.diverged
        for note in self.notes:
            yield "note", note


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """The source of a comparison, measured on the text or images that its targets are trained on."""

    url: str
    """URL of the source, without secrets."""
    held_out_loss: float
    """Mean cross entropy over held-out labels, in nats."""
    held_out_accuracy: float | None
    """Share of held-out images whose class is predicted; None where there are no images."""
    pretrained: Mapping[str, Any] | None
    """The measurements of its own training, the fields of a ``RunResult`` and everything that decided them; None where
    it was not trained here."""


@dataclass(frozen=True, kw_only=True)
class ResultsTable:
    """The table that a comparison comes to."""

    headings: list[str]
    """Headings of the columns; the first is that of the methods' names."""
    lines: list[list[str]]
    """A line per method."""


@dataclass(frozen=True, kw_only=True, repr=False)
class ComparisonResult(Result):
    """The facts of a comparison, as ``comparison.json`` has them."""

    recipe: Mapping[str, Any]
    """The recipe with all defaults, without secrets."""
    source: SourceFacts
    """The source that all methods start from."""
    results: tuple[TrialResult, ...]
    """The facts of every trial."""
    learning_rates: Mapping[str, float]
    """The best learning rate of every method."""
    table: ResultsTable
    """All methods at their best learning rates."""
    notes: tuple[str, ...]
    """Sentences that the user should know."""
    versions: Mapping[str, str]
    """Versions of the packages that the results depend on."""
    command: str
    """The command line of the process."""
    machine: str
    """Processor, cores and system that it ran on."""
    date: str
    """When it ended, in local time."""

    def rows(self) -> Iterator[Row]:
        yield "source", f"{self.source.url}, held-out loss {self.source.held_out_loss:.3f}"
        _, *headings = self.table.headings
        for name, *cells in self.table.lines:
            yield name, "; ".join(f"{heading}: {cell}" for heading, cell in zip(headings, cells, strict=True) if cell)
        for note in self.notes:
            yield "note", note
