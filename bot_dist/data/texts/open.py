"""The text files that a recipe names, opened by their format."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from bot_dist.data.texts.formats import TEXT_FORMATS, TextFormat
from bot_dist.data.texts.pieces import TextFile
from bot_dist.errors import InputError
from bot_dist.recipe import DOCUMENT_LIMIT
from bot_dist.storage.files import resolve_all

FALLBACK = "plain"
"""The format of a file whose name tells none."""
_THREADS = 8


def resolve_texts(names: Iterable[str], section: str) -> list[str]:
    """The files that paths, fsspec URLs, ``package://PACKAGE/FILE`` and patterns of them stand for, sorted, and data
    sets. Raises InputError when there are none, SourceError where a pattern matches nothing."""
    schemes = tuple(known.scheme for known in TEXT_FORMATS.values() if known.scheme is not None)
    files = {file for name in names for file in ([name] if name.startswith(schemes) else resolve_all(name))}
    if not files:
        raise InputError(f"{section}.text names no file; give paths, fsspec URLs or package://PACKAGE/FILE")
    return sorted(files)


def open_texts(
    names: Iterable[str], column: str = "text", section: str = "train", limit: int = DOCUMENT_LIMIT
) -> list[TextFile]:
    """The texts that a recipe names, each in the one of ``TEXT_FORMATS`` that its scheme or the end of its name tells:
    JSON lines, CSV, Parquet, a data set, else plain text.

    ``column`` is the field or column that holds a document, ``section`` what messages call the recipe's, ``limit`` the
    bytes of the largest document in a line or row. Raises InputError (SourceError) where there is none, or one is
    missing, empty or not what its name says.
    """
    files = [(url, _format_of(url)) for url in resolve_texts(names, section)]
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="bot_dist-texts") as pool:
        return [*pool.map(lambda file: file[1].open(file[0], section, column, limit), files)]


def _format_of(url: str) -> TextFormat:
    name = posixpath.basename(url).lower()
    formats = [*TEXT_FORMATS.values()]
    by_scheme = [known for known in formats if known.scheme is not None and url.startswith(known.scheme)]
    by_name = [known for known in formats if name.endswith(known.ends)]
    return next(iter([*by_scheme, *by_name]), TEXT_FORMATS[FALLBACK])
