"""Partitions of the parameters that each rank owns under ZeRO, read and written without any rank ever holding the whole
model.

Stage 3 cuts every row-major parameter of ``n`` elements over ``W`` ranks: rank ``r`` owns ``[r · p, (r + 1) · p)`` with
``p = ceil(n / W)``; what lies past the end is padding. Stages 1 and 2 lay the parameters of a group end to end and cut
that into ``W`` parts, so that a rank owns some parameters, or runs of them, and nothing of others. Where tensor
parallelism has cut a parameter before, along one dimension, all this holds of the shard that it has left to the rank.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.distributed as dist
import xxhash

from bot_dist.errors import RunError
from bot_dist.formats.source import Source, read_flat
from bot_dist.model import Model
from bot_dist.plan.module_plan import Moment
from bot_dist.tensors import box_size, flat_boxes
from bot_dist.tensors.axes import Parameter
from bot_dist.train.optimizers import DEFAULT, OPTIMIZERS

State = Literal["weights"] | Moment
"""The float32 master weights, and AdamW's two moments of each."""


@dataclass(frozen=True)
class Shard:
    """The part of a parameter that tensor parallelism leaves to a rank: a range along one dimension, or all of it."""

    shape: tuple[int, ...]
    dim: int = 0
    offset: int = 0
    """First index of the range, in the dimension as it is in ``transformers``."""
    sizes: tuple[int, ...] = ()
    """Sizes of the ranges of all ranks; empty where the parameter is not cut."""

    def whole(self) -> tuple[int, ...]:
        """Shape of the parameter."""
        if not self.sizes:
            return self.shape
        return (*self.shape[: self.dim], sum(self.sizes), *self.shape[self.dim + 1 :])


@dataclass(frozen=True)
class Partition(ABC):
    """The flat elements ``[start, stop)`` of a row-major shard, which this rank owns; there may be none."""

    parameter: Parameter
    shard: Shard
    p: Any
    """The module's parameter."""
    optimizer: Any
    """DeepSpeed's, around AdamW."""
    start: int
    stop: int

    @abstractmethod
    def get(self, state: State) -> torch.Tensor:
        """Flat float32 tensor ``(stop − start,)`` on the CPU. It may share memory with the engine."""

    @abstractmethod
    def set(self, state: State, values: torch.Tensor) -> None:
        """Write ``values (stop − start,)``, within a ``writing`` block. Of weights, the master alone is written: the
        working copies follow at the block's end."""


