"""The formats of texts that are read, a file each: how one is known, and how it is opened."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bot_dist.data.texts.pieces import TextFile
from bot_dist.registry import Registry


@dataclass(frozen=True, kw_only=True)
class TextFormat:
    """A format of texts that are read. The scheme of a URL, or else what its name ends with, tells it from others."""

    open: Callable[[str, str, str, int], TextFile]
    """Opens a URL. It gets the section of the recipe that names it, the column or field that holds a document, and the
    bytes of the largest document. Raises InputError (SourceError) where the text is missing, empty or no such text."""
    ends: tuple[str, ...] = ()
    """Ends of the names of files in this format, in lower case."""
    scheme: str | None = None
    """The scheme of the URLs that are in this format, whatever their names; None: no scheme tells."""


TEXT_FORMATS: Registry[TextFormat] = Registry(TextFormat, "FORMAT", __name__, __path__, what="format of texts")
