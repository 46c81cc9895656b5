"""A folder on any fsspec file system, whose files are written atomically and read by ranges into buffers.

What a remote storage can't do just now is asked for again (``retry``). On local disks nothing inside the folder is a
link, or it is refused; the folder itself may be reached through links.
"""

from __future__ import annotations

import contextlib
import functools
import os
import posixpath
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec.implementations.local import LocalFileSystem

from bot_dist.errors import CheckpointError
from bot_dist.storage import localfile
from bot_dist.storage.filesystems import OBJECT_STORES, check_writable, filesystem, protocol
from bot_dist.storage.localfile import PARTIAL, Buffer, linked, read_into, staged, sync, sync_all
from bot_dist.storage.retry import asked, transient
from bot_dist.urls import label

T = TypeVar("T")


@dataclass(frozen=True)
class Request:
    """A range of bytes of a file, which is to be read into buffers."""

    name: str
    offset: int
    buffers: Sequence[memoryview]

    @property
    def nbytes(self) -> int:
        """The number of bytes that all buffers hold together."""
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
        self._own: set[str] = {""}
        """Folders that are known to be no links."""

    def __reduce__(self) -> tuple[type[Storage], tuple[str]]:
        return Storage, (self.url,)

    def path(self, name: str) -> str:
        """The path of a file of this folder on its file system."""
        return posixpath.join(self.root, name) if name else self.root

    def _inside(self, folder: str) -> None:
        """Raise CheckpointError where a folder on a local disk is a link, or is in one."""
        parts = folder.split("/") if self.local else []
        for n in range(1, len(parts) + 1):
            if (upper := "/".join(parts[:n])) not in self._own:
                if os.path.islink(self.path(upper)):
                    raise linked(self.path(upper))
                self._own.add(upper)

    def refuse_links(self, *folders: str) -> None:
        """Raise CheckpointError where one of the folders is a link or in one; where none is named, where anything in
        the whole folder is a link."""
        for folder in folders:
            self._inside(folder)
        if self.local and not folders:
            localfile.sizes(self.root)

    def exists(self, name: str = "") -> bool:
        """Whether a file or folder of this name is there; without a name, whether this folder is."""
        try:
            self._asked(f"look for {name}" if name else "look there", lambda: self._fresh().info(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            return False
        return True

    def is_empty(self) -> bool:
        """Whether the folder is missing, or has nothing in it."""
        return not self.exists() or not (self._listed("") if self.local else self.sizes(""))

    def read(self, name: str) -> bytes:
        """Read a whole small file. Raises CheckpointError when it is missing or can't be read."""
        self._inside(posixpath.dirname(name))
        read = localfile.read if self.local else self.fs.cat_file
        try:
            data: bytes = self._asked(f"read {name}", lambda: read(self.path(name)))
        except (FileNotFoundError, NotADirectoryError):
            raise CheckpointError(f"{self.label}/{name}: no such file; restore it or make the store again") from None
        return data

    def read_into(self, requests: Sequence[Request]) -> None:
        """Fill the buffers of every request, one after the other, with the bytes of its file from its offset on. Where
        the storage is remote, all requests are made at the same time.

        Raises CheckpointError where a file is missing, shorter, or can't be read.
        """
        try:
            if self.local:
                for request in requests:
                    self._inside(posixpath.dirname(request.name))
                    path = self.path(request.name)
                    read = functools.partial(read_into, path, request.offset, request.buffers, follow=False)
                    nbytes_read = self._asked(f"read {request.name}", read)
                    self._check_length(request, nbytes_read)
            else:
                self._fetch(requests)
        except (FileNotFoundError, NotADirectoryError) as error:
            where = label(error.filename) if error.filename else ", ".join(sorted({r.name for r in requests})[:3])
            raise CheckpointError(f"{self.label}: no such file: {where}") from None

    def _fetch(self, requests: Sequence[Request]) -> None:
        """Ask for all ranges at the same time, and again for those alone that can't be answered just now."""
        waiting = list(requests)

        def fetch() -> None:
            paths = [self.path(r.name) for r in waiting]
            starts, ends = [r.offset for r in waiting], [r.offset + r.nbytes for r in waiting]
            answers = self.fs.cat_ranges(paths, starts, ends, on_error="return")
            failed = []
            for request, data in [*zip(waiting, answers, strict=True)]:
                if isinstance(data, Exception):
                    failed.append(data)
                    continue
                self._check_length(request, len(data))
                rest = memoryview(data)
                for buffer in request.buffers:
                    buffer[:], rest = rest[: len(buffer)], rest[len(buffer) :]
                waiting.remove(request)
            for error in sorted(failed, key=transient):
                raise error

        if waiting:
            self._asked(f"read from {waiting[0].name}", fetch)

    def _check_length(self, request: Request, nbytes: int) -> None:
        if nbytes != request.nbytes:
            raise CheckpointError(
                f"{self.label}/{request.name}: found {nbytes:,} bytes at offset {request.offset:,}, "
                f"wanted {request.nbytes:,}"
            )

    def names(self, folder: str) -> list[str]:
        """The names of files and folders in a folder, sorted; none if it doesn't exist."""
        paths = self._listed(folder)
        return sorted(posixpath.basename(p.rstrip("/")) for p in paths if not p.endswith(PARTIAL))

    def _listed(self, folder: str) -> list[str]:
        self._inside(folder)
        try:
            paths: list[str] = self._asked(
                f"list {folder or 'it'}", lambda: self._fresh().ls(self.path(folder), detail=False)
            )
        except (FileNotFoundError, NotADirectoryError):
            return []
        return paths

    def sizes(self, folder: str) -> dict[str, int]:
        """The size in bytes of every file in a folder and in the folders below it, by its path from there. Raises
        CheckpointError where one of them is a link."""
        self._inside(folder)
        if self.local:
            return self._asked(f"list {folder or 'it'}", lambda: localfile.sizes(self.path(folder)))
        infos = self._asked(f"list {folder or 'it'}", lambda: self._fresh().find(self.path(folder), detail=True))
        root = self.path(folder).strip("/") + "/"
        return {path.strip("/").removeprefix(root): info["size"] for path, info in infos.items()}

    def write(self, name: str, parts: Sequence[Buffer], *, durable: bool = False) -> None:
        """Replace a file by the concatenation of ``parts``, atomically.

        ``durable``: the bytes survive a crash of the machine (object stores are durable once they answer); that the
        file has its name then is for ``sync_folders``.

        Raises InputError where files are not written atomically, CheckpointError when it can't be written.
        """

        def write() -> None:
            if not self.local:
                self._put(name, parts, "overwrite")
                return
            self._inside(posixpath.dirname(name))
            with staged(self.path(name), parts, durable=durable) as ready:
                os.replace(ready, self.path(name))

        self._changed(f"write {name}", write)

    def create(self, name: str, data: bytes) -> None:
        """Write a file that must not exist yet, durably. Raises FileExistsError when another writer was first.

        On remote storage a file of the very same bytes is taken for the own one: the answer to an earlier try may
        have been lost.
        """

        def create() -> None:
            if not self.local:
                self._put(name, [data], "create")
                return
            self._inside(posixpath.dirname(name))
            with staged(self.path(name), [data], durable=True) as ready:
                os.link(ready, self.path(name))
            sync(os.path.dirname(self.path(name)))

        try:
            self._changed(f"create {name}", create)
        except FileExistsError:
            if self.local or self.read(name) != data:
                raise

    def _put(self, name: str, parts: Sequence[Buffer], mode: str) -> None:
        check_writable(self.url)
        data: Any = [*parts] if protocol(self.url) in OBJECT_STORES else b"".join(parts)  # these need no copy
        self.fs.pipe_file(self.path(name), data, mode=mode)

    def sync_folders(self, folder: str) -> None:
        """Make the names in a local folder, the folders in it, and those it is in durable."""
        if not self.local:
            return
        self._changed(f"sync {folder or 'it'}", lambda: sync_all(self.path(folder)))

    def remove(self, *names: str, within: str = "") -> None:
        """Remove those files that are there, and the folders below ``within`` that held them and are empty then."""
        held = sorted({*names})

        def remove() -> None:
            if self.local:
                localfile.remove(self.root, held, within)
            elif protocol(self.url) in OBJECT_STORES:
                self.fs.rm([self.path(name) for name in held])
            else:
                for name in held:
                    with contextlib.suppress(FileNotFoundError):
                        self.fs.rm_file(self.path(name))

        with contextlib.suppress(FileNotFoundError):
            if held:
                self._asked(f"remove {held[0]}" if len(held) == 1 else f"remove {len(held):,} files", remove)

    def _fresh(self) -> Any:
        """The file system, without what it remembers of listings."""
        self.fs.invalidate_cache()
        return self.fs

    def _asked(self, operation: str, call: Callable[[], T]) -> T:
        return asked(self.url, operation, call, CheckpointError)

    def _changed(self, operation: str, call: Callable[[], T]) -> T:
        """Ask as ``_asked`` does for an operation that needs folders which were there; another run may have removed
        them."""
        try:
            return self._asked(operation, call)
        except NotADirectoryError:
            raise CheckpointError(f"{self.label}: can't {operation}: a part of the path is a file") from None
        except FileNotFoundError:
            raise CheckpointError(
                f"{self.label}: can't {operation}: its folder was removed meanwhile, as by another run into it; "
                f"run the same command again when that has ended"
            ) from None
