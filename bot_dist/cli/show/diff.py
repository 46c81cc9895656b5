"""The output of ``diff``: every parameter and setting that differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from bot_dist.cli import terminal
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.formats.diff import Diff


def show_diff(first: str, second: str, diff: Diff) -> None:
    if diff.config:
        table = Table(title_justify="left")
        for heading in ("configuration", "first", "second"):
            table.add_column(heading, overflow="fold")
        for key, pair in diff.config.items():
            table.add_row(key, *("–" if value is None else str(value) for value in pair))
        terminal.console.print(table)
    if diff.parameters:
        table = Table(title_justify="left")
        for heading in ("parameter", "difference"):
            table.add_column(heading, overflow="fold")
        for heading in ("elements", "max |difference|", "relative norm"):
            table.add_column(heading, justify="right", overflow="fold")
        for difference in diff.parameters:
            numbers = (f"{v.elements:,}", f"{v.max_abs:.3g}", f"{v.relative:.3g}") if (v := difference.values) else ()
            table.add_row(difference.name, difference.what or "values", *numbers)
        terminal.console.print(table)
    equal = f"{diff.by_digests} parameters equal by their digests, {diff.by_reading} by reading both"
    left = f", {len(diff.undecided)} not compared" if diff.undecided else ""
    differing = {"parameters": len(diff.parameters), "keys of config.json": len(diff.config)}
    verdict = "no difference" if diff.equal else ", ".join(f"{n} {what} differ" for what, n in differing.items() if n)
    terminal.console.print(f"{label(first)}, {label(second)}: {verdict} ({equal}{left})")
