"""Local disks: an error of the system while writing becomes one error that says why."""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from bot_dist.errors import BotDistError, CheckpointError, InputError
from bot_dist.urls import absolute

_FULL = {errno.ENOSPC: "the disk is full", errno.EDQUOT: "the quota is used up", errno.EFBIG: "no file may be so large"}
_REFUSED = (
    *(errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR),
    *(errno.EMFILE, errno.ENFILE, errno.EBUSY, errno.ESTALE, errno.ENODEV, errno.ENXIO),
)

_OF_A_JOB = re.compile(r"/runtime_resources/[^/]+_files/")
"""Part of every path that Ray has unpacked for a job, such as the job's working directory."""


def check_lasting(places: Mapping[str, str | Path | None]) -> None:
    """Raise InputError, naming its key, where a place to write to lies in what Ray has unpacked for a job: hidden in
    its temporary folder, in another one after any change, and deleted when Ray wants room."""
    for key, place in places.items():
        if place is not None and _OF_A_JOB.search(absolute(str(place))):
            kept = Path.home() / (Path(place).name if Path(place).is_absolute() else place)
            raise InputError(
                f"{key}: '{place}' lies in the working directory of the job, {os.getcwd()}, which Ray hides and may "
                f"delete; give an absolute path that all nodes see, for example {os.path.normpath(kept)}"
            )


@contextlib.contextmanager
def room_for(path: str, nbytes: int) -> Iterator[None]:
    """Turn the system's error while ``nbytes`` are written to a local file or folder into a CheckpointError, where
    there is no room for them. What the block has left behind by then counts as used."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise _no_room(path, error.errno, f"{nbytes:,} bytes wanted, ") from None


@contextlib.contextmanager
def writing(path: str | Path, nbytes: int | None = None) -> Iterator[None]:
    """Turn the system's error while a local file or folder is written, by whatever library, into a CheckpointError that
    says why."""
    try:
        yield
    except Exception as error:
        code = None if isinstance(error, BotDistError) else _system_error(error)
        if code is None:
            raise
        if code in _FULL:
            raise _no_room(str(path), code, f"{nbytes:,} bytes wanted, " if nbytes else "") from None
        raise CheckpointError(f"{path}: can't be written: {os.strerror(code)}; give a place that can") from None


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a (small) file at once, and make the folder that it is in. Raises CheckpointError as ``writing`` does."""
    partial = path.with_name(f"{path.name}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            partial.write_bytes(content.encode() if isinstance(content, str) else content)
            partial.replace(path)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise


def told(error: Exception) -> str | None:
    """One line about an error of the system that nobody has expected where it came from; None for any other error."""
    if isinstance(error, RecursionError):
        return "something is nested deeper than can be read: a path with that many folders, or an input"
    if isinstance(error, FileNotFoundError) and error.filename is None and "temporary directory" in str(error):
        return f"{error.strerror}; set TMPDIR to a folder that can be written"
    if not isinstance(error, OSError) or error.errno not in (*_FULL, *_REFUSED):
        return None
    return f"{error.filename or 'a file'}: can't be read or written: {os.strerror(error.errno)}"


def _no_room(path: str, code: int, wanted: str) -> CheckpointError:
    folder = next(folder for folder in Path(path).absolute().parents if folder.exists())
    return CheckpointError(
        f"{path}: can't be written, {_FULL[code]}: {wanted}{shutil.disk_usage(folder).free:,} free; "
        f"make room, or give a target elsewhere; then run the same command again"
    )


def _system_error(error: BaseException | None) -> int | None:
    """The system's error that an exception is, or that is behind it; libraries in Rust have it in their text alone."""
    if error is None:
        return None
    if isinstance(error, OSError) and error.errno:
        return error.errno
    if match := re.search(r"\(os error (\d+)\)", str(error)):
        return int(match[1])
    return _system_error(error.__cause__ or error.__context__) if isinstance(error, RuntimeError) else None
