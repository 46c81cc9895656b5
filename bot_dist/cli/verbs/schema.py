"""``bot_dist schema``: the JSON schema of recipes."""

from __future__ import annotations

from typing import Annotated, Literal

import typer


def schema(
    of: Annotated[
        Literal["run", "compare"], typer.Argument(metavar="VERB", help="The verb whose recipes it describes.")
    ] = "run",
) -> None:
    """Print the JSON schema of recipes, for editors that check and complete YAML."""
    from bot_dist.cli.show.plain import show_json
    from bot_dist.compare.recipe import ComparisonRecipe
    from bot_dist.recipe import Recipe
    from bot_dist.recipe import schema as schema_of

    show_json(schema_of(Recipe if of == "run" else ComparisonRecipe))
