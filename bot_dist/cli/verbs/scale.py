"""``bot_dist scale``: a transfer alone."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bot_dist.cli.options import Address, Overrides, Overwrite, RecipeOrSource, ScaleOptions, TargetUrl
from bot_dist.cli.recipes import errors_name_options, is_recipe, recipe_of_arguments
from bot_dist.errors import InputError


def scale(
    source: RecipeOrSource,
    target_url: TargetUrl = None,
    *,
    options: ScaleOptions,
    events: Annotated[Path | None, typer.Option(help="File to append events to, as JSON lines.")] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    address: Address = None,
) -> None:
    """Transfer only: write a source checkpoint as a store of another size, or, where no size is given, as it is."""
    from bot_dist.cli.progress import progress
    from bot_dist.cli.show.plan import show_plan
    from bot_dist.cli.show.scale import show_transfer
    from bot_dist.pipeline.records import recorded_in
    from bot_dist.pipeline.transfer import plan_scale, transfer_planned

    if target_url is None and not is_recipe(source):
        raise InputError("scale needs a target; write: bot_dist scale SOURCE TARGET_URL --layers …")
    resolved = recipe_of_arguments(source, target_url, options, overrides, overwrite=overwrite, address=address)
    with errors_name_options(source):
        planning = plan_scale(resolved)
        show_plan(planning.draft, resolved)
    with errors_name_options(source), progress() as on_event:
        report = transfer_planned(planning, recorded_in(events, on_event) if events else on_event)
    show_transfer(report, resolved.transferred_url)
