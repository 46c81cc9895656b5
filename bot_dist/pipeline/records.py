"""Records of what the stages of a run have measured, kept in its output folder, so that a rerun takes up where it
was."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any, TypeVar

from bot_dist.errors import CheckpointExistsError, InputError
from bot_dist.events import Event, OnEvent
from bot_dist.parsing import parse_object
from bot_dist.recipe import Recipe
from bot_dist.results import Result
from bot_dist.storage.disk import check_lasting, write_whole, writing

logger = logging.getLogger(__name__)

NAMES = ("facts", "export", "pretrain", "recipe", "samples")
"""Names of the records."""


R = TypeVar("R", bound=Result)
Recorded = TypeVar("Recorded", bound="Result | dict[str, Any]")


class Records:
    """The folder ``{output}/stages``.

    Raises InputError when the output belongs to another recipe, and CheckpointExistsError when it holds what no attempt
    of this run has made where the last stages will write; unless ``recipe.overwrite``, which forgets what was recorded.
    Raises CheckpointExistsError where records are that no run has made, CheckpointError where the output can't be
    written.
    """

    def __init__(self, output: Path, recipe: Recipe) -> None:
        self._folder = output / "stages"
        recorded = self.load("recipe")
        if "digest" not in (recorded or {}) and any(self._path(name).exists() for name in NAMES):
            raise CheckpointExistsError(f"{self._folder} holds what no run has recorded; give another output")
        if recorded is not None and not recipe.overwrite and recorded["digest"] != recipe.digest():
            raise InputError(
                f"{output} holds a run of another recipe; give another output (--set output=DIR) or --overwrite"
            )
        if recorded is None and not recipe.overwrite:
            for made in (Path(recipe.trained_url), Path(recipe.export_dir), output / "report.html"):
                if made.is_file() or (made.is_dir() and any(made.iterdir())):
                    what = "is there already" if made.is_file() else "is not empty"
                    raise CheckpointExistsError(f"{made} {what}; give another output or --overwrite")
        if recipe.overwrite:
            with writing(self._folder):
                for name in NAMES:
                    self._path(name).unlink(missing_ok=True)
        self.save("recipe", {"digest": recipe.digest(), "recipe": recipe.public()})

    def load(self, name: str) -> dict[str, Any] | None:
        """The plain data that were saved under this name, None if none were. Raises InputError where the file is
        damaged."""
        path = self._path(name)
        return parse_object(path.read_bytes(), str(path), InputError) if path.is_file() else None

    def load_result(self, name: str, kind: type[R]) -> R | None:
        """The result that was saved under this name, None if none was. Raises InputError where the file is damaged,
        CheckpointError where it is of a version that recorded something else."""
        if (data := self.load(name)) is None:
            return None
        logger.info("%s: done before, taken from %s", name, self._path(name))
        return kind.from_json(data, str(self._path(name)))

    def save(self, name: str, result: Recorded) -> Recorded:
        """Record a result or plain data, atomically, and return it."""
        assert name in NAMES, name
        data = result.to_json() if isinstance(result, Result) else result
        write_whole(self._path(name), json.dumps(data, indent=1))
        return result

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.json"


def recorded_in(path: Path, on_event: OnEvent) -> OnEvent:
    """An ``on_event`` that also appends every event to a file, a line of JSON each. Raises CheckpointError where it
    can't be written."""
    check_lasting({"events": path})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()

    def append(event: Event) -> None:
        with writing(path), path.open("a") as file:
            file.write(json.dumps(event.to_json()) + "\n")
        on_event(event)

    return append
