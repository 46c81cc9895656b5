"""The output of ``export``: the place that was written, and whether it loads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot_dist.cli import terminal

if TYPE_CHECKING:
    from bot_dist.formats.export_result import ExportResult


def show_export(exported: ExportResult) -> None:
    terminal.console.print(f"exported {exported.source} in {exported.seconds:.1f} s to {exported.folder}")
    for note in exported.notes:
        terminal.console.print(f"note: {note}", markup=False)
    if exported.logits is not None:
        terminal.console.print(str(exported.logits))
