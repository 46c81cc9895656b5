"""What ``diff`` shows: every parameter and setting that differs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from bot_dist.cli import terminal
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.formats.diff import Diff


def show_diff(first: str, second: str, found: Diff) -> None:
    if found.config:
        table = Table(title_justify="left")
        for heading in ("configuration", "first", "second"):
            table.add_column(heading, overflow="fold")
        for key, pair in found.config.items():
            table.add_row(key, *("–" if value is None else str(value) for value in pair))
        terminal.console.print(table)
    if found.parameters:
        table = Table(title_justify="left")
        for heading in ("parameter", "difference"):
            table.add_column(heading, overflow="fold")
        for heading in ("elements", "max |difference|", "relative norm"):
            table.add_column(heading, justify="right", overflow="fold")
        for difference in found.parameters:
            numbers = (f"{v.elements:,}", f"{v.max_abs:.3g}", f"{v.relative:.3g}") if (v := difference.values) else ()
            table.add_row(difference.name, difference.what or "values", *numbers)
        terminal.console.print(table)
    equal = f"{found.by_digests} parameters equal by their digests, {found.by_reading} by reading both"
    left = f", {len(found.undecided)} not compared" if found.undecided else ""
    differing = {"parameters": len(found.parameters), "keys of config.json": len(found.config)}
    verdict = "no difference" if found.equal else ", ".join(f"{n} {what} differ" for what, n in differing.items() if n)
    terminal.console.print(f"{label(first)}, {label(second)}: {verdict} ({equal}{left})")
