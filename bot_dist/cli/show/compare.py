"""The output of ``compare``: how much each way of starting a model saves."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich import box
from rich.table import Table

from bot_dist.cli import terminal

if TYPE_CHECKING:
    from bot_dist.compare.results import ComparisonResult


def show_trials(facts: ComparisonResult, output: str) -> None:
    """Show the result of a comparison, a row per way."""
    source = facts.source
    title = f"held-out loss; the source, {source.url}, has {source.held_out_loss:.3f}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    first, *others = facts.table.headings
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right")
    for line in facts.table.lines:
        table.add_row(*line)
    terminal.console.print(table)
    for note in facts.notes:
        terminal.console.print(f"note: {note}")
    terminal.console.print(
        f"curves, table and all that it takes to repeat it: {output}/comparison.{{png,md,json}}", markup=False
    )
