"""Weights in and out of a ZeRO-3 engine without any rank ever reading or holding the whole model.

ZeRO-3 gives rank ``r`` of ``W`` the flat elements ``[r · p, (r + 1) · p)`` of every row-major parameter,
``p = ceil(numel / W)``; what lies past the end is padding.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.distributed as dist
import xxhash

from bot_dist.axes import Parameter
from bot_dist.checkpoint import CheckpointWriter, store_layout
from bot_dist.convert.source import Source
from bot_dist.convert.storage import join
from bot_dist.convert.tokenizer import save_tokenizer
from bot_dist.errors import RunError
from bot_dist.families import Model
from bot_dist.sharding import flat_boxes

FlatReader = Callable[[Parameter, int, int], torch.Tensor]
"""Elements ``[start, stop)`` of the row-major parameter, as a flat CPU tensor."""


def flat_reader(source: Source) -> FlatReader:
    """Reads flat ranges of a source, box by box."""

    def read(parameter: Parameter, start: int, stop: int) -> torch.Tensor:
        boxes = flat_boxes(parameter.sizes, start, stop)
        return torch.cat([source.read(parameter, box).reshape(-1) for box in boxes])

    return read


def fill(module: torch.nn.Module, engine: Any, model: Model, read_flat: FlatReader) -> int:
    """Set the weights of a ZeRO-3 engine; each rank reads only its own flat range. Returns the bytes it read.

    ``module`` is what the engine wraps. Raises RunError when its parameters are not those of ``model``.
    """
    from deepspeed.utils import safe_set_local_fp32_param

    named = _match(module, model)
    optimizer = engine.optimizer if _trains(engine) else None
    if optimizer is not None:
        optimizer.checkpoint_event_prologue()
    read_bytes = 0
    for parameter, p in named:
        rank = dist.get_rank(group=p.ds_process_group)
        share = p.ds_tensor.ds_numel
        start = min(share * rank, p.ds_numel)
        stop = min(start + share, p.ds_numel)
        part = torch.zeros(share)
        if stop > start:  # the last ranks may own nothing but padding
            values = read_flat(parameter, start, stop)
            read_bytes += values.nbytes
            part[: stop - start] = values
        if optimizer is not None and p.requires_grad:
            safe_set_local_fp32_param(p, part)  # the float32 master only: the working copy is set below
        with torch.no_grad():
            p.ds_tensor.copy_(part)
    if optimizer is not None:
        optimizer.checkpoint_event_epilogue()
    return read_bytes


def full_parameters(module: torch.nn.Module, engine: Any, model: Model) -> Iterator[tuple[Parameter, torch.Tensor]]:
    """Every parameter in full, as float32 on the CPU, one after the other (a collective)."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    for parameter, p in _match(module, model):
        if _trains(engine):
            full = safe_get_full_fp32_param(p)
        else:
            with deepspeed.zero.GatheredParameters([p]):
                full = p.detach().float().clone()
        yield parameter, full.detach().to("cpu", torch.float32).reshape(parameter.sizes)


def digest(module: torch.nn.Module, engine: Any, model: Model) -> str:
    """Digest of all float32 weights; the same for any number of ranks and any order of parameters (a collective)."""
    lines = []
    for parameter, full in full_parameters(module, engine, model):
        if dist.get_rank() == 0:
            lines.append(f"{parameter.name} {xxhash.xxh3_128_hexdigest(full.contiguous().numpy().data)}")
    result = [xxhash.xxh3_128_hexdigest("\n".join(sorted(lines)).encode())]
    dist.broadcast_object_list(result, src=0)
    return result[0]


def create_store(
    url: str, model: Model, source: Source, *, tokenizer_url: str, run_digest: str, overwrite: bool
) -> str:
    """Begin an attempt at the store that ``save`` will fill, and put the tokenizer there; its name, for ``save``.
    Learning-rate factors are the source's.

    Every call is an attempt of its own: two trainings need not write the same bytes. Rank 0 does so before training, so
    that a taken target costs no run. Raises CheckpointExistsError.
    """
    attempt = [f"{run_digest[:32]}-{uuid.uuid4().hex[:8]}"]
    if dist.get_rank() == 0:
        stored = [store_layout(p, source.learning_rate_factor(p)) for _, _, p in model.parameters()]
        writer = CheckpointWriter.create(url, stored, config=model.config, attempt=attempt[0], overwrite=overwrite)
        save_tokenizer(tokenizer_url, join(writer.url, "tokenizer"))
    dist.broadcast_object_list(attempt, src=0)
    return attempt[0]


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


def _trains(engine: Any) -> bool:
    """Whether the engine has float32 masters; an engine without an optimizer has working copies only."""
    return hasattr(engine.optimizer, "fp32_partitioned_groups_flat")


def _match(module: torch.nn.Module, model: Model) -> list[tuple[Parameter, Any]]:
    """Parameters of the family beside those of the module. Tied names appear once."""
    theirs: dict[str, Any] = dict(module.named_parameters())
    ours = [parameter for _, _, parameter in model.parameters()]
    found = {name: tuple(p.ds_shape) for name, p in theirs.items()}
    wanted = {model.inside[parameter.name]: parameter.shape for parameter in ours}
    if found != wanted:
        name = min(n for n in found.keys() | wanted.keys() if found.get(n) != wanted.get(n))
        raise RunError(
            f"{model.family.name}: parameter '{name}' has shape {found.get(name)} in transformers and "
            f"{wanted.get(name)} in the family's declaration; this configuration is not one that the family expresses"
        )
    return [(parameter, theirs[model.inside[parameter.name]]) for parameter in ours]
