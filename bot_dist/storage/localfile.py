"""Files on local disks, which are written beside their place and moved there when they are whole."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from bot_dist.errors import CheckpointError
from bot_dist.storage.disk import room_for

Buffer = bytes | memoryview
PARTIAL = ".partial"
"""Suffix of a file that is not whole yet; a killed writer leaves one behind."""
_IOV = 1024
"""Largest number of buffers that the system takes in one call."""


def _batches(buffers: Sequence[Any], transferred: Callable[[list[Any]], int]) -> int:
    """Pass all buffers on, a batch at a time, and what is left of a batch again. Return the number of bytes that were
    passed before nothing more was taken."""
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


def read_into(path: str, offset: int, buffers: Sequence[memoryview], *, follow: bool = True) -> int:
    """Fill the buffers with the file's bytes from ``offset`` on, and return how many there were. Raises CheckpointError
    for a link that isn't to be followed."""
    descriptor = os.open(path, os.O_RDONLY) if follow else _open_own(path)
    try:
        os.lseek(descriptor, offset, os.SEEK_SET)
        return _batches(buffers, lambda batch: os.readv(descriptor, batch))
    finally:
        os.close(descriptor)


def read(path: str) -> bytes:
    """Read a whole file. Raises CheckpointError where it is a link."""
    with open(_open_own(path), "rb") as file:
        return file.read()


def _open_own(path: str) -> int:
    try:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)  # nobody may be at the other end of a pipe
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise linked(path) from None
        raise


def linked(path: str) -> CheckpointError:
    """The error for a link where only what lies there itself is read, written or removed."""
    return CheckpointError(
        f"{path} is a link, and nothing is read, written or removed through links inside a store; put there what it "
        f"points to (cp -RL copies a store so), or take the link away"
    )


def sizes(folder: str) -> dict[str, int]:
    """The size in bytes of every file in a folder and in the folders below it, by its path from there. A file that
    vanishes meanwhile is left out. Raises CheckpointError where there is a link among them."""
    by_name: dict[str, int] = {}
    waiting = [""]
    while waiting:
        inner = waiting.pop()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(f"{folder}/{inner}") as entries:
            for entry in entries:
                name = os.path.join(inner, entry.name)
                if entry.is_symlink():
                    raise linked(entry.path)
                if entry.is_dir(follow_symlinks=False):
                    waiting.append(name)
                else:
                    with contextlib.suppress(FileNotFoundError):
                        by_name[name] = entry.stat(follow_symlinks=False).st_size
    return by_name


def remove(root: str, names: Iterable[str], within: str = "") -> None:
    """Remove those files of a folder that are there, and the folders below ``within`` that held them and are empty
    then. Nothing is removed through a link, whoever puts one there meanwhile."""
    by_folder: dict[str, list[str]] = defaultdict(list)
    for name in names:
        folder, _, file = name.rpartition("/")
        by_folder[folder].append(file)
    for folder, files in by_folder.items():
        with contextlib.suppress(FileNotFoundError), _opened(root, folder) as descriptor:
            for file in files:
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(file, dir_fd=descriptor)
    parts = [folder.split("/") for folder in by_folder]
    above = {"/".join(path[:n]) for path in parts for n in range(1, len(path) + 1)}
    for folder in sorted(above, key=len, reverse=True):
        parent, _, last = folder.rpartition("/")
        if folder and folder.startswith(f"{within}/" if within else ""):
            with contextlib.suppress(FileNotFoundError), _opened(root, parent) as descriptor:
                try:
                    os.rmdir(last, dir_fd=descriptor)
                except OSError as error:
                    if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                        raise


@contextlib.contextmanager
def _opened(root: str, folder: str) -> Iterator[int]:
    """A descriptor of a folder below ``root``, reached without following a link."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for part in filter(None, folder.split("/")):
            try:
                inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            except NotADirectoryError:  # so the system says of a link that it should open as a folder
                raise linked(os.path.join(root, folder)) from None
            os.close(descriptor)
            descriptor = inner
        yield descriptor
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def staged(path: str, parts: Sequence[Buffer], *, durable: bool) -> Iterator[str]:
    """A temporary file beside ``path``, for the caller to rename or link into place.

    Raises CheckpointError when the disk has no room for it; nothing is left of it then.
    """
    temporary = f"{path}.{uuid.uuid4().hex}{PARTIAL}"
    nbytes = sum(map(len, parts))
    with room_for(path, nbytes):
        try:
            os.makedirs(os.path.dirname(path), exist_ok=True)
        except FileExistsError as error:  # it was there, and at once no more
            raise FileNotFoundError(*error.args) from None
        try:
            descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            try:
                written = _batches(parts, lambda batch: os.writev(descriptor, batch))
                if written != nbytes:
                    raise OSError(errno.EIO, f"{written:,} of {nbytes:,} bytes were taken")
                if durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            yield temporary
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(temporary)


def sync(path: str) -> None:
    """Make what a folder holds durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(path: str) -> None:
    """Make everything on the file system of a folder durable: one call, where syncing its thousands of folders one by
    one takes longer."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.syncfs(descriptor):
            raise OSError(ctypes.get_errno(), "can't be synced", path)
    finally:
        os.close(descriptor)
