"""``bot_dist compare``: ways to make one target."""

from __future__ import annotations

from bot_dist.cli.options import Address, Overrides, PrintConfig, RecipePath
from bot_dist.cli.recipes import flags


def compare(
    recipe: RecipePath, overrides: Overrides = None, address: Address = None, print_config: PrintConfig = False
) -> None:
    """Make one target in several ways, train all alike, and tell how much training each way saves over scratch."""
    from bot_dist.compare.recipe import load_comparison

    resolved = load_comparison(recipe, [*(overrides or ()), *flags(address=address)])
    if print_config:
        from bot_dist.cli.show.recipe import show_recipe

        show_recipe(resolved)
        return
    from bot_dist.cli.progress import progress
    from bot_dist.cli.show.compare import show_trials
    from bot_dist.compare.trials import compare as run_comparison

    with progress() as on_event:
        facts = run_comparison(resolved, on_event)
    show_trials(facts, resolved.output)
