"""The application of operators to tensors.

Every stage computes ``((t0·x0) + t1·x1) + …`` in float32, in the order of the taps, each product and each sum rounded
and the taps rounded first. So the bits of an element depend on nothing but its inputs: not on the block that it is
computed in, on the threads, or on which of the two implementations here did it. ``apply_reference`` says it in plain
torch; ``apply_operators`` does it in one compiled pass on CPU.
"""

from __future__ import annotations

import ctypes
import dataclasses
import itertools
import math
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch

if TYPE_CHECKING:
    from bot_dist.kernels.scratch import Memory
    from bot_dist.kernels.tiling import Axis, Task

PIECE = 2**20
"""Elements that the reference implementation holds besides its input and output."""
INTERMEDIATE = 2**22
"""Elements of the buffer between two passes, where one pass can't do all stages."""
PORTIONS = 16
"""Number of portions per thread that the tiles are cut into; a thread takes one after another."""
SMALL = 2**16
"""Tensors of up to this many elements are transformed by one thread, because starting others would take longer."""
LARGE_BYTES = 2**23
"""Smallest target that is written past the cache, in huge pages."""
PAGE_BYTES = 2**12
"""Bytes of an ordinary page of memory."""
MADV_HUGEPAGE = 14
"""The advice to madvise(2) that asks Linux for huge pages."""
NATIVE = (torch.float32, torch.bfloat16)
"""Dtypes that the compiled pass reads and writes; others are converted before and after."""


@dataclass(frozen=True, eq=False)
class Stage:
    """One operator along one dimension of a tensor, restricted to the block at hand."""

    along: int
    indices: npt.NDArray[np.int64]
    """Positions along ``along`` that each target index takes values from, ``(n_target, width)``."""
    taps: npt.NDArray[np.float64]
    """Factors of the values at these positions, of the same shape."""


@dataclass(frozen=True, eq=False)
class Applied:
    """The result of a transform."""

    tensor: torch.Tensor
    overflowed: int
    """Number of finite values that became infinite when they were rounded to the target's dtype."""


def apply_operators(x: torch.Tensor, stages: Sequence[Stage], dtype: torch.dtype) -> Applied:
    """The stages, in their order and at most one per dimension, applied to a contiguous tensor and rounded to
    ``dtype`` (float32, bfloat16, float16 or float64).

    Runs on ``torch.get_num_threads()`` threads. Holds at most 64 MiB beyond the two tensors when both are float32 or
    bfloat16; others are converted as a whole, before and after. Tensors on other devices take ``apply_reference``.
    """
    x = x.detach()
    if x.device.type != "cpu":
        return apply_reference(x, stages, dtype)
    if not stages or not x.numel() or not all(len(stage.indices) for stage in stages):
        return apply_reference(x, stages, dtype)
    if x.dtype not in NATIVE:
        x = x.to(torch.float32)
    target = _allocate(_shape_after(x, stages), dtype if dtype in NATIVE else torch.float32)
    overflowed = _into(target, x.contiguous(), stages)
    return Applied(target, overflowed) if dtype in NATIVE else _cast(target, dtype)


def apply_reference(x: torch.Tensor, stages: Sequence[Stage], dtype: torch.dtype) -> Applied:
    """Do what ``apply_operators`` does in plain torch, on the device of ``x``, one whole stage after another."""
    for stage in stages:
        x = _one_stage(x.to(torch.float32), stage)
    return _cast(x, dtype)


