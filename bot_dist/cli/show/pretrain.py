"""The output of ``pretrain``: the losses and speeds of its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from bot_dist.cli import terminal
from bot_dist.units import size

if TYPE_CHECKING:
    from bot_dist.train.results import PretrainResult


def show_pretrain(result: PretrainResult) -> None:
    table = Table(title=f"held-out loss, {result.workers} workers on {result.device}", title_justify="left")
    for heading in ("run", "parameters", "loss by step", "load", "first step", "tokens/s, MFU", "peak memory per rank"):
        table.add_column(heading, overflow="fold")
    for run in result.runs:
        table.add_row(
            run.name,
            f"{run.n_parameters:,}",
            "  ".join(f"{held_out.step}: {held_out.measures}" for held_out in run.held_out),
            f"{run.load_s:.1f} s",
            f"{run.first_step_s:.1f} s" if run.first_step_s is not None else "–",
            f"{run.tokens_per_s:,.0f}, {run.mfu:.1%}" if run.tokens_per_s is not None and run.mfu is not None else "–",
            ", ".join(size(n) for n in run.peak_rss_bytes),
        )
    terminal.console.print(table)
