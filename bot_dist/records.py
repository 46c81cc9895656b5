"""What the stages of a run have measured, kept in its output folder, so that a rerun takes up where it was."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bot_dist.errors import CheckpointExistsError, InputError
from bot_dist.parsing import parse_object
from bot_dist.recipe import Recipe

NAMES = ("facts", "export", "pretrain", "recipe")
"""Of what is recorded."""


class Records:
    """The folder ``{output}/stages``.

    Raises InputError when the output belongs to another recipe or can't be written, and CheckpointExistsError when it
    holds what no attempt of this run has made where the last stages will write; unless ``recipe.overwrite``, which
    forgets what was recorded.
    """

    def __init__(self, output: Path, recipe: Recipe) -> None:
        self._folder = output / "stages"
        found = self.load("recipe")
        if found is not None and not recipe.overwrite and found["digest"] != recipe.digest():
            raise InputError(
                f"{output} holds a run of another recipe; give another output (--set output=DIR) or --overwrite"
            )
        if found is None and not recipe.overwrite:
            for made in map(Path, (recipe.trained_url, recipe.export_dir)):
                if made.exists() and any(made.iterdir()):
                    raise CheckpointExistsError(f"{made} is not empty; give another output or --overwrite")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InputError(f"output {output} can't be written: {error.strerror}; give another folder") from None
        if recipe.overwrite:
            for name in NAMES:
                self._path(name).unlink(missing_ok=True)
        self.save("recipe", {"digest": recipe.digest(), "recipe": recipe.public()})

    def load(self, name: str) -> dict[str, Any] | None:
        """What was saved under this name, None if nothing was."""
        path = self._path(name)
        if not path.is_file():
            return None
        return parse_object(path.read_bytes(), str(path), InputError)

    def save(self, name: str, result: dict[str, Any]) -> dict[str, Any]:
        """Record a result, atomically, and return it."""
        assert name in NAMES, name
        partial = self._folder / f"{name}.json.partial"
        partial.write_text(json.dumps(result, indent=1))
        partial.replace(self._path(name))
        return result

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"
