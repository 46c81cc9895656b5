"""Speed of the machine at its best, which a model's use of it (MFU) is measured against."""

from __future__ import annotations

import functools
import time

import torch
import torch.distributed as dist

REPEATS = 5
SIDES = {"cpu": 1024, "cuda": 8192}
"""Sides of the square matrices: large enough to be bound by arithmetic, done in a fraction of a second."""


@functools.cache
def peak_flops(dtype: torch.dtype, device: str) -> float:
    """FLOP/s of all ranks together: each multiplies matrices of ``dtype`` while the others do, the best of ``REPEATS``
    counts. A collective; what it has found holds for the process."""
    side = SIDES[device]
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    a @ b
    dist.barrier()
    best = min(_seconds(a, b) for _ in range(REPEATS))
    total = torch.tensor(2 * side**3 / best, dtype=torch.float64, device=device)
    dist.all_reduce(total)
    return total.item()


def _seconds(a: torch.Tensor, b: torch.Tensor) -> float:
    _finished(a)
    begun = time.perf_counter()
    _finished(a @ b)
    return time.perf_counter() - begun


def _finished(tensor: torch.Tensor) -> None:
    if tensor.is_cuda:
        torch.cuda.synchronize()
