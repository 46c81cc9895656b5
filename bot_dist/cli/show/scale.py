"""The output of ``scale``: a transfer that is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bot_dist.cli import terminal
from bot_dist.cli.terminal import warn
from bot_dist.units import size
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.pipeline.results import TransferResult


def show_transfer(result: TransferResult, url: str) -> None:
    if result.calibrate:
        show_shrinking([stage.to_json() for stage in result.calibrate])
    terminal.console.print(
        f"committed {label(url)}: {size(result.bytes_read)} read, {size(result.bytes_written)} written in "
        f"{result.steps_seconds:.1f} s ({result.gb_per_s:.2f} GB/s), {result.steps} steps"
        + (f" of which {result.steps_resumed} were found done" if result.steps_resumed else "")
        + f"; peak memory per actor {size(max(result.actor_peak_rss_bytes))}"
    )
    if result.energy_kept:
        kept = ", ".join(f"{name} {share:.1%}" for name, share in result.energy_kept.items())
        terminal.console.print(f"energy kept: {kept}")
    for note in result.notes:
        terminal.console.print(f"note: {note}", markup=False)
    for name, n in result.overflowed.items():
        warn(f"warning: {name}: {n:,} values are too large for its dtype and became infinite")


def show_shrinking(stages: Sequence[Mapping[str, Any]]) -> None:
    """Every stage of a shrinking that was fitted to its source."""
    from bot_dist.report.shrinking import HEADINGS, cells, ranking_lines, stage_rows

    table = Table(title="shrunk stage by stage", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in stage_rows(stages):
        table.add_row(*cells(row))
    terminal.console.print(table)
    for line in ranking_lines(stages):
        terminal.console.print(line)
