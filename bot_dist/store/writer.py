"""The writer of a store, which is created once, written shard by shard from anywhere, and committed once."""

from __future__ import annotations

import contextlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from bot_dist.errors import CheckpointError, CheckpointExistsError
from bot_dist.parsing import parse_object
from bot_dist.storage.folder import Request, Storage
from bot_dist.store import arrays, shards
from bot_dist.store.folder import (
    FILES,
    GROUP,
    LAYOUT,
    STEPS,
    THREADS,
    claim,
    fitted_stores,
    is_vacant,
    own_files,
    partial_of,
    remove_attempt,
    remove_store,
    root_metadata,
)
from bot_dist.store.layout import StoredParameter
from bot_dist.store.manifest import ATTEMPTS, MANIFEST, OPERATORS, Manifest, StoredFile, digest
from bot_dist.tensors import Box, box_shape

if TYPE_CHECKING:
    import torch


class CheckpointWriter:
    """An attempt at a store. ``create`` it in one process, ``open`` it in the others; one writer per shard at a time.

    Threads may share it. An attempt writes into a folder of its own, so what a forgotten writer still does hurts no
    other attempt. An attempt is named ``PLAN`` or ``PLAN-SUFFIX``; attempts of the same name write the same bytes.
    """

    def __init__(
        self, storage: Storage, attempt: str, stored: Mapping[str, StoredParameter], config: Mapping[str, Any]
    ) -> None:
        self.storage = storage
        self.folder = f"{ATTEMPTS}/{attempt}"
        self.url = f"{storage.url}/{self.folder}"
        """URL of the attempt's folder."""
        self.stored = dict(stored)
        self.config = dict(config)

    @classmethod
    def create(
        cls,
        url: str,
        stored: Iterable[StoredParameter],
        *,
        config: Mapping[str, Any],
        attempt: str,
        overwrite: bool = False,
    ) -> CheckpointWriter:
        """Begin an attempt, or take up an unfinished one of the same name.

        Raises CheckpointExistsError when something else is there. ``overwrite`` lets another attempt's store be
        replaced when this one commits; until then it stays what it is. What is no store is never replaced.
        """
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", attempt), attempt
        storage = claim(url)
        if not overwrite:
            _check_free(storage, attempt)
        parameters = {s.parameter.name: s for s in stored}
        writer = cls(storage, attempt, parameters, config)
        layout = {"config": dict(config), "parameters": {name: s.to_json() for name, s in parameters.items()}}
        data, name = json.dumps(layout).encode(), f"{writer.folder}/{LAYOUT}"
        if not storage.exists(name) or storage.read(name) != data:
            storage.write(name, [data], durable=True)  # the attempt is known by it
        return writer

    @classmethod
    def open(cls, url: str, attempt: str) -> CheckpointWriter:
        """Open an attempt that another process created and nobody has committed."""
        storage = Storage(url)
        layout = parse_object(
            storage.read(f"{ATTEMPTS}/{attempt}/{LAYOUT}"), f"{storage.label}/{LAYOUT}", CheckpointError
        )
        try:
            parameters = {name: StoredParameter.from_json(name, data) for name, data in layout["parameters"].items()}
            return cls(storage, attempt, parameters, layout["config"])
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"{storage.label}: {LAYOUT} of {attempt} is malformed ({error!r})") from None

    def shards(self, name: str) -> list[Box]:
        """The shards of a parameter, in row-major order."""
        return list(self.stored[name].shards())

    def write(self, name: str, shard: Box, tensor: torch.Tensor) -> bytes:
        """Write one whole shard, durably and at once. Return the digests of its inner chunks, eight bytes each."""
        stored = self.stored[name]
        assert tuple(tensor.shape) == box_shape(shard), (name, shard, tensor.shape)
        assert tensor.dtype == arrays.torch_dtype(stored.dtype), (name, tensor.dtype)
        parts, digests = shards.encode(stored, shard, arrays.view(tensor.detach().cpu()))
        self.storage.write(self._key(name, shard), parts, durable=True)
        return digests

    def write_array(self, name: str, tensor: torch.Tensor, layer: int | None = None) -> dict[str, bytes]:
        """Write all shards of an array, or, where a shard has at most one layer, those of one ``layer``, whose values
        are ``tensor``. Return what ``write`` returns, by shard key."""
        if layer is not None:
            tensor = tensor[None]
        by_shard = {}
        for shard in self.stored[name].shards():
            within = shard
            if layer is not None:
                if shard[0] != (layer, layer + 1):
                    continue
                within = ((0, 1), *shard[1:])
            part = tensor[tuple(slice(*r) for r in within)].contiguous()
            by_shard[self.stored[name].shard_key(shard)] = self.write(name, shard, part)
        return by_shard

    def digests_on_storage(self, name: str, shard: Box) -> bytes:
        """The digests of the inner chunks of a shard as they are read back now; empty if the file is not whole."""
        stored, pitch = self.stored[name], shards.pitch(self.stored[name])
        data = memoryview(bytearray(shards.shard_bytes(stored, shard)))
        try:
            self.storage.read_into([Request(self._key(name, shard), 0, [data])])
        except CheckpointError:
            return b""
        digests = bytearray()
        for start in range(0, math.prod(shards.counts(stored, shard)) * pitch, pitch):
            values = data[start : start + stored.chunk_bytes]
            if data[start : start + pitch][stored.chunk_bytes :] != shards.crc(values):
                return b""
            digests += shards.digest(values)
        index = shards.index(stored, shard)
        return bytes(digests) if data[len(data) - len(index) :] == index else b""

    def record(self, step: str, result: Mapping[str, Any]) -> None:
        """Remember that a step is done. What the record says is checked before it is believed, so it needs no sync."""
        body = {"step": step, "result": dict(result)}
        data = json.dumps({**body, "digest": digest(body)}).encode()
        self.storage.write(f"{self.folder}/{STEPS}/{step}.json", [data])

    def recorded(self) -> set[str]:
        """Steps that earlier runs have recorded."""
        return {name.removesuffix(".json") for name in self.storage.names(f"{self.folder}/{STEPS}")}

    def record_of(self, step: str) -> dict[str, Any] | None:
        """The result that was recorded of a step; None when the record is damaged."""
        try:
            body = parse_object(self.storage.read(f"{self.folder}/{STEPS}/{step}.json"), step, ValueError)
            intact = body.pop("digest") == digest(body) and body["step"] == step
            result: dict[str, Any] = body["result"]
        except (ValueError, KeyError, TypeError, AttributeError):  # torn by a crash of the machine
            return None
        return result if intact else None

    def commit(
        self,
        digests: Mapping[str, Mapping[str, bytes]],
        provenance: Mapping[str, Any],
        *,
        overwrite: bool = False,
    ) -> None:
        """Make the attempt the checkpoint; ``digests`` is per parameter and shard key what ``write`` returned.

        Every shard must have its digests and be on storage in its full size. With ``overwrite`` an earlier commit is
        replaced. What is worth nothing then is removed: other attempts of this plan, with ``overwrite`` of all.

        Raises CheckpointError when shards are missing, CheckpointExistsError when another attempt was first.
        """
        manifest = Manifest(
            data=self.folder,
            config=self.config,
            parameters=self.stored,
            digests={name: self._gathered(name, digests.get(name, {})) for name in self.stored},
            files={},
            provenance=dict(provenance),
        )
        try:
            self._complete(manifest)
            if not overwrite:
                self.storage.create(MANIFEST, manifest.to_bytes())
        except (CheckpointError, FileExistsError):  # what is not there may have been collected by another's commit
            if overwrite or not self.storage.exists(MANIFEST):
                raise
            with contextlib.suppress(CheckpointError):  # the other is collecting it as well
                self.discard()
            raise CheckpointExistsError(
                f"{self.storage.label}: another writer has committed this store; what is there is whole and its own"
            ) from None
        if overwrite:
            self.storage.write(MANIFEST, [manifest.to_bytes()], durable=True)
            self.storage.sync_folders("")
            self._check_sizes(self.storage.sizes(self.folder))  # another's commit may have collected it meanwhile
        with contextlib.suppress(CheckpointError):  # somebody is still writing there; what stays is harmless
            self._collect(all_plans=overwrite)

    def _complete(self, manifest: Manifest) -> None:
        """Write all that the manifest will vouch for, and is not there yet."""
        on_storage = self.storage.sizes(self.folder)
        self._check_sizes(on_storage)
        own = own_files(self.storage, self.folder, on_storage)
        killed = [f"{self.folder}/{name}" for name in own if partial_of(name) != name]
        self.storage.remove(*killed)
        for name in own:
            if partial_of(name) == name and name.startswith(FILES):
                data = self.storage.read(f"{self.folder}/{name}")
                manifest.files[name] = StoredFile(nbytes=len(data), xxh3_128=xxhash.xxh3_128_hexdigest(data))
        self._write_metadata()
        self.storage.sync_folders(self.folder)

    def discard(self) -> None:
        """Remove the attempt, unless it is the one that is committed."""
        if not self.storage.exists(MANIFEST) or Manifest.load(self.storage).data != self.folder:
            remove_attempt(self.storage, self.folder)

    def _gathered(self, name: str, by_shard: Mapping[str, bytes]) -> bytes:
        """The digests of all chunks of a parameter in row-major order."""
        stored = self.stored[name]
        grid = np.zeros((*stored.grid_shape, shards.DIGEST_BYTES), dtype=np.uint8)
        for shard in stored.shards():
            digests = by_shard.get(stored.shard_key(shard))
            if digests is None:
                raise CheckpointError(
                    f"{self.storage.label}: not committed, shard {stored.shard_key(shard)} of {name} was not written"
                )
            counts = shards.counts(stored, shard)
            corner = stored.chunk_index(shard)
            inside = tuple(slice(first, first + n) for first, n in zip(corner, counts, strict=True))
            grid[inside] = np.frombuffer(digests, dtype=np.uint8).reshape(*counts, shards.DIGEST_BYTES)
        return grid.tobytes()

    def _write_metadata(self) -> None:
        """Write the metadata that plain zarr needs. It is written last, so that plain zarr does not read an unfinished
        store."""
        files = {GROUP: root_metadata(), f"{self.folder}/{GROUP}": arrays.group_metadata({"config": self.config})}
        files |= {f"{self.folder}/{name}/{GROUP}": arrays.metadata(stored) for name, stored in self.stored.items()}
        with ThreadPoolExecutor(THREADS, thread_name_prefix="bot_dist-metadata") as pool:
            for _ in pool.map(lambda name: self.storage.write(name, [files[name]], durable=True), files):
                pass

    def _check_sizes(self, on_storage: Mapping[str, int]) -> None:
        for name, stored in self.stored.items():
            for shard in stored.shards():
                key, wanted = f"{name}/{stored.shard_key(shard)}", shards.shard_bytes(stored, shard)
                if (nbytes := on_storage.get(key)) != wanted:
                    raise CheckpointError(
                        f"{self.storage.label}: not committed, {key} has "
                        f"{'no file' if nbytes is None else f'{nbytes:,} bytes'}, wanted {wanted:,}; "
                        f"run the same command again"
                    )

    def _collect(self, *, all_plans: bool) -> None:
        """Remove what the commit has made worthless: of other plans only where these may be replaced, for what is
        there then is of a driver at work."""
        steps = self.storage.sizes(f"{self.folder}/{STEPS}")
        done = [f"{self.folder}/{STEPS}/{name}" for name in steps if partial_of(name).endswith(".json")]
        self.storage.remove(f"{self.folder}/{LAYOUT}", *done, within=self.folder)
        committed = Manifest.load(self.storage)
        if committed.data == self.folder:  # not replaced already
            ours = _plan_of(self.folder.removeprefix(f"{ATTEMPTS}/"))
            for name in self.storage.names(ATTEMPTS):
                if (all_plans or _plan_of(name) == ours) and f"{ATTEMPTS}/{name}" != self.folder:
                    remove_attempt(self.storage, f"{ATTEMPTS}/{name}")
        for store in fitted_stores(self.storage):
            if store not in committed.operators:
                remove_store(self.storage, store, within=OPERATORS)

    def _key(self, name: str, shard: Box) -> str:
        return f"{self.folder}/{name}/{self.stored[name].shard_key(shard)}"


