"""The reader of a committed store, which checks every chunk that it reads against the manifest."""

from __future__ import annotations

import itertools
import os
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import xxhash

from bot_dist.errors import CheckpointError, SourceError
from bot_dist.plan import DETAILS, MOMENTS, Details
from bot_dist.storage.folder import Request, Storage
from bot_dist.store import arrays, shards
from bot_dist.store.layout import StoredParameter
from bot_dist.store.manifest import OPERATORS, Manifest
from bot_dist.tensors import PIECE_BYTES, Box, box_shape, box_size, even_range, flat_boxes, whole
from bot_dist.tensors.axes import Parameter

if TYPE_CHECKING:
    import torch

    from bot_dist.model import Model

LOCAL_BATCH = 2**21
"""Bytes that are read from a local disk before they are checked: few enough to be in the cache still."""
REMOTE_BATCH = 2**25
"""Bytes that remote storage is asked for at the same time."""

READ_AHEAD = 2**28
"""Bytes of tensors that may be waiting to be taken."""


@dataclass(frozen=True, kw_only=True)
class Damage:
    """An inner chunk that does not hold what was committed, the index of a shard, or a file beside the arrays."""

    name: str
    """Name of the parameter, or path of the file."""
    chunk: str | None = None
    problem: str

    def __str__(self) -> str:
        where = self.name if self.chunk is None else f"{self.name}, chunk {self.chunk}"
        return f"{where}: {self.problem}"