class _Stage3(Partition):
    def get(self, state: State) -> torch.Tensor:
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        padded = (
            safe_get_local_fp32_param(self.p) if state == "weights" else safe_get_local_optimizer_state(self.p, state)
        )
        return _on_cpu(padded[: self.stop - self.start])

    def set(self, state: State, values: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_local_fp32_param, safe_set_local_optimizer_state

        padded = torch.zeros(self.p.ds_tensor.ds_numel)
        padded[: self.stop - self.start] = values
        if state == "weights":
            safe_set_local_fp32_param(self.p, padded)
        else:
            safe_set_local_optimizer_state(self.p, padded, state)


class _Stage3Untrained(Partition):
    """A partition of an engine without an optimizer: the working copy is all there is."""

    def get(self, state: State) -> torch.Tensor:
        assert state == "weights", "an engine without an optimizer has no moments"
        return _on_cpu(self.p.ds_tensor[: self.stop - self.start])

    def set(self, state: State, values: torch.Tensor) -> None:
        assert state == "weights", "an engine without an optimizer has no moments"
        self.p.ds_tensor[: self.stop - self.start] = values


class _Stage1And2(Partition):
    def get(self, state: State) -> torch.Tensor:
        return _on_cpu(self._fragment(state)) if self.stop > self.start else torch.empty(0)

    def set(self, state: State, values: torch.Tensor) -> None:
        if self.stop > self.start:
            self._fragment(state).copy_(values)

    def _fragment(self, state: State) -> torch.Tensor:
        mapping = self.p._hp_mapping  # of its own references to moments only those of the first group are sure
        master = _masters(self.optimizer)[mapping.param_group_index]
        flat: torch.Tensor = master if state == "weights" else self.optimizer.optimizer.state[master][state]
        return flat.narrow(0, mapping.hp_fragment_address.start, mapping.hp_fragment_address.numel)


def partitions(module: torch.nn.Module, engine: Any, model: Model) -> list[Partition]:
    """The partitions of every parameter that this rank owns, in the order of the model; tied parameters appear once.

    ``module`` is what the engine wraps. Raises RunError when its parameters are not those of ``model``.
    """
    return [_partition(parameter, p, engine) for parameter, p in _match(module, model)]


def read(source: Source, part: Partition) -> torch.Tensor:
    """A partition's elements of a checkpoint, flat. Nothing else is read but what a source can't leave out."""
    parameter, shard, start, stop = part.parameter, part.shard, part.start, part.stop
    columns = math.prod(shard.shape[1:])
    if shard.dim == 0:
        return read_flat(source, parameter, start + shard.offset * columns, stop + shard.offset * columns)
    split, first, last = parameter.dims[0], start // columns, -(-stop // columns)
    across = [*flat_boxes(parameter.sizes[split:], shard.offset, shard.offset + columns)]
    rows = [
        torch.cat([source.read(parameter, (*box, *c)).reshape(box_size(box), -1) for c in across], dim=1)
        for box in flat_boxes(parameter.sizes[:split], first, last)
    ]
    return torch.cat(rows).flatten()[start - first * columns : stop - first * columns]


def _partition(parameter: Parameter, p: Any, engine: Any) -> Partition:
    shard = _shard(p)
    if hasattr(p, "ds_id"):
        share, rank = p.ds_tensor.ds_numel, dist.get_rank(group=p.ds_process_group)
        start = min(share * rank, p.ds_numel)
        kind = _Stage3 if has_optimizer(engine) else _Stage3Untrained
        return kind(parameter, shard, p, engine.optimizer, start, min(start + share, p.ds_numel))
    mapping = getattr(p, "_hp_mapping", None)
    if mapping is None:
        return _Stage1And2(parameter, shard, p, engine.optimizer, 0, 0)
    address = mapping.lp_fragment_address
    return _Stage1And2(parameter, shard, p, engine.optimizer, address.start, address.start + address.numel)


@contextmanager
def writing(module: torch.nn.Module, engine: Any) -> Iterator[None]:
    """Partitions may be written in this block; at its end the working copies become what the masters are, on all ranks
    (a collective)."""
    optimizer = engine.optimizer
    if not has_optimizer(engine):
        with torch.no_grad():
            yield
    elif hasattr(optimizer, "fp32_partitioned_groups_flat"):
        from deepspeed.utils import safe_get_local_fp32_param

        optimizer.checkpoint_event_prologue()  # whatever a forward has gathered is released
        with torch.no_grad():
            yield
            for p in module.parameters():
                p.ds_tensor.copy_(safe_get_local_fp32_param(p))  # type: ignore[attr-defined]
        optimizer.checkpoint_event_epilogue()  # gathers again what is never released
    else:
        with torch.no_grad():
            yield
        optimizer.update_lp_params()


def begin_moments(engine: Any, step: int) -> None:
    """Give AdamW its moments, zero, and its count of steps; by itself it makes them in its first step. Then they can be
    written."""
    for master in _masters(engine.optimizer):
        state = {"step": torch.tensor(float(step), device=master.device)}
        for name in OPTIMIZERS[DEFAULT].states:
            state[name] = torch.zeros_like(master, requires_grad=False)
        engine.optimizer.optimizer.state[master] = state


def fill(module: torch.nn.Module, engine: Any, model: Model, source: Source) -> int:
    """Set the weights of an engine; each rank reads only what it owns (a collective). Returns the bytes of that."""
    read_bytes = 0
    with writing(module, engine):
        for part in partitions(module, engine, model):
            values = read(source, part) if part.stop > part.start else torch.empty(0)
            read_bytes += values.nbytes
            part.set("weights", values)
    return read_bytes


def full_parameters(module: torch.nn.Module, engine: Any, model: Model) -> Iterator[tuple[Parameter, torch.Tensor]]:
    """Every parameter in full, as float32 on the CPU, one after the other (a collective)."""
    import deepspeed
    from deepspeed.utils import safe_get_full_fp32_param

    for parameter, p in _match(module, model):
        if has_optimizer(engine):
            shard = safe_get_full_fp32_param(p)
        else:
            with deepspeed.zero.GatheredParameters([p]):
                shard = p.detach().float().clone()
        full = _gathered(shard.detach(), _shard(p))
        yield parameter, full.to("cpu", torch.float32).reshape(parameter.sizes)


def digest(module: torch.nn.Module, engine: Any, model: Model) -> str:
    """Digest of all float32 weights; the same for any number of ranks, any stage and any order of parameters (a
    collective)."""
    lines = []
    for parameter, full in full_parameters(module, engine, model):
        if dist.get_rank() == 0:
            lines.append(f"{parameter.name} {xxhash.xxh3_128_hexdigest(full.contiguous().numpy().data)}")
    result = [xxhash.xxh3_128_hexdigest("\n".join(sorted(lines)).encode())]
    dist.broadcast_object_list(result, src=0)
    return result[0]


def has_optimizer(engine: Any) -> bool:
    """Whether the engine has float32 masters; without an optimizer it has working copies only."""
    return hasattr(engine.optimizer, "optimizer")


def _masters(optimizer: Any) -> list[torch.Tensor]:
    """This rank's flat float32 masters, one per group of parameters (of stage 3 more where a group is large)."""
    names = (
        "fp32_partitioned_groups_flat",  # stage 3
        "single_partition_of_fp32_groups",  # stages 1 and 2
        "fp32_groups_flat_partition",  # stage 1 in bfloat16 with gradients accumulated in float32
    )
    masters: list[torch.Tensor] = next(getattr(optimizer, name) for name in names if hasattr(optimizer, name))
    return masters


def _on_cpu(values: torch.Tensor) -> torch.Tensor:
    return values.detach().to("cpu", torch.float32)


def _shard(p: Any) -> Shard:
    from deepspeed.utils import groups

    shape, cut = tuple(getattr(p, "ds_shape", p.shape)), getattr(p, "ds_autotp_universal_checkpoint_meta", None) or {}
    if cut.get("partition_dim") is None:
        return Shard(shape)
    sizes = tuple(cut["partition_sizes"])
    return Shard(shape, cut["partition_dim"], sum(sizes[: groups.get_tensor_model_parallel_rank()]), sizes)


def _gathered(values: torch.Tensor, shard: Shard) -> torch.Tensor:
    """A parameter from the shards of all tensor-parallel ranks."""
    from deepspeed.utils import groups

    if not shard.sizes:
        return values
    group, rank, parts = groups.get_tensor_model_parallel_group(), groups.get_tensor_model_parallel_rank(), []
    for i, n in enumerate(shard.sizes):
        shape = (*shard.shape[: shard.dim], n, *shard.shape[shard.dim + 1 :])
        parts.append(values.reshape(shape).contiguous() if i == rank else values.new_empty(shape))
        dist.broadcast(parts[i], src=dist.get_global_rank(group, i), group=group)
    return torch.cat(parts, dim=shard.dim)


def _match(module: torch.nn.Module, model: Model) -> list[tuple[Parameter, Any]]:
    """Parameters of the family beside those of the module. Tied names appear once."""
    theirs: dict[str, Any] = dict(module.named_parameters())
    ours = [parameter for _, _, parameter in model.parameters()]
    shapes = {name: _shard(p).whole() for name, p in theirs.items()}
    wanted = {model.inside[parameter.name]: parameter.shape for parameter in ours}
    if shapes != wanted:
        name = min(n for n in shapes.keys() | wanted.keys() if shapes.get(n) != wanted.get(n))
        raise RunError(
            f"{model.family.name}: parameter '{name}' has shape {shapes.get(name)} in transformers and "
            f"{wanted.get(name)} in the family's declaration; this configuration is not one that the family expresses"
        )
    return [(parameter, theirs[model.inside[parameter.name]]) for parameter in ours]
