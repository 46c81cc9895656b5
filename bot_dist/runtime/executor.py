"""One step, and what every executor promises."""

from __future__ import annotations

import dataclasses
import itertools
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch

from bot_dist.axes import Parameter, Range
from bot_dist.checkpoint import CheckpointWriter
from bot_dist.plan import ModulePlan, Step, TransferPlan, step_bytes
from bot_dist.sharding import Box
from bot_dist.wavelets.apply import apply_operator

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
    digests: dict[str, dict[str, str]]
    """Per parameter, the digest of each chunk written."""
    bytes_read: int
    """From the source's storage, halo included."""
    bytes_written: int
    energy_source: float
    """Squared norm of the part of the source that this step stands for."""
    energy_target: float
    """Squared norm of what was written, as an orthonormal filter bank would have written it."""
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
        earlier = StepResult(**writer.record_of(step.id))
        if _intact(plan, step, writer, earlier):
            return dataclasses.replace(earlier, resumed=True, rank=step.owner)
    module = plan.modules[step.module]
    started = time.perf_counter()
    tensor = _read(plan, module, step, source)
    energy_source = _energy(tensor[_core(step)])
    read = time.perf_counter()
    tensor = tensor.to(device)
    for i in module.order:
        axis = module.axes[i]
        tensor = apply_operator(tensor, axis.operator(), i, step.target[i], step.source[i])
    if module.scale != 1.0:
        tensor = tensor.mul_(module.scale)
    energy_target = _energy(tensor) / module.energy_gain
    tensor = tensor.to(getattr(torch, module.dtype)).cpu()
    transformed = time.perf_counter()
    digests = {}
    names, shard = _written(plan, step)
    for i, name in enumerate(names):
        digests[name] = writer.write(name, shard, tensor[i] if module.layered else tensor)
    bytes_read, bytes_written = step_bytes(module, step)
    result = StepResult(
        step=step.id,
        module=step.module,
        digests=digests,
        bytes_read=bytes_read,
        bytes_written=bytes_written,
        energy_source=energy_source,
        energy_target=energy_target,
        read_s=read - started,
        transform_s=transformed - read,
        write_s=time.perf_counter() - transformed,
        rank=step.owner,
        peak_rss_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )
    writer.record(step.id, dataclasses.asdict(result))
    return result


def _read(plan: TransferPlan, module: ModulePlan, step: Step, source: Reader) -> torch.Tensor:
    """The step's source box in float32: the concatenation of its ranges along every axis."""
    tensor = torch.empty(step.source_shape(), dtype=torch.float32)
    layers = [i for r in step.source[0] for i in range(*r)] if module.layered else [0]
    within = step.source[1:] if module.layered else step.source
    for i, layer in enumerate(layers):
        parameter = plan.source.parameter(module.weight, layer)
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
    """Squared norm, summed in float64, a megabyte-sized piece at a time; of nothing, 0."""
    total = 0.0
    for piece in tensor.reshape(-1).split(ENERGY_PIECE):
        total += torch.sum(piece.double() ** 2).item()
    return total


def _written(plan: TransferPlan, step: Step) -> tuple[list[str], Box]:
    """What a step writes: the same shard of the parameter of each of its layers."""
    module = plan.modules[step.module]
    first, last = module.layers(step.target)
    names = [plan.parameter(module, layer).name for layer in range(first, last)]
    return names, module.within_layer(step.target)


def _intact(plan: TransferPlan, step: Step, writer: CheckpointWriter, earlier: StepResult) -> bool:
    """Whether what an earlier attempt recorded is what storage holds."""
    names, shard = _written(plan, step)
    return all(writer.digests_on_storage(name, shard) == earlier.digests.get(name) for name in names)
