"""The text files that a recipe names, opened by their format."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor

from bot_dist.data.texts.delimited import DELIMITERS, Delimited
from bot_dist.data.texts.hub import HubText
from bot_dist.data.texts.jsonl import JsonLines
from bot_dist.data.texts.parquet import Parquet
from bot_dist.data.texts.pieces import TextFile
from bot_dist.data.texts.plain import PlainText
from bot_dist.errors import InputError
from bot_dist.recipe import DOCUMENT_LIMIT
from bot_dist.storage.files import resolve_all
from bot_dist.urls import DATASETS, label

JSON_LINES = (".jsonl", ".ndjson", ".json", ".jsonl.gz", ".ndjson.gz", ".json.gz")
COMPRESSED = (".gz", ".zst", ".bz2", ".xz", ".zip", ".tar")
_THREADS = 8


def resolve_texts(names: Iterable[str], section: str) -> list[str]:
    """The files that paths, fsspec URLs, ``package://PACKAGE/FILE`` and patterns of them stand for, sorted, and data
    sets. Raises InputError when there are none, SourceError where a pattern matches nothing."""
    files = {file for name in names for file in ([name] if name.startswith(DATASETS) else resolve_all(name))}
    if not files:
        raise InputError(f"{section}.text names no file; give paths, fsspec URLs or package://PACKAGE/FILE")
    return sorted(files)


def open_texts(
    names: Iterable[str], column: str = "text", section: str = "train", limit: int = DOCUMENT_LIMIT
) -> list[TextFile]:
    """The texts that a recipe names; by their names' ends they are JSON lines, CSV, Parquet or plain text.

    ``column`` is the field or column that holds a document, ``section`` what messages call the recipe's, ``limit`` the
    bytes of the largest document in a line or row. Raises InputError (SourceError) where there is none, or one is
    missing, empty or not what its name says.
    """
    urls = resolve_texts(names, section)
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="bot_dist-texts") as pool:
        return [*pool.map(lambda url: _open(url, column, section, limit), urls)]


def _open(url: str, column: str, section: str, limit: int) -> TextFile:
    if url.startswith(DATASETS):
        return HubText.open(url, section, column, limit)
    name = posixpath.basename(url).lower()
    if name.endswith(JSON_LINES):
        return JsonLines.open(url, section, column, limit)
    if name.endswith((*DELIMITERS,)):
        return Delimited.open(url, section, column, limit)
    if name.endswith(".parquet"):
        return Parquet.open(url, section, column, limit)
    if name.endswith(COMPRESSED):
        raise InputError(
            f"{section}.text: {label(url)} is compressed, and of such files only .jsonl.gz are read; decompress it"
        )
    return PlainText.open(url, section)
