"""The output of ``run``: every stage, and the place of the report."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot_dist.cli import terminal
from bot_dist.cli.show.export import show_export
from bot_dist.cli.show.pretrain import show_pretrain
from bot_dist.cli.show.scale import show_transfer
from bot_dist.recipe import members_of

if TYPE_CHECKING:
    from bot_dist.pipeline.results import FamilyResult, PipelineResult
    from bot_dist.recipe import Recipe


def show_run(result: PipelineResult | FamilyResult, recipe: Recipe) -> None:
    """Show the stages of a run; of a family, every member and the index."""
    from bot_dist.pipeline.results import FamilyResult

    if isinstance(result, FamilyResult):
        for name, member in members_of(recipe).items():
            terminal.console.rule(name, align="left")
            show_run(result.members[name], member)
        terminal.console.print(f"index: {result.report}")
        return
    if result.complete_before:
        terminal.console.print(
            f"this run is complete: {result.report}\nstart over with --overwrite, or give another output "
            f"with --set output=DIR"
        )
        return
    show_transfer(result.transfer, recipe.transferred_url)
    show_pretrain(result.pretrain)
    show_export(result.export)
    terminal.console.print(f"report: {result.report}")
