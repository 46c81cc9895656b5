"""What ``export`` shows: where it wrote, and whether that loads."""

from __future__ import annotations

from typing import Any

from bot_dist.cli import terminal


def show_export(report: dict[str, Any]) -> None:
    terminal.console.print(f"exported {report['source']} in {report['seconds']:.1f} s to {report['folder']}")
    for note in report.get("notes", ()):
        terminal.console.print(f"note: {note}", markup=False)
    if "logits" in report:
        logits = report["logits"]
        terminal.console.print(
            f"transformers loads it: {len(logits['missing_keys'])} missing, {len(logits['unexpected_keys'])} "
            f"unexpected keys; logits differ from the trained model's by at most {logits['max_abs_difference']:.2e} "
            f"(max |logit| {logits['max_abs_logit']:.1f})"
        )
