"""Errors a user can act on.

Every message names the thing, what was found, what was wanted, and the way out. The command line prints
the message alone and exits with the class's ``exit_status``; a traceback means a bug in bot_dist.

All of them are built from one string, so that they survive the pickling between actors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BotDistError(Exception):
    """Something bot_dist expected might go wrong did go wrong."""

    exit_status = 1


class InputError(BotDistError):
    """The user's input is wrong; nothing was started."""

    exit_status = 2


class RecipeError(InputError):
    """A recipe or an override does not say what to do."""


class FamilyError(InputError):
    """A model is of no known family, or its configuration is one the family can't express."""


class PlanError(InputError):
    """No valid plan leads from this source to this target on this mesh."""


class SourceError(InputError):
    """A source checkpoint is missing, damaged or not what its index says."""


class CalibrationError(InputError):
    """Statistics of a calibration text do not determine what was asked of them."""


class CheckpointError(BotDistError):
    """A bot_dist store is uncommitted, damaged or already taken."""


class CheckpointMissingError(CheckpointError, InputError):
    """There is no committed store where one was named."""

    exit_status = 2


class CheckpointExistsError(CheckpointError, InputError):
    """The target already holds something that would be lost."""

    exit_status = 2


class MissingPackageError(InputError):
    """An optional package is needed and not installed."""


class RunError(BotDistError):
    """A stage failed after its input had been accepted."""


class DivergedError(RunError):
    """A loss has become NaN or infinity."""


class StoppedError(RunError):
    """A signal has stopped a training, whose state was saved."""

    exit_status = 143


def nearest(word: str, known: Iterable[str]) -> str:
    """A clause that names the nearest known words, or lists them all when none is near."""
    known = sorted(known)
    near = difflib.get_close_matches(word, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else f"known: {', '.join(known)}"
