"""A folder that exports fill: of what is in it, nothing but what an export has made is ever replaced or removed.

``.bot_dist-export.json`` names all files that the last export has made, each with its digest: who changes one of them
makes it his own. A new export is written into a subfolder and moved into place when it is whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from bot_dist.errors import CheckpointExistsError
from bot_dist.parsing import parse_object
from bot_dist.storage import localfile

RECORD = ".bot_dist-export.json"
STAGING = ".bot_dist-export-"
"""Prefix of the subfolder or file in which an unfinished export is."""
MARKERS = ("config.json", ".metadata")
"""Without these a folder is no model to ``transformers``, and no checkpoint to DCP."""
_WEIGHTS = (".safetensors", ".bin", ".gguf", ".distcp", ".index.json")
_STORE = {"zarr.json", "manifest.json"}
_BLOCK = 2**20


class ExportFolder:
    """A folder that an export is written into, and what is in it already.

    Raises CheckpointExistsError where the folder is no place for an export: where anything is in it, unless
    ``overwrite``; and where it holds a store, or a model that no export has made.
    """

    def __init__(self, path: Path, *, overwrite: bool) -> None:
        if os.path.lexists(path) and not path.is_dir():
            what = "a file" if path.exists() else f"a link to {path.readlink()}, which is not there"
            raise CheckpointExistsError(f"{path}: is {what}; give a folder")
        self.path = path
        held = _files(path)
        if held & _STORE:
            raise CheckpointExistsError(f"{path}: holds a bot_dist store; export into another folder")
        if (models := _models(held)) and not overwrite:
            raise CheckpointExistsError(
                f"{path}: already holds a model ({_listed(models)}); give another folder or --overwrite"
            )
        if (others := held - {RECORD}) and not overwrite:
            raise CheckpointExistsError(
                f"{path}: is not empty ({_listed(sorted(others))}); give another folder, or --overwrite to export "
                f"beside that"
            )
        self._made = {name: _version(path / name) for name in _as_made(path)}
        if models := _models(self._foreign()):
            raise CheckpointExistsError(
                f"{path}: holds a model that no export has made, or that was changed since ({_listed(models)}), which "
                f"is not overwritten; give another folder, or move it away"
            )

    @contextlib.contextmanager
    def staging(self) -> Iterator[Path]:
        """A subfolder for an unfinished export. Nothing is left of it when the block has raised."""
        created = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        for killed in filter(_is_staging, [*self.path.iterdir()]):
            shutil.rmtree(killed)
        staging = Path(tempfile.mkdtemp(prefix=STAGING, dir=self.path))
        try:
            _write(staging / RECORD, {})
            yield staging
        finally:
            shutil.rmtree(staging)
            if created:
                with contextlib.suppress(OSError):  # something is there: the export, or another's
                    self.path.rmdir()

    def publish(self, staging: Path) -> tuple[str, ...]:
        """Move all files of the subfolder into place; their names, sorted. What the last export made goes before, the
        ``MARKERS`` first of all, and the new ones come last. Raises CheckpointExistsError where another's file is in
        the place of one."""
        names = sorted(_files(staging) - {RECORD}, key=lambda name: (name in MARKERS, name))
        self.refuse_taken(names)
        record(staging)
        made = self._own()
        localfile.remove(str(self.path), made & {*MARKERS})
        localfile.remove(str(self.path), made)
        for name in (RECORD, *names):
            (self.path / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).replace(self.path / name)
        for folder in {(self.path / name).parent for name in names}:
            localfile.sync(str(folder))
        return tuple(sorted((RECORD, *names)))

    def keeps(self, name: str) -> bool:
        """Whether what no export has made is under a name."""
        return name in self._foreign()

    def refuse_taken(self, names: Iterable[str]) -> None:
        """Raise CheckpointExistsError where what no export has made is in the place of one of these files."""
        wanted = {*names}
        folders = {str(folder) for name in wanted for folder in Path(name).parents}
        foreign = {name: {str(folder) for folder in Path(name).parents} for name in self._foreign()}
        taken = {name for name, inside in foreign.items() if name in wanted | folders or inside & wanted}
        if taken := taken or {name for name in wanted if (self.path / name).is_dir()}:
            raise CheckpointExistsError(
                f"{self.path}: no export has made {_listed(sorted(taken))}, or it was changed since, and it is not "
                f"overwritten; give another folder, or move it away"
            )

    def _own(self) -> set[str]:
        """The names of the files that are still as an export has made them."""
        return {name for name, version in self._made.items() if version == _version(self.path / name)}

    def _foreign(self) -> set[str]:
        return _files(self.path) - self._own() - {RECORD}


def record(folder: Path) -> None:
    """Say of all that is in a folder that an export has made it."""
    _write(folder / RECORD, {name: digest_of(folder / name) for name in sorted(_files(folder) - {RECORD})})


def digest_of(path: Path) -> str:
    """The xxh3-128 digest of a file."""
    digest, block = xxhash.xxh3_128(), memoryview(bytearray(_BLOCK))
    with path.open("rb", buffering=0) as file:
        while n := file.readinto(block):
            digest.update(block[:n])
    return digest.hexdigest()


def _as_made(folder: Path) -> Iterator[str]:
    """Names of the files that are still what the last export has made."""
    record = folder / RECORD
    try:
        files = parse_object(localfile.read(str(record)), RECORD, ValueError)
    except (OSError, ValueError):
        return
    for name in _files(folder) & files.keys():
        if not (folder / name).is_symlink() and digest_of(folder / name) == files[name]:
            yield name


def _files(folder: Path) -> set[str]:
    """All that is in a folder and the folders in it, but folders and unfinished exports, by its path from there."""
    paths = set()
    for inner, folders, files in os.walk(folder):
        links = [name for name in folders if os.path.islink(os.path.join(inner, name))]
        paths |= {os.path.relpath(os.path.join(inner, name), folder) for name in (*files, *links)}
        folders[:] = [name for name in folders if not _is_staging(Path(inner, name))]
    return paths


def _is_staging(folder: Path) -> bool:
    """Whether an unfinished export is in it."""
    return folder.name.startswith(STAGING) and not folder.is_symlink() and (folder / RECORD).is_file()


def _models(names: Iterable[str]) -> list[str]:
    """The names that belong to a model, for whoever loads it."""
    of_models = [name for name in names if name in MARKERS or (name.endswith(_WEIGHTS) and "/" not in name)]
    return sorted(of_models, key=lambda name: (name not in MARKERS, name))


def _listed(names: Iterable[str]) -> str:
    first, second, third, *others = (*names, "", "", "")
    return ", ".join(filter(None, [first, second, third, "…" if any(others) else ""]))


def _version(path: Path) -> tuple[int, ...] | None:
    """Numbers that change when a file is written again; None where there is no file."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_mode


def _write(record: Path, files: dict[str, str]) -> None:
    with record.open("w") as file:
        json.dump(files, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