class CheckpointReader:
    """A committed checkpoint. Implements the ``Source`` protocol; threads may share it.

    Raises CheckpointError when the store is not committed or its manifest was changed. Pickled, it is its URL and what
    it found there: the copy raises CheckpointError, when it is first read, if another store has taken the place.
    """

    whole_rows = False

    def __init__(self, url: str, digest: str | None = None) -> None:
        self.url, self._digest = url, digest
        self.storage = Storage(url)
        if digest is None:
            _ = self.manifest

    def __reduce__(self) -> tuple[type[CheckpointReader], tuple[str, str]]:
        return CheckpointReader, (self.url, self.manifest.digest)

    @cached_property
    def manifest(self) -> Manifest:
        manifest = Manifest.load(self.storage)
        self.storage.refuse_links(manifest.data, OPERATORS)
        if self._digest not in (None, manifest.digest):
            raise CheckpointError(
                f"{self.storage.label} was replaced while it was read; run the command again, with what is there now"
            )
        return manifest

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest.config

    def check(self, model: Model) -> None:
        """Raise SourceError unless the store holds exactly the parameters of ``model``."""
        wanted = {parameter.name: parameter for _, _, parameter in model.parameters()}
        for name, parameter in wanted.items():
            stored = self.manifest.parameters.get(name)
            if stored is None:
                raise SourceError(f"{self.storage.label}: parameter {name} is missing")
            if stored.parameter != parameter:
                raise SourceError(
                    f"{self.storage.label}: {name} has axes {stored.parameter.sizes}, wanted {parameter.sizes}"
                )
        for name in self.manifest.parameters.keys() - wanted.keys():
            if name.startswith((DETAILS, MOMENTS)):
                continue
            raise SourceError(f"{self.storage.label}: {name} is no parameter of the model that its config describes")

    def dtype(self, parameter: Parameter) -> torch.dtype:
        return arrays.torch_dtype(self.stored(parameter.name).dtype)

    def storage_bytes(self, parameter: Parameter) -> int:
        return self.stored(parameter.name).nbytes

    def learning_rate_factor(self, parameter: Parameter) -> float:
        return self.stored(parameter.name).learning_rate_factor

    def parameter(self, name: str) -> Parameter:
        """The parameter or detail band of that name. Raises SourceError when there is none."""
        return self.stored(name).parameter

    def stored(self, name: str) -> StoredParameter:
        """The layout of a parameter on storage. Raises SourceError when there is none of that name."""
        if name not in self.manifest.parameters:
            raise SourceError(f"{self.storage.label} holds no parameter {name}")
        return self.manifest.parameters[name]

    def details(self) -> Details | None:
        """The details that shrinking has dropped and the store has kept; None where it has kept none."""
        recorded = self.manifest.provenance.get("details")
        try:
            return Details.from_json(recorded).at(self.url) if recorded else None
        except (KeyError, TypeError, ValueError, AttributeError, AssertionError) as error:
            raise CheckpointError(
                f"{self.storage.label}: what its manifest says of details is malformed ({error!r}); make it again"
            ) from None

    @property
    def optimizer_step(self) -> int | None:
        """The number of steps that AdamW had taken whose moments lie beside the weights; None where there are no
        moments."""
        provenance = self.manifest.provenance
        facts = provenance.get("training") or provenance.get("moments") or {}
        step = facts.get("optimizer_step")
        if step is not None and (type(step) is not int or step < 0):
            raise CheckpointError(f"{self.storage.label}: its manifest has {step!r} for AdamW's steps; make it again")
        return step

    @property
    def moments_exact(self) -> bool:
        """Whether those moments are as a training left them: no operator has changed them."""
        exact: bool = self.manifest.provenance.get("moments", {}).get("exact", True)
        return exact

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        """Read a box, and check it. Raises CheckpointError naming the first chunk that is missing or damaged."""
        stored = self.stored(parameter.name)
        if box_size(box) == 0:
            raise ValueError(f"{parameter.name}: empty box {box}")
        result = arrays.empty(box_shape(box), stored.dtype)
        self._fill(stored, [(box, arrays.view(result))], self._batch)
        return result

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        """Read a box as ``read`` does, into a CPU tensor of the box's shape and the parameter's dtype, of any
        strides."""
        batch = LOCAL_BATCH if self.storage.local else PIECE_BYTES
        self._fill(self.stored(parameter.name), [(box, arrays.view(into))], batch)

    @property
    def _batch(self) -> int:
        return LOCAL_BATCH if self.storage.local else REMOTE_BATCH

    def read_flat(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Elements ``[start, stop)`` of the row-major parameter, as a flat tensor: what a ZeRO rank owns. No chunk
        is read twice."""
        stored = self.stored(name)
        result, done = arrays.empty([stop - start], stored.dtype), 0
        places: list[_Place] = []
        for box in flat_boxes(stored.parameter.sizes, start, stop):
            places.append((box, arrays.view(result[done : done + box_size(box)]).reshape(box_shape(box))))
            done += box_size(box)
        self._fill(stored, places, self._batch)
        return result

    def read_slice(self, name: str, axis: str, rank: int, degree: int) -> torch.Tensor:
        """Read the part of a parameter that tensor parallelism gives to ``rank`` of ``degree`` along a named axis, of
        the unfused shape. Where the axis doesn't divide, the first ranks have one index more. Raises SourceError when
        the parameter has no such axis."""
        parameter = self.parameter(name)
        if axis not in parameter.axes:
            raise SourceError(f"{self.storage.label}: {name} has no axis '{axis}', only {', '.join(parameter.axes)}")
        along = parameter.axes.index(axis)
        box = list(whole(parameter.sizes))
        box[along] = even_range(parameter.sizes[along], degree, rank)
        return self.read(parameter, tuple(box))

    def tensors(self, names: Iterable[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Whole tensors of the fused shape, of the model or those named, in order; some are read ahead meanwhile."""
        if names is None:
            names = [name for name in self.manifest.parameters if not name.startswith((DETAILS, MOMENTS))]
        threads = min(8, os.cpu_count() or 1)
        waiting: deque[tuple[Parameter, Future[torch.Tensor]]] = deque()
        ahead = 0
        with ThreadPoolExecutor(threads, thread_name_prefix="bot_dist-read") as pool:
            for name in [*names, None]:
                if name is not None:
                    parameter = self.parameter(name)
                    waiting.append((parameter, pool.submit(self.read, parameter, whole(parameter.sizes))))
                    ahead += self.storage_bytes(parameter)
                while waiting and (name is None or ahead > READ_AHEAD):
                    parameter, future = waiting.popleft()
                    ahead -= self.storage_bytes(parameter)
                    yield parameter.name, future.result().reshape(parameter.shape)

    def file(self, name: str) -> bytes:
        """A file that is carried along, checked. Raises SourceError when there is none, CheckpointError when it was
        changed."""
        if name not in self.manifest.files:
            raise SourceError(f"{self.storage.label} holds no file {name}")
        data = self.storage.read(f"{self.manifest.data}/{name}")
        if (actual := xxhash.xxh3_128_hexdigest(data)) != (wanted := self.manifest.files[name].xxh3_128):
            raise CheckpointError(
                f"{self.storage.label}/{self.manifest.data}/{name} was changed (digest {actual}, committed {wanted}); "
                f"restore it"
            )
        return data

    def provenance(self) -> dict[str, Any]:
        return {"url": self.storage.label, "format": "bot_dist", "digest": self.manifest.digest}

    def verify(self, name: str, shard: Box) -> list[Damage]:
        """Read a whole shard and tell what is wrong with it, chunk by chunk."""
        stored, pitch = self.stored(name), shards.pitch(self.stored(name))
        damaged = []
        for piece in self._pieces(stored, [shard], max(1, REMOTE_BATCH // pitch)):
            data = memoryview(bytearray(len(piece.chunks) * pitch))
            try:
                self.storage.read_into([Request(piece.key, piece.offset, [data])])
                problems = [self._problem(stored, c, data[i * pitch :][:pitch]) for i, c in enumerate(piece.chunks)]
            except CheckpointError:
                problems = [self._read_problem(stored, piece, i) for i in range(len(piece.chunks))]
            damaged += [
                Damage(name=name, chunk=stored.chunk_key(chunk), problem=problem)
                for chunk, problem in zip(piece.chunks, problems, strict=True)
                if problem
            ]
        wanted = shards.index(stored, shard)
        index = bytearray(len(wanted))
        offset = shards.shard_bytes(stored, shard) - len(wanted)
        try:
            self.storage.read_into([Request(self._key(stored, shard), offset, [memoryview(index)])])
        except CheckpointError as error:
            if not damaged:
                damaged.append(Damage(name=name, chunk=f"index of {stored.shard_key(shard)}", problem=str(error)))
        else:
            if index != wanted:
                problem = "not what the layout says; plain zarr will not find its chunks"
                damaged.append(Damage(name=name, chunk=f"index of {stored.shard_key(shard)}", problem=problem))
        return damaged

    def verify_sizes(self) -> list[Damage]:
        """Find the shards that are missing or of another size, by listing alone."""
        on_storage = self.storage.sizes(self.manifest.data)
        damaged = []
        for name, stored in self.manifest.parameters.items():
            for shard in stored.shards():
                key = stored.shard_key(shard)
                nbytes, wanted = on_storage.get(f"{name}/{key}"), shards.shard_bytes(stored, shard)
                if nbytes != wanted:
                    problem = f"shard {key} " + (
                        "is missing" if nbytes is None else f"has {nbytes:,} of {wanted:,} bytes"
                    )
                    damaged += [
                        Damage(name=name, chunk=stored.chunk_key(chunk), problem=problem)
                        for chunk in stored.chunks(shard)
                    ]
        return damaged

    def _problem(self, stored: StoredParameter, chunk: Box, data: memoryview) -> str | None:
        """The problem of an inner chunk that was read with its crc; None where it is right."""
        values, crc = data[: stored.chunk_bytes], data[stored.chunk_bytes :]
        actual, wanted = shards.digest(values), self.manifest.chunk_digest(stored.parameter.name, chunk)
        if actual != wanted:
            return f"digest {actual.hex()}, committed {wanted.hex()}"
        return None if crc == shards.crc(values) else "its crc32c is wrong; plain zarr will refuse it"

    def _read_problem(self, stored: StoredParameter, piece: _Piece, i: int) -> str | None:
        """The problem of one chunk of a piece that can't be read as a whole; None where the chunk is right."""
        data = memoryview(bytearray(shards.pitch(stored)))
        try:
            self.storage.read_into([Request(piece.key, piece.offset + i * len(data), [data])])
        except CheckpointError as error:
            return str(error) if self.storage.exists(piece.key) else f"shard {piece.key} is missing"
        return self._problem(stored, piece.chunks[i], data)

    def _fill(self, stored: StoredParameter, places: Sequence[_Place], limit: int) -> None:
        """Read the chunks that ``places`` need, about ``limit`` bytes at a time, check them, and put there what they
        have."""
        batch: list[_Piece] = []
        boxes = [box for box, _ in places]
        for piece in self._pieces(stored, boxes, max(1, limit // shards.pitch(stored))):
            batch.append(piece)
            if sum(len(p.chunks) for p in batch) * shards.pitch(stored) >= limit:
                self._fetch(stored, places, batch)
                batch = []
        if batch:
            self._fetch(stored, places, batch)

    def _pieces(self, stored: StoredParameter, boxes: Sequence[Box], most: int) -> Iterator[_Piece]:
        """The pieces of shards to read for boxes, each of at most ``most`` chunks that lie side by side."""
        for shard in dict.fromkeys(shard for box in boxes for shard in stored.shards_of(box)):
            for offset, chunks in shards.runs(stored, shard, boxes):
                for first in range(0, len(chunks), most):
                    part = chunks[first : first + most]
                    yield _Piece(self._key(stored, shard), offset + first * shards.pitch(stored), part)

    def _fetch(self, stored: StoredParameter, places: Sequence[_Place], batch: Sequence[_Piece]) -> None:
        requests, read = [], []
        crc = memoryview(bytearray(shards.CRC_BYTES))
        for piece in batch:
            arrived = []
            for chunk in piece.chunks:
                met = [(part, place[arrays.slices(part, box)]) for box, place in places if (part := _meet(chunk, box))]
                place = met[0][1]
                direct = len(met) == 1 and place.shape == stored.chunk and place.flags.c_contiguous
                values = place if direct else np.empty(stored.chunk, place.dtype)
                arrived.append((chunk, values, [] if direct else met))
            buffers = itertools.chain.from_iterable((_bytes(values), crc) for _, values, _ in arrived)
            requests.append(Request(piece.key, piece.offset, [*buffers]))
            read += arrived
        name = stored.parameter.name
        try:
            self.storage.read_into(requests)
        except CheckpointError as error:
            first, last = (stored.chunk_key(chunk) for chunk in (read[0][0], read[-1][0]))
            raise CheckpointError(
                f"{self.storage.label}: {name}: of its chunks {first} to {last} some are missing or damaged ({error}); "
                f"restore the store or make it again"
            ) from None
        for chunk, values, met in read:
            actual, wanted = shards.digest(_bytes(values)), self.manifest.chunk_digest(name, chunk)
            if actual != wanted:
                raise CheckpointError(
                    f"{self.storage.label}: {name}, chunk {stored.chunk_key(chunk)} is damaged "
                    f"(digest {actual.hex()}, committed {wanted.hex()}); restore the store or make it again"
                )
            for part, place in met:
                place[...] = values[arrays.slices(part, chunk)]

    def _key(self, stored: StoredParameter, shard: Box) -> str:
        return f"{self.manifest.data}/{stored.parameter.name}/{stored.shard_key(shard)}"


def open_within(reader: CheckpointReader, folder: str) -> CheckpointReader:
    """The store in a folder of another one."""
    reader.storage.refuse_links(folder)
    return CheckpointReader(f"{reader.url}/{folder}")


@dataclass(frozen=True)
class _Piece:
    key: str
    offset: int
    chunks: list[Box]


_Place: TypeAlias = tuple[Box, Any]
"""A box, and the array of its shape that takes what it holds."""


def _meet(a: Box, b: Box) -> Box | None:
    """The box that two boxes share; None where they share nothing."""
    met = tuple((max(s, t), min(e, f)) for (s, e), (t, f) in zip(a, b, strict=True))
    return met if all(start < stop for start, stop in met) else None


def _bytes(values: Any) -> memoryview:
    """The memory of a contiguous array."""
    return memoryview(values.reshape(-1).view(np.uint8))
