"""An operator along the innermost dimension: its periodic part as sums over phases (polyphase), the rest one by one.

Conventions as in ``sums.py``. A ``period`` is (start, stop, per_target, per_source): the targets from start to stop
repeat, per_target of them for every per_source sources.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from bot_dist.kernels.simd import (
    LANES,
    evens,
    integer,
    load,
    odds,
    put,
    put_integer,
    store,
    value,
    zipped_high,
    zipped_low,
)
from bot_dist.kernels.sums import combine, prepare


@njit(nogil=True)
def split(source: int, n: int, phases: int, target: int, pitch: int) -> None:
    """Split ``n`` values into phases: ``target[p · pitch + k] = source[k · phases + p]``; may read a vector past
    ``n``."""
    if phases == 2:
        for k in range(0, (n + 1) // 2, LANES):
            a, b = load(source, 2 * k), load(source, 2 * k + LANES)
            store(target, k, evens(a, b))
            store(target, pitch + k, odds(a, b))
        return
    for p in range(phases):
        for k in range((n - p + phases - 1) // phases):
            put(target, p * pitch + k, value(source, k * phases + p))


@njit(nogil=True)
def joined(source: int, pitch: int, n: int, phases: int, target: int) -> None:
    """Join ``n`` values from their phases: ``target[k · phases + p] = source[p · pitch + k]``, the inverse of
    ``split``; may write a vector past ``n``."""
    if phases == 2:
        for k in range(0, (n + 1) // 2, LANES):
            a, b = load(source, k), load(source, pitch + k)
            store(target, 2 * k, zipped_low(a, b))
            store(target, 2 * k + LANES, zipped_high(a, b))
        return
    for p in range(phases):
        for k in range((n - p + phases - 1) // phases):
            put(target, k * phases + p, value(source, p * pitch + k))


@njit(nogil=True)
def prepare_phases(period: Any, low: int, high: int, pitch: int, stage: Any) -> None:
    """Write the offsets and taps for ``phases_row``: of the first targets of the period, then of those outside of it,
    which are computed one by one."""
    start, stop, per_target, per_source = period[0], period[1], period[2], period[3]
    indices, taps, width, shared, offsets, tap32 = stage
    n = 0
    for t in range(low, high):
        if t < start or t >= stop or t < start + per_target:
            place = n
            if start <= t < stop:
                place = t - start
            elif t < start:
                place = min(per_target, stop - start) + t - low
            else:
                place = min(per_target, stop - start) + start - low + t - stop
            o, w = offsets + 8 * place * width, tap32 + 4 * place * width
            prepare(indices, taps, t * width, shared, width, 1, o, w)
            if per_source > 1:
                for j in range(width):
                    source = integer(o, j)
                    put_integer(o, j, source % per_source * pitch + source // per_source)


@njit(nogil=True)
def one(source: int, offsets: int, taps: int, count: int) -> Any:
    """Compute one value, ``Σ_j taps[j] · source[offsets[j]]`` over ``count`` taps."""
    total = value(taps, 0) * value(source, integer(offsets, 0))
    for j in range(1, count):
        total += value(taps, j) * value(source, integer(offsets, j))
    return total


@njit(nogil=True)
def phases_row(
    source: int, target: int, low: int, high: int, period: Any, between: int, pitch: int, stage: Any
) -> None:
    """Make one row along the innermost dimension, from the phases of one (the row itself if there is one). ``period``:
    the targets from [0] to [1] repeat, [2] of them for every [3] sources. ``between``: room for the target's phases."""
    start, stop, per_target = period[0], period[1], period[2]
    _, _, width, _, offsets, taps = stage
    regular = target + 4 * (start - low)
    repeated = min(per_target, stop - start)
    for r in range(repeated):
        n = (stop - start - r + per_target - 1) // per_target
        to = regular if per_target == 1 else between + 4 * r * pitch
        combine(to, source, offsets + 8 * r * width, taps + 4 * r * width, width, n, False)
    if per_target > 1 and stop > start:
        joined(between, pitch, stop - start, per_target, regular)
    alone = repeated
    for t in range(low, start):
        put(target, t - low, one(source, offsets + 8 * alone * width, taps + 4 * alone * width, width))
        alone += 1
    for t in range(stop, high):
        put(target, t - low, one(source, offsets + 8 * alone * width, taps + 4 * alone * width, width))
        alone += 1
