"""The result of a comparison."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bot_dist.results import Result, Row


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
    source: Mapping[str, Any]
    """The source's ``url``, ``held_out_loss`` and ``held_out_accuracy``, and its own training if it was ``pretrained``
    here."""
    results: tuple[Mapping[str, Any], ...]
    """Facts of every training."""
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
        yield "source", f"{self.source['url']}, held-out loss {self.source['held_out_loss']:.3f}"
        _, *headings = self.table.headings
        for name, *cells in self.table.lines:
            yield name, "; ".join(f"{heading}: {cell}" for heading, cell in zip(headings, cells, strict=True) if cell)
        for note in self.notes:
            yield "note", note
