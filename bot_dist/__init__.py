"""bot_dist: grow and shrink pretrained transformers by wavelets.

>>> import bot_dist
>>> recipe = bot_dist.load_recipe("configs/quickstart.yaml", {"train.steps": 0})
>>> facts = bot_dist.run(recipe)

``plan_transfer``, ``transfer``, ``pretrain`` and ``export`` are the stages of ``run``; ``verify`` checks a store, and
``diff`` compares any two checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bot_dist.checkpoint import CheckpointReader
    from bot_dist.checks import diff, verify
    from bot_dist.pipeline import export, plan_transfer, pretrain, run, transfer
    from bot_dist.recipe import Recipe, load_recipe, make_recipe

_HOME = {
    "CheckpointReader": "bot_dist.checkpoint",
    "Recipe": "bot_dist.recipe",
    "diff": "bot_dist.checks",
    "load_recipe": "bot_dist.recipe",
    "make_recipe": "bot_dist.recipe",
    "verify": "bot_dist.checks",
} | dict.fromkeys(("export", "plan_transfer", "pretrain", "run", "transfer"), "bot_dist.pipeline")

__all__ = [
    "CheckpointReader",
    "Recipe",
    "diff",
    "export",
    "load_recipe",
    "make_recipe",
    "plan_transfer",
    "pretrain",
    "run",
    "transfer",
    "verify",
]


def __getattr__(name: str) -> Any:
    """Import on first use, so that ``import bot_dist`` stays instant."""
    if name not in _HOME:
        raise AttributeError(f"module 'bot_dist' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
