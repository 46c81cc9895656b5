"""What ``scale`` shows: a transfer that is committed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.table import Table

from bot_dist.cli import terminal
from bot_dist.cli.terminal import warn
from bot_dist.units import size
from bot_dist.urls import label


def show_transfer(report: dict[str, Any], url: str) -> None:
    if stages := report.get("calibrate"):
        show_shrinking(stages)
    terminal.console.print(
        f"committed {label(url)}: {size(report['bytes_read'])} read, {size(report['bytes_written'])} written in "
        f"{report['steps_seconds']:.1f} s ({report['gb_per_s']:.2f} GB/s), {report['steps']} steps"
        + (f" of which {report['steps_resumed']} were found done" if report["steps_resumed"] else "")
        + f"; peak memory per actor {size(max(report['actor_peak_rss_bytes']))}"
    )
    if report["energy_kept"]:
        kept = ", ".join(f"{name} {share:.1%}" for name, share in report["energy_kept"].items())
        terminal.console.print(f"energy kept: {kept}")
    for note in report.get("notes", ()):  # stores of earlier versions have none
        terminal.console.print(f"note: {note}", markup=False)
    for name, n in report["overflowed"].items():
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
