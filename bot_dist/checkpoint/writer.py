"""Writing a store: created once, written shard by shard from anywhere, committed once."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from bot_dist.checkpoint import arrays
from bot_dist.checkpoint.layout import StoredParameter
from bot_dist.checkpoint.manifest import FORMAT_VERSION, MANIFEST, Manifest
from bot_dist.checkpoint.storage import Storage
from bot_dist.errors import CheckpointError, CheckpointExistsError
from bot_dist.sharding import Box, box_shape

if TYPE_CHECKING:
    import torch

STEPS = "_steps"
LAYOUT = "_layout.json"


class CheckpointWriter:
    """A store being written. ``create`` it in one process, ``open`` it in the others; one writer per shard."""

    def __init__(self, storage: Storage, stored: Mapping[str, StoredParameter], config: Mapping[str, Any]) -> None:
        self.storage = storage
        self.stored = dict(stored)
        self.config = dict(config)
        self._store = storage.zarr_store(read_only=False)

    @classmethod
    def create(
        cls,
        url: str,
        stored: Iterable[StoredParameter],
        *,
        config: Mapping[str, Any],
        plan_digest: str,
        overwrite: bool = False,
    ) -> CheckpointWriter:
        """Create the store's metadata, or take up an unfinished store of the same plan.

        Raises CheckpointExistsError when something else is there (which ``overwrite`` replaces if it is a store).
        """
        import zarr

        storage = Storage(url)
        if not storage.is_empty():
            found = _plan_digest(storage)
            if not overwrite:
                if storage.exists(MANIFEST):
                    raise CheckpointExistsError(
                        f"{storage.label} already holds a committed checkpoint; give another target or --overwrite"
                    )
                if found != plan_digest:
                    raise CheckpointExistsError(
                        f"{storage.label} is not empty and holds no unfinished transfer of this plan; "
                        f"give another target, or replace an unfinished one (--overwrite)"
                    )
                if storage.exists(LAYOUT):
                    return cls.open(url)  # else its creation was interrupted: nothing is lost by starting over
            if found is None:
                raise CheckpointExistsError(
                    f"{storage.label} is not empty and no bot_dist store; it is not overwritten"
                )
            storage.remove(MANIFEST)
            storage.remove()
        parameters = {s.parameter.name: s for s in stored}
        store = storage.zarr_store(read_only=False)
        attributes = {"bot_dist": {"format_version": FORMAT_VERSION, "plan_digest": plan_digest}}
        zarr.create_group(store, attributes=attributes)
        for s in parameters.values():
            arrays.create_array(store, s)
        layout = {"config": dict(config), "parameters": {name: s.to_json() for name, s in parameters.items()}}
        storage.write(LAYOUT, json.dumps(layout).encode())
        return cls(storage, parameters, config)

    @classmethod
    def open(cls, url: str) -> CheckpointWriter:
        """Open a store that another process created and nobody has committed."""
        storage = Storage(url)
        layout = json.loads(storage.read(LAYOUT))
        parameters = {name: StoredParameter.from_json(name, data) for name, data in layout["parameters"].items()}
        return cls(storage, parameters, layout["config"])

    def shards(self, name: str) -> list[Box]:
        """The shards of a parameter, in row-major order."""
        return list(self.stored[name].shards())

    def write(self, name: str, shard: Box, tensor: torch.Tensor) -> dict[str, str]:
        """Write one whole shard, durably, and return the digests of its chunks (for ``commit``)."""
        stored = self.stored[name]
        assert tuple(tensor.shape) == box_shape(shard), (name, shard, tensor.shape)
        assert tensor.dtype == arrays.torch_dtype(stored.dtype), (name, tensor.dtype)
        values = arrays.to_numpy(tensor)
        key = f"{name}/{stored.shard_key(shard)}"
        self.storage.remove(key)  # zarr would read and modify what an interrupted attempt may have left damaged
        arrays.open_array(self._store, stored)[arrays.slices(shard)] = values
        self.storage.sync(key)
        return arrays.chunk_digests(stored, shard, values)

    def digests_on_storage(self, name: str, shard: Box) -> dict[str, str]:
        """Digests of the chunks of a shard as they read back now; empty if they can't be read."""
        stored = self.stored[name]
        try:
            values = arrays.open_array(self._store, stored)[arrays.slices(shard)]
        except (ValueError, OSError):
            return {}
        return arrays.chunk_digests(stored, shard, np.asarray(values))

    def record(self, step: str, result: Mapping[str, Any]) -> None:
        """Remember that a step is done. What the record says is checked before it is believed, so it needs no sync."""
        self.storage.write(f"{STEPS}/{step}.json", json.dumps(result).encode())

    def recorded(self) -> set[str]:
        """Steps that earlier attempts have recorded."""
        return {name.removesuffix(".json") for name in self.storage.names(STEPS)}

    def record_of(self, step: str) -> dict[str, Any]:
        record: dict[str, Any] = json.loads(self.storage.read(f"{STEPS}/{step}.json"))
        return record

    def commit(self, digests: Mapping[str, Mapping[str, str]], provenance: Mapping[str, Any]) -> None:
        """Make the store a checkpoint. Every chunk of every parameter must have its digest.

        Raises CheckpointError when chunks are missing, CheckpointExistsError when another writer was first.
        """
        for name, stored in self.stored.items():
            missing = {stored.chunk_key(c) for c in stored.chunks()} - set(digests.get(name, ()))
            if missing:
                raise CheckpointError(
                    f"{self.storage.label}: not committed, {len(missing)} chunks of {name} were not written "
                    f"(the first: {min(missing)})"
                )
        manifest = Manifest(
            config=self.config,
            parameters=self.stored,
            digests={name: dict(d) for name, d in digests.items()},
            provenance=dict(provenance),
        )
        try:
            self.storage.create(MANIFEST, manifest.to_bytes())
        except FileExistsError:
            raise CheckpointExistsError(f"{self.storage.label}: another writer has committed this store") from None
        self.storage.remove(STEPS)
        self.storage.remove(LAYOUT)


def _plan_digest(storage: Storage) -> str | None:
    """The plan that a store was created for; None if there is no store of ours."""
    if not storage.exists("zarr.json"):
        return None
    attributes = json.loads(storage.read("zarr.json")).get("attributes", {})
    digest: str | None = attributes.get("bot_dist", {}).get("plan_digest")
    return digest
