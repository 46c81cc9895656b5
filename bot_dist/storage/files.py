"""Bytes at URLs, through fsspec.

Nothing here keeps a file or a file system: fsspec's own cache is per process and thread, so whatever holds a URL can be
sent to an actor and read there.
"""

from __future__ import annotations

import glob
import io
import os
import posixpath
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from bot_dist.errors import SourceError
from bot_dist.storage import filesystems
from bot_dist.storage.folder import Storage
from bot_dist.storage.localfile import read_into
from bot_dist.storage.package_urls import PACKAGE, exists_in_package, near_names, package_glob, resolve
from bot_dist.storage.retry import asked
from bot_dist.urls import label

T = TypeVar("T")

_BLOCK = 2**20
"""Bytes that are read at once from a file that is read from its beginning to its end."""


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL (also ``package://``) and the path in it.

    Raises MissingPackageError when a package is missing, InputError when there is no such protocol.
    """
    return filesystems.filesystem(resolve(url))


def is_local(url: str) -> bool:
    return isinstance(filesystem(url)[0], LocalFileSystem)


def real_place(url: str) -> str:
    """The place that a URL leads to: a local path, however it is written, without links on the way; any other URL
    unchanged."""
    return os.path.realpath(filesystem(url)[1]) if is_local(url) else url.rstrip("/")


def join(folder: str, name: str) -> str:
    return f"{folder.rstrip('/')}/{name}"


def size_bytes(url: str) -> int | None:
    """The size of a file in bytes; None where there is no file, or a folder.

    Raises SourceError where a server does not tell the size.
    """
    if not exists_in_package(url):
        return None
    fs, path = filesystem(url)
    try:
        info = _asked(url, "look for it", lambda: fs.info(path))
    except (FileNotFoundError, NotADirectoryError):
        return None
    if info["type"] != "file":
        return None
    if info["size"] is None:
        raise SourceError(f"{label(url)}: the server does not tell the file's size; copy it to a local disk first")
    return int(info["size"])


def existing_bytes(url: str) -> int:
    """The size of a file in bytes. Raises SourceError where there is none, or a folder."""
    size = size_bytes(url)
    if size is None:
        raise missing(url)
    return size


def broken_link(url: str) -> str | None:
    """The target of a local link that leads nowhere; None where there is no such link."""
    if not is_local(url):
        return None
    path = filesystem(url)[1]
    return os.readlink(path) if os.path.islink(path) and not os.path.exists(path) else None


def version(url: str) -> str:
    """A hash of a file's ETag or times, which changes when the file is written again."""
    fs, path = filesystem(url)
    return str(_asked(url, "look for its version", lambda: fs.ukey(path)))


def etag(url: str) -> str | None:
    """The storage's own digest of a file's content; None where it keeps none that can be relied on."""
    fs, path = filesystem(url)
    info = _asked(url, "look for it", lambda: fs.info(path))
    return next((str(info[key]) for key in ("ETag", "e_tag", "etag", "blob_id") if info.get(key)), None)


def list_names(url: str) -> list[str] | None:
    """Names in a folder, sorted; None when there is no such folder or it can't be listed."""
    if not exists_in_package(url):
        return None
    fs, path = filesystem(url)

    def names() -> list[str] | None:
        if not fs.isdir(path):
            return None
        return sorted(name.rstrip("/").rpartition("/")[2] for name in fs.ls(path, detail=False))

    try:
        return _asked(url, "list it", names)
    except (FileNotFoundError, NotADirectoryError):
        return None


def sizes(url: str) -> dict[str, int]:
    """The size in bytes of every file in a folder and in the folders below it, by its path from there. Links are
    followed."""
    fs, root = filesystem(url)
    infos = _asked(url, "list it", lambda: fs.find(root, detail=True))
    prefix = root.strip("/") + "/"
    return {path.strip("/").removeprefix(prefix): info["size"] for path, info in infos.items()}


def resolve_all(url: str) -> list[str]:
    """All paths or URLs that a pattern stands for, sorted; one without ``*?[`` is resolved as it is.

    Raises SourceError when a pattern matches nothing.
    """
    if not glob.has_magic(url):
        return [resolve(url)]
    paths = package_glob(url) if url.startswith(PACKAGE) else _glob(url)
    if not paths:
        raise SourceError(f"{label(url)}: no file matches")
    return sorted(paths)


def _glob(url: str) -> list[str]:
    """Files that a pattern matches; local ones as plain paths."""
    fs, path = filesystem(url)
    matches = _asked(url, "list it", lambda: fs.glob(path, detail=True))
    names = [name for name, info in matches.items() if info["type"] == "file"]
    return names if is_local(url) else [fs.unstrip_protocol(name) for name in names]


def read_file(url: str) -> bytes:
    """The content of a (small) file. Raises SourceError where there is none."""
    fs, path = filesystem(url)
    return bytes(_found(url, "read it", lambda: fs.cat_file(path)))


def read_range(url: str, start: int, stop: int, what: str) -> bytes:
    """Bytes ``[start, stop)`` of a file; ``what`` names them in the SourceError when there are fewer."""
    if start == stop:
        return b""
    fs, path = filesystem(url)
    data = bytes(_found(url, "read it", lambda: fs.cat_file(path, start=start, end=stop)))
    if len(data) != stop - start:
        raise _short(url, what, len(data), start, stop - start)
    return data


def read_range_into(url: str, start: int, view: memoryview, what: str) -> None:
    """Fill ``view`` with the bytes of a file from ``start`` on; as ``read_range``, without a copy where it is local."""
    if not is_local(url):
        view[:] = read_range(url, start, start + len(view), what)
        return
    path = filesystem(url)[1]
    nbytes = _found(url, "read it", lambda: read_into(path, start, [view]))
    if nbytes != len(view):
        raise _short(url, what, nbytes, start, len(view))


def _short(url: str, what: str, nbytes: int, offset: int, wanted: int) -> SourceError:
    return SourceError(
        f"{label(url)}: {what}: found {nbytes} bytes at offset {offset}, wanted {wanted}; "
        f"the file is damaged or was changed, get it again"
    )


def open_file(url: str) -> io.BufferedReader:
    """A file for reading from anywhere in it, by blocks; each is asked for as ``read_range`` does. Raises SourceError
    when it is missing, here, or changed, when it is read."""
    return io.BufferedReader(_Blocks(url, existing_bytes(url)), _BLOCK)


class _Blocks(io.RawIOBase):
    """A file that is read in the ranges that are asked for."""

    def __init__(self, url: str, size: int) -> None:
        self._url, self._size, self._position = url, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._position = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}[whence]
        return self._position

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")[: max(self._size - self._position, 0)]
        if len(view):
            read_range_into(self._url, self._position, view, "block")
            self._position += len(view)
        return len(view)


