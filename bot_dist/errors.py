"""Errors a user can act on.

Every message names the thing, what was found, what was wanted, and the way out. The command line prints
the message alone and exits with the class's ``exit_status``; a traceback means a bug in bot_dist.

All of them are built from one string, or one per line, so that they survive the pickling between actors. What they say
is often a stranger's: names of tensors, URLs, values. So each is shown ``presentable``, wherever it is.
"""

from __future__ import annotations

import contextlib
import difflib
from collections.abc import Callable, Iterable, Iterator

from bot_dist.urls import label

MOST_CHARACTERS = 1_900
"""Longest message that is shown."""
_MOST_SEARCHED = 10 * MOST_CHARACTERS
"""Characters of a text that are searched for secrets, half of them at each end; the rest is left out unseen."""


def presentable(text: str) -> str:
    """A text from anywhere, on one line: without secrets of URLs, with what is not printable escaped, and what is too
    long for a person left out of its middle."""
    n, half = len(text), _MOST_SEARCHED // 2
    ends = [text] if n <= _MOST_SEARCHED else [text[:half].rpartition(" ")[0], text[-half:].partition(" ")[2]]
    text = " … ".join(map(label, ends))
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    if n <= MOST_CHARACTERS and len(text) <= MOST_CHARACTERS:
        return text
    half = MOST_CHARACTERS // 2
    return f"{text[:half]} … ({n:,} characters) … {text[-half:]}"


class BotDistError(Exception):
    """Something bot_dist expected might go wrong did go wrong."""

    exit_status = 1

    def __str__(self) -> str:
        lines = [presentable(str(line)) for line in self.args]
        while len(lines) > 1 and sum(map(len, lines)) + len(lines) > MOST_CHARACTERS:
            lines.pop()
        return "\n".join(lines)


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


def some(names: Iterable[str], most: int = 8) -> str:
    """A few of the names, quoted, and how many there are where that is not all."""
    names = [*names]
    shown = ", ".join(repr(name if len(name) <= 40 else f"{name[:39]}…") for name in names[:most])
    return f"{shown}, … ({len(names):,} in all)" if len(names) > most else shown or "none"


@contextlib.contextmanager
def blamed(make: Callable[[str], BotDistError]) -> Iterator[None]:
    """Turn any exception that a library raises over an input into the error that ``make`` makes of its first line.
    Errors of ours pass, and so does whatever ends the process."""
    try:
        yield
    except (BotDistError, KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # panics of Rust are no Exception
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise make(line[:200]) from None