def attempt_of(url: str, plan: str) -> str:
    """A name for an attempt of a plan that is not that of the committed one, which stays whole until it is replaced."""
    storage = Storage(url)
    try:
        committed = Manifest.load(storage).data
    except CheckpointError:  # there is none, or none that is worth keeping
        return plan
    return f"{plan}-2" if committed == f"{ATTEMPTS}/{plan}" else plan


def check_target(url: str, *, overwrite: bool) -> None:
    """Raise, before anything is computed for it, as ``CheckpointWriter.create`` does where something other than a store
    is at the URL, or a committed one that is not to be replaced. Nothing is written."""
    storage = Storage(url)
    if not is_vacant(storage) and not overwrite:
        _refuse_committed(storage)


def _refuse_committed(storage: Storage) -> None:
    if storage.exists(MANIFEST):
        raise CheckpointExistsError(
            f"{storage.label} already holds a committed checkpoint; give another target or --overwrite"
        )


def _check_free(storage: Storage, attempt: str) -> None:
    """Raise CheckpointExistsError unless nothing but unfinished work of this attempt is there."""
    _refuse_committed(storage)
    if others := [name for name in storage.names(ATTEMPTS) if _plan_of(name) != _plan_of(attempt)]:
        raise CheckpointExistsError(
            f"{storage.label} holds an unfinished transfer of another plan ({others[0]}); "
            f"give another target, or replace it (--overwrite)"
        )


def _plan_of(attempt: str) -> str:
    return attempt.partition("-")[0]