def _one_stage(x: torch.Tensor, stage: Stage) -> torch.Tensor:
    """A stage in torch, a piece of the longest other dimension at a time."""
    shape = list(x.shape)
    shape[stage.along] = len(stage.indices)
    result = x.new_empty(shape)
    index = torch.from_numpy(np.array(stage.indices.T, order="C")).to(x.device)
    tap = torch.from_numpy(np.array(stage.taps.T, dtype=np.float32, order="C")).to(x.device)
    tap = tap.view(len(tap), *(-1 if d == stage.along else 1 for d in range(x.dim())))
    others = [d for d in range(x.dim()) if d != stage.along]
    if not others:
        pieces = [(x, result)]
    else:
        longest = max(others, key=lambda d: x.shape[d])
        n = max(1, PIECE * x.shape[longest] // max(x.numel(), result.numel(), 1))
        pieces = list(zip(x.split(n, longest), result.split(n, longest), strict=True))
    for piece, total in pieces:
        torch.mul(piece.index_select(stage.along, index[0]), tap[0], out=total)
        for row, weight in zip(index[1:], tap[1:], strict=True):
            total.add_(piece.index_select(stage.along, row).mul_(weight))
    return result


def _cast(x: torch.Tensor, dtype: torch.dtype) -> Applied:
    """A copy in ``dtype``."""
    result = torch.empty_like(x, dtype=dtype)
    overflowed = 0
    for piece, cast in zip(x.reshape(-1).split(PIECE), result.view(-1).split(PIECE), strict=True):
        cast.copy_(piece)
        overflowed += int((piece.isfinite() & cast.isinf()).sum())
    return Applied(result, overflowed)


def _shape_after(x: torch.Tensor, stages: Sequence[Stage]) -> list[int]:
    shape = list(x.shape)
    for stage in stages:
        shape[stage.along] = len(stage.indices)
    return shape


def _allocate(shape: list[int], dtype: torch.dtype) -> torch.Tensor:
    """An uninitialised tensor; a large one in huge pages that are there already, since page faults cost more than what
    is written to the pages, and least when nothing else is done meanwhile."""
    tensor = torch.empty(shape, dtype=dtype)
    if tensor.nbytes >= LARGE_BYTES and sys.platform == "linux":
        start = -(-tensor.data_ptr() // PAGE_BYTES) * PAGE_BYTES
        length = (tensor.data_ptr() + tensor.nbytes - start) // PAGE_BYTES * PAGE_BYTES
        ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), MADV_HUGEPAGE)
        tensor.view(-1)[:: PAGE_BYTES // tensor.itemsize].zero_()  # by torch's threads
    return tensor


def _into(target: torch.Tensor, x: torch.Tensor, stages: Sequence[Stage]) -> int:
    """Apply the stages, writing into ``target`` (any strides but the innermost, which is 1); returns how many values
    overflowed."""
    from bot_dist.kernels.tiling import make_tiling

    axes, order = _axes(target, x, stages)
    threads = torch.get_num_threads() if max(x.numel(), target.numel()) > SMALL else 1
    task = make_tiling(axes, order, threads)
    if task is not None:
        return _run(task, x, target, threads)
    # Operators that need whole axes, along more than one: a part of the first one's targets at a time.
    first, rest = stages[0], stages[1:]
    n_rows = max(1, INTERMEDIATE * x.shape[first.along] // x.numel())
    overflowed = 0
    for low in range(0, len(first.indices), n_rows):
        part = Stage(first.along, first.indices[low : low + n_rows], first.taps[low : low + n_rows])
        between = torch.empty(_shape_after(x, [part]), dtype=torch.float32)
        _into(between, x, [part])
        overflowed += _into(target.narrow(first.along, low, len(part.indices)), between, rest)
    return overflowed


def _axes(target: torch.Tensor, x: torch.Tensor, stages: Sequence[Stage]) -> tuple[list[Axis], list[int]]:
    """The dimensions, neighbours that no stage touches as one, and the stages' order as positions among them."""
    from bot_dist.kernels.tiling import Axis

    stage_along = {stage.along: stage for stage in stages}
    axes: list[Axis] = []
    position: dict[int, int] = {}
    for d in range(x.dim()):
        stage = stage_along.get(d)
        axis = Axis(x.shape[d], target.shape[d], x.stride(d), target.stride(d))
        if stage is not None:
            position[d] = len(axes)
            shared = axis.n_target > 1 and stage.indices.strides[0] == 0  # a dense operator's: spare the memory
            indices = stage.indices[:1] if shared else stage.indices
            axes.append(dataclasses.replace(axis, indices=indices, taps=stage.taps))
        elif axes and axes[-1].continues_in(axis):
            n = axes.pop().n_source * axis.n_source
            axes.append(Axis(n, n, axis.source_stride, axis.target_stride))
        else:
            axes.append(axis)
    return axes, [position[stage.along] for stage in stages]


def _run(task: Task, x: torch.Tensor, target: torch.Tensor, threads: int) -> int:
    """The compiled pass over all tiles, on threads of this call."""
    from bot_dist.kernels.kernels import run_tiles

    source, into = _memory(x), _memory(target)
    tiles = math.prod(task.tiling.grid.tolist())
    threads = min(threads, tiles)
    portions = iter(itertools.pairwise(np.linspace(0, tiles, 1 + min(tiles, PORTIONS * threads)).astype(int).tolist()))

    def work() -> int:
        scratch, memory = task.scratch.allocate()
        overflowed = sum(run_tiles(task.tiling, source, into, scratch, first, last) for first, last in portions)
        del memory  # it had to live until here
        return overflowed

    if threads == 1:
        return work()
    with ThreadPoolExecutor(threads) as pool:
        return sum(future.result() for future in [pool.submit(work) for _ in range(threads)])


def _memory(tensor: torch.Tensor) -> Memory:
    from bot_dist.kernels.scratch import Memory

    past_cache = tensor.nbytes >= LARGE_BYTES and tensor.data_ptr() % 64 == 0
    return Memory(tensor.data_ptr(), tensor.dtype == torch.bfloat16, past_cache)
