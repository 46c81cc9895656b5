"""The kinds of checkpoints that are read, a file each: how one is known, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bot_dist.registry import Registry

if TYPE_CHECKING:
    from bot_dist.formats.source import Source


@dataclass(frozen=True, kw_only=True)
class SourceFormat:
    """A kind of checkpoint that is read. What its URL ends with, or else a file in its folder, tells it from others."""

    open: Callable[[str], Source]
    """Opens what is at a URL. Raises SourceError where it is missing or damaged, FamilyError for an unknown
    architecture, and MissingPackageError where the format needs a package that is not installed."""
    ends: tuple[str, ...] = ()
    """End of the URLs of such checkpoints."""
    marker: str | None = None
    """The name of a file that every folder of this kind has, and no other; None: no file tells."""


SOURCES: Registry[SourceFormat] = Registry(SourceFormat, "SOURCE", __name__, __path__, what="kind of checkpoint")
