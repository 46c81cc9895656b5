"""``bot_dist pretrain``: training from a transferred store."""

from __future__ import annotations

from bot_dist.cli.options import Address, Overrides, Overwrite, RecipePath
from bot_dist.cli.recipes import recipe_of_file


def pretrain(
    recipe: RecipePath, overrides: Overrides = None, overwrite: Overwrite = False, address: Address = None
) -> None:
    """Continue pretraining from the recipe's transferred store."""
    from bot_dist.cli.progress import progress
    from bot_dist.cli.show.pretrain import show_pretrain
    from bot_dist.pipeline.pretrain import pretrain as train

    resolved = recipe_of_file(recipe, overrides, overwrite=overwrite, address=address)
    with progress() as on_event:
        result = train(resolved, on_event)
    show_pretrain(result)
