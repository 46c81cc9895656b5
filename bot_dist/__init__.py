"""bot_dist: grow and shrink pretrained transformers by wavelets.

>>> import bot_dist
>>> small = bot_dist.resize("hf://ORGANISATION/MODEL", layers=24, embed=288, mlp=768)
>>> small.export("hf://USER/MODEL-SMALL")

or, of a recipe:

>>> recipe = bot_dist.load_recipe("configs/quickstart.yaml", {"train.steps": 0})
>>> facts = bot_dist.run(recipe)

``Checkpoint(URL)`` gives any checkpoint as a state dict or a ``transformers`` model. ``plan_transfer``, ``transfer``,
``pretrain`` and ``export`` are the stages of ``run``; ``verify`` checks a store, and ``diff`` compares any two
checkpoints.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bot_dist.pipeline.checks import diff, verify
    from bot_dist.pipeline.resizing import Checkpoint, resize
    from bot_dist.pipeline.stages import export, export_store, plan_transfer, pretrain, run, transfer
    from bot_dist.recipe import Recipe, load_recipe, make_recipe
    from bot_dist.store import CheckpointReader

_HOME = {
    "Checkpoint": "bot_dist.pipeline.resizing",
    "CheckpointReader": "bot_dist.store",
    "Recipe": "bot_dist.recipe",
    "diff": "bot_dist.pipeline.checks",
    "load_recipe": "bot_dist.recipe",
    "make_recipe": "bot_dist.recipe",
    "resize": "bot_dist.pipeline.resizing",
    "verify": "bot_dist.pipeline.checks",
} | dict.fromkeys(
    ("export", "export_store", "plan_transfer", "pretrain", "run", "transfer"), "bot_dist.pipeline.stages"
)

__all__ = [
    "Checkpoint",
    "CheckpointReader",
    "Recipe",
    "diff",
    "export",
    "export_store",
    "load_recipe",
    "make_recipe",
    "plan_transfer",
    "pretrain",
    "resize",
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
