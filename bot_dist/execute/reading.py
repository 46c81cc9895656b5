"""A step's source: reading it, and what is asked of it."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from concurrent.futures import Executor, Future, wait
from typing import TypeVar

import numpy as np
import torch

from bot_dist.errors import RunError, SourceError
from bot_dist.execute.device import Device
from bot_dist.execute.executor import Reader
from bot_dist.plan import Step, TransferPlan
from bot_dist.tensors import PIECE_BYTES
from bot_dist.tensors.axes import Range

ENERGY_PIECE = 2**18
"""Elements whose float32 copy is held at a time."""

T = TypeVar("T")


def read_step(plan: TransferPlan, step: Step, source: Reader, device: Device, requests: Executor) -> torch.Tensor:
    """The step's source box on the host, in bfloat16 or float32: the concatenation of its ranges along every axis."""
    module = plan.modules[step.module]
    dtype = torch.bfloat16 if module.source_dtype == "bfloat16" else torch.float32
    tensor = device.empty(step.source_shape(), dtype)
    layers = [i for r in step.source[0] for i in range(*r)] if module.layered else [0]
    within = step.source[1:] if module.layered else step.source

    def read(i: int, pieces: tuple[tuple[Range, slice], ...]) -> None:
        parameter = plan.read(module, layers[i])
        box = tuple(piece for piece, _ in pieces)
        into = (tensor[i] if module.layered else tensor)[tuple(place for _, place in pieces)]
        if source.dtype(parameter) == dtype:
            source.read_into(parameter, box, into)
        else:
            (start, stop), *inner = box
            rows = max(1, PIECE_BYTES * (stop - start) // max(1, into.nbytes))
            for first in range(start, stop, rows):
                last = min(first + rows, stop)
                into[first - start : last - start] = source.read(parameter, ((first, last), *inner))

    parts = itertools.product(range(len(layers)), itertools.product(*(_placed(ranges) for ranges in within)))
    all_done(requests.submit(read, *part) for part in parts)
    return tensor


def all_done(futures: Iterable[Future[T]]) -> list[T]:
    """The results, when all have one; the first error, when none is running any more."""
    pending = [*futures]
    wait(pending)
    return [future.result() for future in pending]


def _placed(ranges: tuple[Range, ...]) -> list[tuple[Range, slice]]:
    """Each range, and where it lies in their concatenation."""
    placed, offset = [], 0
    for start, stop in ranges:
        placed.append(((start, stop), slice(offset, offset + stop - start)))
        offset += stop - start
    return placed


def core(step: Step) -> tuple[slice, ...]:
    """The place of the step's core in the tensor that was read."""
    slices = []
    for (start, stop), ranges in zip(step.core, step.source, strict=True):
        offsets = [place.start - first for (first, last), place in _placed(ranges) if first <= start and stop <= last]
        slices.append(slice(start + offsets[0], stop + offsets[0]) if offsets else slice(0, 0))
    return tuple(slices)


def energy(tensor: torch.Tensor) -> float:
    """Squared norm, in float32 a megabyte-sized piece at a time and in float64 over the pieces; of nothing, 0."""
    if not tensor.is_contiguous() and tensor.numel() > ENERGY_PIECE:  # whole, it would be copied
        parts = tensor.split(max(1, ENERGY_PIECE * len(tensor) // tensor.numel())) if len(tensor) > 1 else tensor
        return math.fsum(energy(part) for part in parts)
    total = 0.0
    for piece in tensor.reshape(-1).split(ENERGY_PIECE):
        piece = piece.float()
        total += torch.dot(piece, piece).item()
    return total


def refuse_nonfinite(plan: TransferPlan, step: Step, tensor: torch.Tensor) -> None:
    """Raise SourceError naming the first value that is no number, if there is one (else squares overflowed)."""
    module = plan.modules[step.module]
    for number, piece in enumerate(tensor.view(-1).split(ENERGY_PIECE)):
        bad = ~torch.isfinite(piece)
        if not bad.any():
            continue
        flat = number * ENERGY_PIECE + int(bad.int().argmax())
        position = np.unravel_index(flat, tensor.shape)
        index = []
        for i, ranges in zip(map(int, position), step.source, strict=True):
            index.append(next(r[0] + i - place.start for r, place in _placed(ranges) if place.start <= i < place.stop))
        layer = index[0] if module.layered else 0
        parameter = plan.read(module, layer)
        where = dict(zip(parameter.axes, index[1:] if module.layered else index, strict=True))
        raise SourceError(
            f"tensor '{parameter.name}' holds {tensor.view(-1)[flat].item()} at "
            f"{', '.join(f'{axis} {i}' for axis, i in where.items())}; repair the source, or go on with it "
            f"(--allow-nonfinite)"
        )


def refuse_overflow(plan: TransferPlan, step: Step, made: torch.Tensor) -> None:
    """Raise RunError, naming the weight, where a value of the step's target is infinite that its dtype can't hold."""
    module, flat = plan.modules[step.module], int(made.isinf().flatten().int().argmax())
    written = plan.written(module, step.target)
    layer = int(np.unravel_index(flat, made.shape)[0]) if len(written) > 1 else 0
    raise RunError(
        f"tensor '{written[layer].name}' would hold values too large for {module.dtype} (over "
        f"{torch.finfo(made.dtype).max:g}); use another dtype (--set transfer.dtype=float32, or bfloat16), or go on "
        f"with infinity (--allow-nonfinite)"
    )
