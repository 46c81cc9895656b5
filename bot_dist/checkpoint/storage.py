"""A folder on any fsspec file system: small files written atomically, and the zarr store in it."""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from fsspec.implementations.local import LocalFileSystem

from bot_dist.checkpoint.filesystems import filesystem, storage_errors
from bot_dist.errors import CheckpointError
from bot_dist.urls import label

if TYPE_CHECKING:
    from zarr.abc.store import Store


class Storage:
    """The folder at ``url``: a local path (with or without ``file://``) or any fsspec URL.

    Pickles as its URL: file systems and event loops are never shared between processes.
    """

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")
        self.label = label(self.url)
        self.fs, self.root = filesystem(self.url)
        self.local = isinstance(self.fs, LocalFileSystem)

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def _errors(self) -> contextlib.AbstractContextManager[None]:
        return storage_errors(self.url, CheckpointError)

    def path(self, name: str) -> str:
        return posixpath.join(self.root, name)

    def exists(self, name: str = "") -> bool:
        with self._errors():
            return bool(self.fs.exists(self.path(name) if name else self.root))

    def is_empty(self) -> bool:
        """Whether nothing is there."""
        with self._errors():
            return not self.exists() or not self.fs.ls(self.root, detail=False)

    def read(self, name: str) -> bytes:
        with self._errors():
            data: bytes = self.fs.cat_file(self.path(name))
        return data

    def names(self, folder: str) -> list[str]:
        """Names of the files in a folder; none if it doesn't exist."""
        self.fs.invalidate_cache()
        if not self.exists(folder):
            return []
        return [
            posixpath.basename(p) for p in self.fs.ls(self.path(folder), detail=False) if not p.endswith(".partial")
        ]

    def write(self, name: str, data: bytes) -> None:
        """Replace a file atomically. After a crash of the machine it may be the old one, or none."""
        with self._errors():
            if not self.local:
                self.fs.pipe_file(self.path(name), data)
                return
            with _staged(self.path(name), data, durable=False) as staged:
                os.replace(staged, self.path(name))

    def create(self, name: str, data: bytes) -> None:
        """Write a file that must not exist yet, durably. Raises FileExistsError when another writer was first."""
        with self._errors():
            if not self.local:
                self.fs.pipe_file(self.path(name), data, mode="create")
                return
            with _staged(self.path(name), data, durable=True) as staged:
                os.link(staged, self.path(name))

    def sync(self, name: str) -> None:
        """Make a local file durable (object stores are durable once they answer)."""
        if self.local:
            _sync(self.path(name))

    def remove(self, name: str = "") -> None:
        """Remove a file or a folder with all that is in it, if it is there."""
        with self._errors():
            if self.exists(name):
                self.fs.rm(self.path(name) if name else self.root, recursive=True)

    def zarr_store(self, *, read_only: bool) -> Store:
        from zarr.storage import FsspecStore, LocalStore

        if self.local:
            return LocalStore(self.root, read_only=read_only)
        options: dict[str, Any] = {"read_only": read_only}
        return FsspecStore.from_url(self.url, **options)


@contextlib.contextmanager
def _staged(path: str, data: bytes, *, durable: bool) -> Iterator[str]:
    """A temporary file beside ``path``, for the caller to rename or link into place."""
    folder = os.path.dirname(path)
    os.makedirs(folder, exist_ok=True)
    staged = f"{path}.{uuid.uuid4().hex}.partial"
    try:
        with open(staged, "xb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        yield staged
        if durable:
            _sync(folder)
    finally:
        if os.path.exists(staged):
            os.unlink(staged)


def _sync(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
