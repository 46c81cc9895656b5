"""Weighted sums of rows: what every stage comes down to.

``source``, ``target``, ``offsets``, ``taps``, … are addresses (``simd.py``); extents, pitches and offsets count
elements. A ``stage`` is (address of its indices, of its float64 taps, width, whether one row of indices holds for all,
address of room for offsets, of room for float32 taps). Whole vectors are computed: what is beyond a row is overwritten
or left.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from bot_dist.kernels.simd import LANES, integer, load, plus, put, put_integer, rounded, scaled, store, value

STRIP = 4 * LANES
TAPS_AT_A_TIME = 96
"""Taps of a wide operator that are applied at a time: their strip of rows, 24 KiB, stays in the first-level cache for
all targets."""
L1_ELEMENTS = 6 * 1024
"""Elements of the first-level cache that the rows of one target may take, of operators that are not wide."""


@njit(nogil=True)
def combine(target: int, source: int, offsets: int, taps: int, count: int, n: int, more: bool) -> None:
    """Sum rows: ``target[i] = Σ_j taps[j] · source[offsets[j] + i]`` over ``count`` taps, for i up to ``n`` rounded up
    to vectors; with ``more``, added to what the target holds."""
    whole = n - n % STRIP
    if count == 2 and not more:
        t, s = value(taps, 0), value(taps, 1)
        p, q = integer(offsets, 0), integer(offsets, 1)
        for i in range(0, n, LANES):
            store(target, i, plus(scaled(t, load(source, p + i)), scaled(s, load(source, q + i))))
        return
    if count == 1 and not more:
        t, p = value(taps, 0), integer(offsets, 0)
        for i in range(0, n, LANES):
            store(target, i, scaled(t, load(source, p + i)))
        return
    first = 0 if more else 1
    for i in range(0, whole, STRIP):
        if more:
            a, b = load(target, i), load(target, i + LANES)
            c, d = load(target, i + 2 * LANES), load(target, i + 3 * LANES)
        else:
            p, tap = integer(offsets, 0) + i, value(taps, 0)
            a, b = scaled(tap, load(source, p)), scaled(tap, load(source, p + LANES))
            c, d = scaled(tap, load(source, p + 2 * LANES)), scaled(tap, load(source, p + 3 * LANES))
        for j in range(first, count):
            p, tap = integer(offsets, j) + i, value(taps, j)
            a = plus(a, scaled(tap, load(source, p)))
            b = plus(b, scaled(tap, load(source, p + LANES)))
            c = plus(c, scaled(tap, load(source, p + 2 * LANES)))
            d = plus(d, scaled(tap, load(source, p + 3 * LANES)))
        store(target, i, a)
        store(target, i + LANES, b)
        store(target, i + 2 * LANES, c)
        store(target, i + 3 * LANES, d)
    for i in range(whole, n, LANES):
        a = load(target, i) if more else scaled(value(taps, 0), load(source, integer(offsets, 0) + i))
        for j in range(first, count):
            a = plus(a, scaled(value(taps, j), load(source, integer(offsets, j) + i)))
        store(target, i, a)


@njit(nogil=True)
def prepare(indices: int, taps: int, at: int, shared: bool, width: int, step: int, offsets: int, taps_out: int) -> None:
    """Write ``width`` taps of an operator as float32, and the offsets of what they weigh, ``step`` apart per index.
    They start ``at`` the beginning of a row or in the middle of one; ``indices`` holds one row for all if
    ``shared``."""
    for j in range(width):
        put_integer(offsets, j, integer(indices, (0 if shared else at) + j) * step)
        put(taps_out, j, rounded(taps, at + j))


@njit(nogil=True)
def prepare_all(low: int, high: int, step: int, stage: Any) -> None:
    """Prepare the taps and offsets of targets ``low`` to ``high`` of a stage that is not wide, as ``prepare`` does."""
    indices, taps, width, shared, offsets, tap32 = stage
    for t in range(low, high):
        row = (t - low) * width
        prepare(indices, taps, t * width, shared, width, step, offsets + 8 * row, tap32 + 4 * row)


@njit(nogil=True)
def strip_of(width: int) -> int:
    """How many elements of the rows of an operator that is not wide to work on at a time: those that neighbouring
    targets share stay in the first-level cache."""
    return max(1, L1_ELEMENTS // (width * STRIP)) * STRIP


@njit(nogil=True)
def rows_stage(source: int, target: int, outer: int, extent: int, low: int, high: int, inner: int, stage: Any) -> None:
    """Run targets ``low`` to ``high`` of an operator, from a box (outer, extent, inner) to (outer, high − low,
    inner)."""
    indices, taps, width, shared, offsets, tap32 = stage
    n_target = high - low
    if width <= TAPS_AT_A_TIME:
        prepare_all(low, high, inner, stage)
        step = strip_of(width)
        for o in range(outer):
            for strip in range(0, inner, step):
                n, base = min(step, inner - strip), source + 4 * (o * extent * inner + strip)
                for t in range(n_target):
                    to, row = target + 4 * ((o * n_target + t) * inner + strip), t * width
                    combine(to, base, offsets + 8 * row, tap32 + 4 * row, width, n, False)
        return
    for o in range(outer):
        for strip in range(0, inner, STRIP):
            n, base = min(STRIP, inner - strip), o * extent * inner + strip
            for first in range(0, width, TAPS_AT_A_TIME):
                count = min(TAPS_AT_A_TIME, width - first)
                for t in range(low, high):
                    row = indices + 8 * first if shared else indices
                    prepare(row, taps, t * width + first, shared, count, inner, offsets, tap32)
                    to = (o * n_target + t - low) * inner + strip
                    combine(target + 4 * to, source + 4 * base, offsets, tap32, count, n, first > 0)


@njit(nogil=True)
def turn(source: int, pitch: int, target: int, target_pitch: int, rows: int, n: int) -> None:
    """Transpose a (rows, n) box with rows ``pitch`` apart into one with rows ``target_pitch`` apart."""
    for column in range(0, n, LANES):
        for row in range(rows):
            for c in range(column, min(column + LANES, n)):
                put(target, c * target_pitch + row, value(source, row * pitch + c))


@njit(nogil=True)
def turned_stage(
    source: int, target: int, rows: int, extent: int, pitch: int, low: int, high: int, target_pitch: int, turned: int,
    batch: int, stage: Any,
) -> None:  # fmt: skip
    """Run any operator along the innermost dimension: ``batch`` rows at a time, transposed and back. ``turned`` has
    room for them, before and after."""
    result = turned + 4 * extent * batch
    for row in range(0, rows, batch):
        n = min(batch, rows - row)
        turn(source + 4 * row * pitch, pitch, turned, batch, n, extent)
        rows_stage(turned, result, 1, extent, low, high, batch, stage)
        turn(result, batch, target + 4 * row * target_pitch, target_pitch, high - low, n)
