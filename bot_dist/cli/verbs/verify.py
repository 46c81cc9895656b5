"""``bot_dist verify``: every chunk of a store against its manifest."""

from __future__ import annotations

from typing import Annotated

import typer

from bot_dist.cli.options import Address, AsJson, Overrides, RecipeOrUrl
from bot_dist.cli.recipes import is_recipe, recipe_of_arguments
from bot_dist.urls import label


def verify(
    url: RecipeOrUrl,
    quick: Annotated[bool, typer.Option("--quick", help="Look at existence and sizes only.")] = False,
    actors: Annotated[
        int | None, typer.Option(min=1, help="Let so many Ray actors read, in place of threads.", show_default=False)
    ] = None,
    address: Address = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Read every chunk of a committed store and check it against its manifest."""
    from bot_dist.cli.progress import progress
    from bot_dist.cli.show.plain import show_json
    from bot_dist.cli.show.verify import show_verification
    from bot_dist.pipeline import checks

    recipe = recipe_of_arguments(url, overrides=overrides, address=address)
    url = recipe.transferred_url if is_recipe(url) else url
    with progress() as on_event:
        verification = checks.verify(url, on_event, quick=quick, actors=actors, cluster=recipe.cluster)
    if as_json:
        show_json({"url": label(url), "intact": verification.intact, **verification.to_json()})
    else:
        show_verification(url, verification)
    if verification.damaged:
        raise typer.Exit(1)
