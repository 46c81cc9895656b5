"""Places that a run reads and writes, which last, and do not destroy each other."""

from __future__ import annotations

from bot_dist.errors import InputError
from bot_dist.recipe import Recipe
from bot_dist.storage.disk import check_lasting
from bot_dist.urls import absolute, label


def check_places(recipe: Recipe, *, trains: bool = False) -> None:
    """Raise InputError where something that a transfer writes, or a training too, would not last."""
    places = {
        "target_url": recipe.target_url,
        "output": recipe.output if trains or recipe.target_url is None else None,
        "import_to": recipe.import_to,
        "calibrate.folder": recipe.calibrate.folder,
        "train.token_cache": recipe.train.token_cache if trains else None,
    }
    check_lasting(places)


def keep_apart(read: str, written: str) -> None:
    """Raise InputError when writing one place would destroy what is read at another, whatever links lead there."""
    from bot_dist.storage.files import real_place

    a, b = (real_place(absolute(url)) + "/" for url in (read, written))
    if a.startswith(b) or b.startswith(a):
        raise InputError(f"{label(written)} would be written over its source {label(read)}; give another target")
