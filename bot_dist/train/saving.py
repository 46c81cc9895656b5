"""The store that takes what was trained: begun before training, written by all ranks after it."""

from __future__ import annotations

import uuid
from typing import Any

import torch
import torch.distributed as dist

from bot_dist.errors import CheckpointError
from bot_dist.formats.companions import read_companions
from bot_dist.formats.source import Source
from bot_dist.model import Model
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointWriter, Manifest, store_layout
from bot_dist.store.manifest import ATTEMPTS
from bot_dist.train.zero import full_parameters


def create_store(
    url: str, model: Model, source: Source, *, tokenizer_url: str, run_digest: str, overwrite: bool
) -> str:
    """Begin an attempt at the store that ``save`` will fill, and put there what goes along with the weights
    at ``tokenizer_url``, if that is named; its name, for ``save``.
    Learning-rate factors are the source's.

    Every call is an attempt of its own: two trainings need not write the same bytes. Rank 0 does so before training, so
    that a taken target costs no run. Raises CheckpointExistsError.
    """
    attempt = [f"{run_digest[:32]}-{uuid.uuid4().hex[:8]}"]
    if dist.get_rank() == 0:
        stored = [store_layout(p, source.learning_rate_factor(p)) for _, _, p in model.parameters()]
        writer = CheckpointWriter.create(url, stored, config=model.config, attempt=attempt[0], overwrite=overwrite)
        if tokenizer_url:
            read_companions(tokenizer_url).save(writer.url)
    dist.broadcast_object_list(attempt, src=0)
    return attempt[0]


def is_of(url: str, run_digest: str) -> bool:
    """Whether the store that is there was committed by this very run, before it was killed."""
    try:
        return Manifest.load(Storage(url)).data.startswith(f"{ATTEMPTS}/{run_digest[:32]}-")
    except CheckpointError:
        return False


def save(
    module: torch.nn.Module,
    engine: Any,
    model: Model,
    url: str,
    attempt: str,
    provenance: dict[str, Any],
    *,
    overwrite: bool,
) -> None:
    """Write the float32 weights into the store that ``create_store`` made, and commit it (a collective).

    One parameter is gathered at a time; rank ``r`` writes its shards ``i`` with ``i % world == r``; rank 0 commits.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    writer = CheckpointWriter.open(url, attempt)
    mine: dict[str, dict[str, bytes]] = {}
    index = 0
    for parameter, full in full_parameters(module, engine, model):
        for shard in writer.shards(parameter.name):
            if index % world == rank:
                part = full[tuple(slice(*r) for r in shard)].contiguous()
                key = writer.stored[parameter.name].shard_key(shard)
                mine.setdefault(parameter.name, {})[key] = writer.write(parameter.name, shard, part)
            index += 1
    everyone: list[Any] | None = [None] * world if rank == 0 else None
    dist.gather_object(mine, everyone, dst=0)
    if everyone is not None:
        digests: dict[str, dict[str, bytes]] = {}
        for theirs in everyone:
            for name, chunks in theirs.items():
                digests.setdefault(name, {}).update(chunks)
        writer.commit(digests, provenance, overwrite=overwrite)
    dist.barrier()
