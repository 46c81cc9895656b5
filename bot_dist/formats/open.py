"""Opening a source by what is there."""

from __future__ import annotations

from bot_dist.formats.configuration import check_configuration
from bot_dist.formats.source import Source
from bot_dist.storage.files import join, size_bytes
from bot_dist.storage.package_urls import resolve
from bot_dist.urls import label


def is_store(url: str) -> bool:
    """Whether this is a zarr store, be it complete or not."""
    return size_bytes(join(url, "zarr.json")) is not None


def open_source(url: str) -> Source:
    """A ``.gguf`` file, a bot_dist store, safetensors (a folder or a file), or the shapes of a ``config.json``; with a
    configuration that the installed ``transformers`` takes.

    Raises SourceError, FamilyError, MissingPackageError, or CheckpointError for a store that is not complete.
    """
    source = _opened(url)
    check_configuration(source.config, label(url.removesuffix("config.json").rstrip("/") or "."))
    return source


def _opened(url: str) -> Source:
    if resolve(url).endswith(".gguf"):
        from bot_dist.formats.gguf.read import open_gguf

        return open_gguf(url)
    if url.endswith("config.json"):
        from bot_dist.formats.config_only import Shapes

        return Shapes(url)
    if not url.endswith(".safetensors") and is_store(url):
        from bot_dist.store import CheckpointReader

        return CheckpointReader(url)
    from bot_dist.formats.safetensors_in import open_safetensors

    return open_safetensors(url)