def write_file(url: str, data: bytes) -> None:
    """Write a (small) file atomically and durably, making its folder where the storage has folders."""
    folder, name = posixpath.split(url)
    Storage(folder).write(name, [data], durable=True)


def missing(url: str) -> SourceError:
    """The error for a path at which there is no file: it names what is beside it, or in it where it is a folder."""
    if (names := list_names(url)) is not None:
        kinds = Counter(posixpath.splitext(name)[1] for name in names)
        example = join(url, f"*{kinds.most_common(1)[0][0] if kinds else '.txt'}")
        return SourceError(f"{label(url)} is a folder, wanted a file; name the files in it, for example {example}")
    if is_local(url):
        if os.path.exists(path := filesystem(url)[1]):
            return SourceError(f"{url} is neither a file nor a folder; give one")
        parent, name = posixpath.split(path)
        return SourceError(f"{url}: no such file or folder{near_names(name, list_names(parent) or ())}")
    return SourceError(
        f"{label(url)}: no such file or folder, or it can't be listed; check the URL and the credentials"
    )


def _asked(url: str, operation: str, call: Callable[[], T]) -> T:
    return asked(url, operation, call, SourceError)


def _found(url: str, operation: str, call: Callable[[], T]) -> T:
    """Ask as ``_asked`` does, and raise SourceError where the file is missing."""
    try:
        return _asked(url, operation, call)
    except (FileNotFoundError, NotADirectoryError):
        raise missing(url) from None
