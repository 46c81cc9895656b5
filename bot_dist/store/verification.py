"""The verification of a whole store: of its shards, in parts for many workers, and of the files beside them."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import xxhash

from bot_dist.errors import CheckpointError
from bot_dist.parsing import parse_object
from bot_dist.results import Result, Row
from bot_dist.store import arrays, shards
from bot_dist.store.folder import GROUP, root_metadata
from bot_dist.store.manifest import MANIFEST
from bot_dist.store.reader import CheckpointReader, Damage, open_within
from bot_dist.tensors import Box
from bot_dist.units import size

PART_BYTES = 2**28
"""Largest part that has more than one shard, in bytes."""
_PARTS_PER_WORKER = 8


@dataclass(frozen=True, kw_only=True)
class Part:
    """Shards for one worker to verify at a time."""

    shards: tuple[tuple[str, Box], ...]
    nbytes: int
    """Bytes of the shards' files together."""

    def __str__(self) -> str:
        (first, _), (last, _) = self.shards[0], self.shards[-1]
        return first if first == last else f"{first} to {last}"


@dataclass(frozen=True, kw_only=True, repr=False)
class Verification(Result):
    """The damage that was found in a store, and what is no part of it."""

    damaged: list[Damage]
    """Damage that was found, in the manifest's order."""
    foreign: dict[str, int]
    """Files in the folder that are no part of the store, with their bytes; they do no harm."""
    read: str
    """A phrase for people: how much was read, and by whom."""

    @property
    def intact(self) -> bool:
        """Whether nothing is damaged or missing."""
        return not self.damaged

    def rows(self) -> Iterator[Row]:
        yield "verdict", "intact" if self.intact else f"{len(self.damaged)} damaged or missing"
        yield "read", self.read
        for damage in self.damaged:
            yield "damage", str(damage)
        if self.foreign:
            yield "foreign", f"{', '.join(self.foreign)} ({size(sum(self.foreign.values()))}), no part of the store"


def parts(reader: CheckpointReader, workers: int) -> list[Part]:
    """All shards in the manifest's order, cut where a part has its share of the bytes: some for every worker, so that
    the fast ones take more."""
    every = [
        (name, shard, shards.shard_bytes(stored, shard))
        for name, stored in reader.manifest.parameters.items()
        for shard in stored.shards()
    ]
    share = min(PART_BYTES, math.ceil(sum(n for _, _, n in every) / (workers * _PARTS_PER_WORKER)))
    made: list[Part] = []
    held: list[tuple[str, Box]] = []
    nbytes = 0
    for name, shard, n in every:
        if held and nbytes + n > share:
            made.append(Part(shards=tuple(held), nbytes=nbytes))
            held, nbytes = [], 0
        held.append((name, shard))
        nbytes += n
    return [*made, Part(shards=tuple(held), nbytes=nbytes)] if held else made


def verify_part(reader: CheckpointReader, part: Part) -> list[Damage]:
    """Read the shards of a part, and the metadata of the arrays that begin in it."""
    damaged = []
    for name, shard in part.shards:
        if all(start == 0 for start, _ in shard):
            stored = reader.stored(name)
            once = arrays.metadata(stored, stored.parameter.axes)  # written when one name might come twice
            damaged += _metadata(reader, f"{reader.manifest.data}/{name}/{GROUP}", arrays.metadata(stored), once)
        damaged += reader.verify(name, shard)
    return damaged


def operator_stores(reader: CheckpointReader) -> tuple[dict[str, CheckpointReader], list[Damage]]:
    """The stores of the operators that a store was made with, by folder; and those that can't be opened, or are not
    the ones that it was made with."""
    opened, damaged = {}, []
    for folder, wanted in reader.manifest.operators.items():
        try:
            operators = open_within(reader, folder)
        except CheckpointError as error:
            damaged.append(Damage(name=folder, problem=str(error)))
            continue
        if (actual := operators.manifest.digest) == wanted:
            opened[folder] = operators
        else:
            damaged.append(
                Damage(name=folder, problem=f"another store lies there: digest {actual}, committed {wanted}")
            )
    return opened, damaged


