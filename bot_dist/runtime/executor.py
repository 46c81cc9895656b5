"""One step, and what every executor promises."""

from __future__ import annotations

import dataclasses
import itertools
import math
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from bot_dist.axes import Parameter, Range
from bot_dist.checkpoint import CheckpointWriter
from bot_dist.errors import SourceError
from bot_dist.plan import ModulePlan, Step, TransferPlan, step_bytes
from bot_dist.runtime.transform import transform
from bot_dist.sharding import Box

ENERGY_PIECE = 2**18
"""Elements whose float64 copy is held at a time."""


class Reader(Protocol):
    """What a step needs of a source."""

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor: ...


@dataclass(frozen=True, kw_only=True)
class StepResult:
    """What a finished step tells the driver; never a tensor."""

    step: str
    module: int
    digests: dict[str, bytes]
    """Per parameter, the digests of the chunks of the shard written."""
    shard: str
    """Key of that shard in each of them."""
    bytes_read: int
    """From the source's storage, halo included."""
    bytes_written: int
    energy_source: float
    """Squared norm of the part of the source that this step stands for."""
    energy_target: float
    """Squared norm of what was written, as an orthonormal filter bank would have written it."""
    overflowed: int
    """Finite values that the target's dtype can't hold."""
    read_s: float = 0.0
    transform_s: float = 0.0
    write_s: float = 0.0
    rank: int = 0
    peak_rss_bytes: int = 0
    """Of the process so far."""
    resumed: bool = False
    """Found finished and intact on storage."""


class Executor(Protocol):
    """Runs every step of a plan against a created store. Does not commit."""

    def run(
        self, plan: TransferPlan, source: Reader, target_url: str, on_step: Callable[[StepResult], None]
    ) -> None: ...


def run_step(
    plan: TransferPlan, step: Step, source: Reader, writer: CheckpointWriter, recorded: set[str], device: str = "cpu"
) -> StepResult:
    """Read, transform and write one tile, and record it; or find it done and intact.

    Running a step again writes the same bytes.
    """
    if step.id in recorded:
        record = writer.record_of(step.id)
        earlier = StepResult(**{**record, "digests": {n: bytes.fromhex(d) for n, d in record["digests"].items()}})
        if _intact(plan, step, writer, earlier):
            return dataclasses.replace(earlier, resumed=True, rank=step.owner)
    module = plan.modules[step.module]
    started = time.perf_counter()
    tensor = _read(plan, module, step, source)
    energy_source = _energy(tensor[_core(step)])
    if not (math.isfinite(energy_source) or plan.allow_nonfinite):
        _refuse_nonfinite(plan, module, step, tensor)
    read = time.perf_counter()
    applied = transform(module, step, tensor.to(device))
    del tensor
    energy_target = _energy(applied.tensor - module.shift if module.shift else applied.tensor) / module.energy_gain
    tensor = applied.tensor.cpu()
    transformed = time.perf_counter()
    digests = {}
    names, shard = _written(plan, step)
    for i, name in enumerate(names):
        whole = module.stacked or not module.layered
        digests[name] = writer.write(name, shard, tensor if whole else tensor[i])
    bytes_read, bytes_written = step_bytes(module, step)
    result = StepResult(
        step=step.id,
        module=step.module,
        digests=digests,
        shard=writer.stored[names[0]].shard_key(shard),
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        energy_source=energy_source,
        energy_target=energy_target,
        overflowed=applied.overflowed,
        read_s=read - started,
        transform_s=transformed - read,
        write_s=time.perf_counter() - transformed,
        rank=step.owner,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    writer.record(step.id, {**dataclasses.asdict(result), "digests": {n: d.hex() for n, d in digests.items()}})
    return result


def _read(plan: TransferPlan, module: ModulePlan, step: Step, source: Reader) -> torch.Tensor:
    """The step's source box, in bfloat16 or float32: the concatenation of its ranges along every axis."""
    dtype = torch.bfloat16 if module.source_dtype == "bfloat16" else torch.float32
    tensor = torch.empty(step.source_shape(), dtype=dtype)
    layers = [i for r in step.source[0] for i in range(*r)] if module.layered else [0]
    within = step.source[1:] if module.layered else step.source
    for i, layer in enumerate(layers):
        parameter = plan.source.parameter(module.origin, layer)
        slab = tensor[i] if module.layered else tensor
        for pieces in itertools.product(*(_placed(ranges) for ranges in within)):
            box = tuple(piece for piece, _ in pieces)
            slab[tuple(place for _, place in pieces)] = source.read(parameter, box)
    return tensor


def _placed(ranges: tuple[Range, ...]) -> list[tuple[Range, slice]]:
    """Each range, and where it lies in their concatenation."""
    placed, offset = [], 0
    for start, stop in ranges:
        placed.append(((start, stop), slice(offset, offset + stop - start)))
        offset += stop - start
    return placed


def _core(step: Step) -> tuple[slice, ...]:
    """Where the step's core lies in the tensor that was read."""
    slices = []
    for (start, stop), ranges in zip(step.core, step.source, strict=True):
        offsets = [place.start - first for (first, last), place in _placed(ranges) if first <= start and stop <= last]
        slices.append(slice(start + offsets[0], stop + offsets[0]) if offsets else slice(0, 0))
    return tuple(slices)


def _energy(tensor: torch.Tensor) -> float:
    """Squared norm, in float32 a megabyte-sized piece at a time and in float64 over the pieces; of nothing, 0."""
    total = 0.0
    for piece in tensor.reshape(-1).split(ENERGY_PIECE):
        piece = piece.float()
        total += torch.dot(piece, piece).item()
    return total


def _refuse_nonfinite(plan: TransferPlan, module: ModulePlan, step: Step, tensor: torch.Tensor) -> None:
    """Raise SourceError naming the first value that is no number, if there is one (else squares overflowed)."""
    for found in (~torch.isfinite(tensor)).nonzero()[:1].tolist():
        index = []
        for i, ranges in zip(found, step.source, strict=True):
            index.append(next(r[0] + i - place.start for r, place in _placed(ranges) if place.start <= i < place.stop))
        layer = index[0] if module.layered else 0
        parameter = plan.source.parameter(module.origin, layer)
        where = dict(zip(parameter.axes, index[1:] if module.layered else index, strict=True))
        raise SourceError(
            f"tensor '{parameter.name}' holds {tensor[tuple(found)].item()} at "
            f"{', '.join(f'{axis} {i}' for axis, i in where.items())}; repair the source, or go on with it "
            f"(--allow-nonfinite)"
        )


def _written(plan: TransferPlan, step: Step) -> tuple[list[str], Box]:
    """What a step writes: the same shard of the array of each of its layers, or of the one that stacks them."""
    module = plan.modules[step.module]
    return [p.name for p in plan.written(module, step.target)], module.within_array(step.target)


def _intact(plan: TransferPlan, step: Step, writer: CheckpointWriter, earlier: StepResult) -> bool:
    """Whether what an earlier attempt recorded is what storage holds."""
    names, shard = _written(plan, step)
    return all(writer.digests_on_storage(name, shard) == earlier.digests.get(name) for name in names)
