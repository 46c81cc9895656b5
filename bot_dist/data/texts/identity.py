"""The identity of texts: digests of the content, computed once for a file that stays as it is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import xxhash

from bot_dist.data.texts.pieces import TextFile
from bot_dist.errors import CheckpointError
from bot_dist.parsing import parse_object
from bot_dist.storage.files import etag, is_local, open_file, version
from bot_dist.storage.folder import Storage

KNOWN = ".bot_dist-digests.json"
"""File of a folder that remembers the digests of local files, and the versions that they are of."""
_BLOCK = 2**23
_THREADS = 8


class Identity(NamedTuple):
    """A file as it is now."""

    version: str
    """Version of the file, as ``storage.files.version`` has it; another when the file has been written since."""
    digest: str
    """Bytes and xxh3-128 of its content, or the ETag where the storage keeps one."""


def identities(texts: Iterable[TextFile], storage: Storage) -> dict[str, Identity]:
    """The identity of every file of the texts, by its URL.

    The digests of local files are remembered in ``storage``: one that has its size, inode and times still is not read.
    """
    known = _known(storage)
    urls = sorted({url for text in texts for url in text.sources})
    with ThreadPoolExecutor(_THREADS, thread_name_prefix="bot_dist-digests") as pool:
        by_url = dict(zip(urls, pool.map(lambda url: _identity(url, known.get(url)), urls), strict=True))
    remembered = known | {url: identity for url, identity in by_url.items() if is_local(url)}
    if remembered != known:
        storage.write(KNOWN, [json.dumps(remembered, sort_keys=True).encode()])
    return by_url


def _identity(url: str, known: Identity | None) -> Identity:
    now = version(url)
    if known is not None and known.version == now:
        return known
    if tag := etag(url):
        return Identity(now, f"etag:{tag}")
    content, nbytes = xxhash.xxh3_128(), 0
    with open_file(url) as file:
        while data := file.read(_BLOCK):
            content.update(data)
            nbytes += len(data)
    return Identity(now, f"{nbytes}:{content.hexdigest()}")


def _known(storage: Storage) -> dict[str, Identity]:
    """The identities that are remembered, by path; none where they can't be read."""
    try:
        return {url: Identity(*both) for url, both in parse_object(storage.read(KNOWN), KNOWN, ValueError).items()}
    except (ValueError, TypeError, AttributeError, CheckpointError):
        return {}
