"""Grow and shrink pretrained transformers by wavelets.

>>> import bot_dist
>>> small = bot_dist.resize("hf://ORGANISATION/MODEL", layers=24, embed=288, mlp=768)
>>> small.export("hf://USER/MODEL-SMALL")

or, of a recipe:

>>> recipe = bot_dist.load_recipe("configs/quickstart.yaml", {"train.steps": 0})
>>> result = bot_dist.run(recipe)

``Checkpoint(URL)`` gives any checkpoint as a state dict or a ``transformers`` model. ``plan_transfer``, ``transfer``,
``pretrain`` and ``export`` are the stages of ``run``; ``verify`` checks a store, and ``diff`` compares any two
checkpoints. All of them call ``on_event`` with the events of ``bot_dist.events`` as they happen; by default these are
logged by the loggers ``bot_dist.STAGE``.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from bot_dist.version import __version__

if TYPE_CHECKING:
    from bot_dist.pipeline.checks import diff, verify
    from bot_dist.pipeline.export import export, export_store
    from bot_dist.pipeline.pretrain import pretrain
    from bot_dist.pipeline.resizing import Checkpoint, resize
    from bot_dist.pipeline.run import run
    from bot_dist.pipeline.transfer import plan_transfer, transfer
    from bot_dist.recipe import Recipe, load_recipe, make_recipe
    from bot_dist.store import CheckpointReader

_HOME = {
    "Checkpoint": "bot_dist.pipeline.resizing",
    "CheckpointReader": "bot_dist.store",
    "Recipe": "bot_dist.recipe",
    "diff": "bot_dist.pipeline.checks",
    "export": "bot_dist.pipeline.export",
    "export_store": "bot_dist.pipeline.export",
    "load_recipe": "bot_dist.recipe",
    "make_recipe": "bot_dist.recipe",
    "plan_transfer": "bot_dist.pipeline.transfer",
    "pretrain": "bot_dist.pipeline.pretrain",
    "resize": "bot_dist.pipeline.resizing",
    "run": "bot_dist.pipeline.run",
    "transfer": "bot_dist.pipeline.transfer",
    "verify": "bot_dist.pipeline.checks",
}

__all__ = [
    "Checkpoint",
    "CheckpointReader",
    "Recipe",
    "__version__",
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


logging.getLogger(__name__).addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    """Import a name of the public interface on its first use, so that ``import bot_dist`` stays instant. Raises
    AttributeError on any other name."""
    if name not in _HOME:
        raise AttributeError(f"module 'bot_dist' has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(_HOME[name]), name)
