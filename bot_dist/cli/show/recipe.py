"""The output of ``--print-config``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot_dist.recipe import commented

if TYPE_CHECKING:
    from bot_dist.compare.recipe import ComparisonRecipe
    from bot_dist.recipe import Recipe


def show_recipe(recipe: Recipe | ComparisonRecipe) -> None:
    """Show a recipe as YAML that can be run again, every key under what it does."""
    print(commented(type(recipe), recipe.public()), end="")
