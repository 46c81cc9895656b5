"""A folder on any fsspec file system: whole files written atomically, byte ranges read into buffers."""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from bot_dist.checkpoint.filesystems import filesystem, storage_errors
from bot_dist.errors import CheckpointError
from bot_dist.urls import label

Buffer = bytes | memoryview
PARTIAL = ".partial"
"""Suffix of a file on its way; a killed writer leaves one."""
_IOV = 1024
"""Buffers that the system takes in one call."""


@dataclass(frozen=True)
class Request:
    """Bytes to read from a file into buffers."""

    name: str
    offset: int
    buffers: Sequence[memoryview]

    @property
    def nbytes(self) -> int:
        return sum(map(len, self.buffers))


class Storage:
    """The folder at ``url``: a local path (with or without ``file://``) or any fsspec URL.

    Pickles as its URL: file systems and event loops are never shared between processes. Threads may share it.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.label = label(self.url)
        self.fs, self.root = filesystem(self.url)
        self.local = isinstance(self.fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    def exists(self, name: str = "") -> bool:
        with self._errors():
            self.fs.invalidate_cache()
            return bool(self.fs.exists(self.path(name) if name else self.root))

    def is_empty(self) -> bool:
        """Whether nothing is there."""
        with self._errors():
            return not self.exists() or not self.fs.ls(self.root, detail=False)

    def read(self, name: str) -> bytes:
        """A whole small file."""
        with self._errors():
            data: bytes = self.fs.cat_file(self.path(name))
        return data

    def read_into(self, requests: Sequence[Request]) -> None:
        """Fill the buffers of every request, one after the other, with the bytes of its file from its offset on; the
        requests at the same time where the storage is remote.

        Raises CheckpointError where a file is missing, shorter, or can't be read.
        """
        with self._errors():
            if self.local:
                found = [_read_into(self.path(r.name), r.offset, r.buffers) for r in requests]
            else:
                found = self._fetch(requests)
        for request, n in zip(requests, found, strict=True):
            if n != request.nbytes:
                raise CheckpointError(
                    f"{self.label}/{request.name}: found {n:,} bytes at offset {request.offset:,}, "
                    f"wanted {request.nbytes:,}"
                )

    def _fetch(self, requests: Sequence[Request]) -> list[int]:
        paths = [self.path(r.name) for r in requests]
        starts, ends = [r.offset for r in requests], [r.offset + r.nbytes for r in requests]
        lengths = []
        for request, data in zip(requests, self.fs.cat_ranges(paths, starts, ends, on_error="return"), strict=True):
            if isinstance(data, Exception):
                raise data
            rest = memoryview(data)
            lengths.append(len(rest))
            for buffer in request.buffers if len(rest) == request.nbytes else ():
                buffer[:], rest = rest[: len(buffer)], rest[len(buffer) :]
        return lengths

    def names(self, folder: str) -> list[str]:
        """Names of what is in a folder; none if it doesn't exist."""
        with self._errors():
            self.fs.invalidate_cache()
            try:
                found = self.fs.ls(self.path(folder), detail=False)
            except FileNotFoundError:
                return []
        return sorted(posixpath.basename(p.rstrip("/")) for p in found if not p.endswith(PARTIAL))

    def sizes(self, folder: str) -> dict[str, int]:
        """Bytes of every file in a folder and the folders in it, by its path from there."""
        with self._errors():
            self.fs.invalidate_cache()
            found = self.fs.find(self.path(folder), detail=True)
        root = self.path(folder).strip("/") + "/"
        return {path.strip("/").removeprefix(root): info["size"] for path, info in found.items()}

    def write(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Replace a file by the concatenation of ``parts``, atomically.

        ``durable``: the bytes survive a crash of the machine (object stores are durable once they answer); that the
        file has its name then is for ``sync_folders``.
        """
        with self._errors():
            if not self.local:
                self.fs.pipe_file(self.path(name), b"".join(parts))
                return
            with _staged(self.path(name), parts, durable=durable) as staged:
                os.replace(staged, self.path(name))

    def create(self, name: str, data: bytes) -> None:
        """Write a file that must not exist yet, durably. Raises FileExistsError when another writer was first."""
        with self._errors():
            if not self.local:
                self.fs.pipe_file(self.path(name), data, mode="create")
                return
            with _staged(self.path(name), [data], durable=True) as staged:
                os.link(staged, self.path(name))
            _sync(os.path.dirname(self.path(name)))

    def sync_folders(self, folder: str) -> None:
        """Make the names in a local folder, the folders in it, and those it is in durable."""
        if not self.local:
            return
        with self._errors():
            for path, _, _ in os.walk(self.path(folder)):
                _sync(path)
            path = self.path(folder)
            while len(path) >= len(self.root):
                path = os.path.dirname(path)
                _sync(path)

    def remove(self, name: str = "") -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        with self._errors(), contextlib.suppress(FileNotFoundError):
            if self.exists(name):
                self.fs.rm(self.path(name) if name else self.root, recursive=True)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors(self.url, CheckpointError)


def _batches(buffers: Sequence[Any], transferred: Callable[[list[Any]], int]) -> int:
    """Pass all buffers on, a batch at a time and the rest of a batch again; the bytes passed before an end came."""
    queue = [view for b in buffers if len(view := memoryview(b).cast("B"))]
    total = first = 0
    while first < len(queue):
        batch = queue[first : first + _IOV]
        n = transferred(batch)
        if n == 0:
            break
        total += n
        for view in batch:
            if n < len(view):
                queue[first] = view[n:]
                break
            n -= len(view)
            first += 1
    return total


def _read_into(path: str, offset: int, buffers: Sequence[memoryview]) -> int:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return _batches(buffers, lambda batch: os.readv(descriptor, batch))
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _staged(path: str, parts: Sequence[Buffer], *, durable: bool) -> Iterator[str]:
    """A temporary file beside ``path``, for the caller to rename or link into place."""
    os.makedirs(os.path.dirname(path), exist_ok=True)
    staged = f"{path}.{uuid.uuid4().hex}{PARTIAL}"
    try:
        descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            _batches(parts, lambda batch: os.writev(descriptor, batch))
            if durable:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        yield staged
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(staged)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
