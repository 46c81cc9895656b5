"""Opening a source by what is there."""

from __future__ import annotations

from bot_dist.formats.configuration import check_configuration
from bot_dist.formats.source import Source
from bot_dist.formats.sources import SOURCES, SourceFormat
from bot_dist.storage.files import join, size_bytes
from bot_dist.storage.package_urls import resolve
from bot_dist.urls import label

FALLBACK = "safetensors"
"""Kind of source that a URL is opened as where nothing tells its kind; its errors say what is missing there."""


def is_store(url: str) -> bool:
    """Whether this is a zarr store, be it complete or not."""
    return _has_marker(url, SOURCES["store"])


def open_source(url: str) -> Source:
    """Open a checkpoint of any kind (see ``SOURCES``) whose configuration the installed ``transformers`` takes: a
    ``.gguf`` file, a store, safetensors (a folder or a file), or the shapes of a ``config.json``.

    Raises SourceError, FamilyError, MissingPackageError, or CheckpointError for a store that is not complete.
    """
    source = _format_of(url).open(url)
    check_configuration(source.config, label(url.removesuffix("config.json").rstrip("/") or "."))
    return source


def _format_of(url: str) -> SourceFormat:
    place, formats = resolve(url), [*SOURCES.values()]
    named = [known for known in formats if place.endswith(known.ends)]
    there = [] if named else [known for known in formats if _has_marker(url, known)]
    return next(iter([*named, *there]), SOURCES[FALLBACK])


def _has_marker(url: str, kind: SourceFormat) -> bool:
    return kind.marker is not None and size_bytes(join(url, kind.marker)) is not None
