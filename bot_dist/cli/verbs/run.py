"""``bot_dist run``: the whole of a recipe."""

from __future__ import annotations

from bot_dist.cli.options import Address, AllowNonfinite, Overrides, Overwrite, PrintConfig, RecipePath
from bot_dist.cli.recipes import recipe_of_file


def run(
    recipe: RecipePath,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
    allow_nonfinite: AllowNonfinite = False,
    address: Address = None,
    print_config: PrintConfig = False,
) -> None:
    """Plan, transfer, continue pretraining, export and report: the whole of a recipe."""
    from bot_dist.cli.progress import progress
    from bot_dist.cli.show.plan import show_plan
    from bot_dist.cli.show.recipe import show_recipe
    from bot_dist.cli.show.run import show_run
    from bot_dist.pipeline.run import plan_run
    from bot_dist.pipeline.run import run as run_recipe

    allowed = ["transfer.allow_nonfinite=true"] if allow_nonfinite else []
    given = [*allowed, *(overrides or ())]
    resolved = recipe_of_file(recipe, given, overwrite=overwrite, address=address, family=True)
    if print_config:
        show_recipe(resolved)
        return
    plannings = plan_run(resolved)
    for planning in plannings.values():
        show_plan(planning.draft, planning.recipe)
    with progress() as on_event:
        facts = run_recipe(resolved, on_event, plannings=plannings)
    show_run(facts, resolved)