def within(folder: str, damaged: Iterable[Damage]) -> list[Damage]:
    """The damage of a store in a folder of another store, named as seen from the other one."""
    return [dataclasses.replace(damage, name=f"{folder}: {damage.name}") for damage in damaged]


def verify_beside(reader: CheckpointReader) -> list[Damage]:
    """Read what a store has beside its arrays: the metadata of its groups, and the files that are carried along."""
    manifest = reader.manifest
    damaged = _metadata(reader, GROUP, root_metadata())
    damaged += _metadata(reader, f"{manifest.data}/{GROUP}", arrays.group_metadata({"config": manifest.config}))
    for name, file in manifest.files.items():
        try:
            actual = xxhash.xxh3_128_hexdigest(reader.storage.read(f"{manifest.data}/{name}"))
        except CheckpointError as error:
            damaged.append(Damage(name=name, problem=_unreadable(reader, f"{manifest.data}/{name}", error)))
        else:
            if actual != file.xxh3_128:
                damaged.append(Damage(name=name, problem=f"digest {actual}, committed {file.xxh3_128}"))
    return damaged


def verify_sizes(reader: CheckpointReader) -> list[Damage]:
    """Find shards, metadata and carried files that are missing or of another size, by listing alone."""
    on_storage = reader.storage.sizes("")
    damaged = reader.verify_sizes()
    for name in _metadata_paths(reader):
        if name not in on_storage:
            damaged.append(Damage(name=name, problem="is missing"))
    for name, file in reader.manifest.files.items():
        nbytes = on_storage.get(f"{reader.manifest.data}/{name}")
        if nbytes != file.nbytes:
            problem = "is missing" if nbytes is None else f"has {nbytes:,} of {file.nbytes:,} bytes"
            damaged.append(Damage(name=name, problem=problem))
    return damaged


def foreign_files(reader: CheckpointReader) -> dict[str, int]:
    """The files in a store's folder that are no part of it, with their bytes: strangers, and what unfinished attempts
    wrote. Files in a store of operators that can't be opened are left out."""
    ours = {*_files(reader)}
    opened, unknown = operator_stores(reader)
    for folder, operators in opened.items():
        ours.update(f"{folder}/{name}" for name in _files(operators))
    unopened = tuple(f"{damage.name}/" for damage in unknown)
    by_name = sorted(reader.storage.sizes("").items())
    return {name: n for name, n in by_name if name not in ours and not name.startswith(unopened)}


def _files(reader: CheckpointReader) -> Iterator[str]:
    """Paths of every file of a store, but for those of its operators."""
    data = reader.manifest.data
    yield from (MANIFEST, *_metadata_paths(reader), *(f"{data}/{name}" for name in reader.manifest.files))
    for name, stored in reader.manifest.parameters.items():
        yield from (f"{data}/{name}/{stored.shard_key(shard)}" for shard in stored.shards())


def _metadata_paths(reader: CheckpointReader) -> Iterator[str]:
    """Paths of every ``zarr.json``."""
    folders: Iterable[str] = (f"{reader.manifest.data}/{name}" for name in reader.manifest.parameters)
    yield from (GROUP, f"{reader.manifest.data}/{GROUP}", *(f"{folder}/{GROUP}" for folder in folders))


def _metadata(reader: CheckpointReader, path: str, *wanted: bytes) -> list[Damage]:
    """The damage of a ``zarr.json`` that should be one of those ``wanted``. Only plain zarr needs the file."""
    try:
        if parse_object(reader.storage.read(path), path, ValueError) in map(json.loads, wanted):
            return []
        problem = "not what the manifest says; plain zarr will misread the array"
    except ValueError:
        problem = "is no JSON; plain zarr will refuse it"
    except CheckpointError as error:
        problem = _unreadable(reader, path, error)
    return [Damage(name=path, problem=problem)]


def _unreadable(reader: CheckpointReader, path: str, error: CheckpointError) -> str:
    return str(error) if reader.storage.exists(path) else "is missing"
