"""The compiled pass: one tile of the target at a time, all stages of it in scratch that stays in the cache.

A tile is a box of the target (``tiling.py`` chooses it). Its part of the source, halo included, is copied into scratch
as float32; each stage turns the box of one extent into the next; the last one's rows are rounded into the target.
Scratch is a box whose innermost dimension is padded to a ``pitch``, so a stage along any other dimension is a weighted
sum of rows (``combine``). Along the innermost dimension the periodic part of an operator is the same sum over phases
(polyphase: what a filter bank is), and an operator without a period is applied to the transposed box.

Every value is ``((t0·x0) + t1·x1) + …`` in float32 whatever the path. Whole vectors are computed, padding included, and
what is not part of the result is overwritten or left. ``source``, ``target``, ``offsets``, ``taps``, … are addresses
(``simd.py``); extents, pitches and offsets count elements.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from bot_dist.wavelets.simd import (
    LANES,
    evens,
    integer,
    load,
    load_first,
    load_half,
    load_half_first,
    odds,
    plus,
    prefetch,
    put,
    put_integer,
    rounded,
    scaled,
    store,
    store_first,
    store_half,
    store_half_first,
    store_half_past_cache,
    store_past_cache,
    value,
    zipped_high,
    zipped_low,
)

ROWS, PHASES, TURNED = 0, 1, 2
"""How a stage runs: sums of rows, polyphase along the innermost dimension, or rows of the transposed box."""
STRIP = 4 * LANES
L1_ELEMENTS = 6 * 1024
TAPS_AT_A_TIME = 96
"""Of a wide operator: their strip of rows, 24 KiB, stays in the first-level cache for all targets."""


@njit(nogil=True)
def combine(target: int, source: int, offsets: int, taps: int, count: int, n: int, more: bool) -> None:
    """``target[i] = Σ_j taps[j] · source[offsets[j] + i]`` over ``count`` taps, for i up to ``n`` rounded up to vectors;
    with ``more``, added to what the target holds."""
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
        if more:
            a = load(target, i)
        else:
            a = scaled(value(taps, 0), load(source, integer(offsets, 0) + i))
        for j in range(first, count):
            a = plus(a, scaled(value(taps, j), load(source, integer(offsets, j) + i)))
        store(target, i, a)


@njit(nogil=True)
def prepare(indices: int, taps: int, at: int, shared: bool, width: int, step: int, offsets: int, taps_out: int) -> None:
    """``width`` taps as float32, and the offsets of what they weigh, ``step`` apart per index, of those in an operator
    that start ``at``: a multiple of its rows, which are one in ``indices`` if ``shared``, or in the middle of a row."""
    for j in range(width):
        put_integer(offsets, j, integer(indices, (0 if shared else at) + j) * step)
        put(taps_out, j, rounded(taps, at + j))


@njit(nogil=True)
def prepare_all(low: int, high: int, step: int, stage: Any) -> None:
    """``prepare`` for targets ``low`` to ``high`` of a stage that is not wide."""
    indices, taps, width, shared, offsets, tap32 = stage
    for t in range(low, high):
        row = (t - low) * width
        prepare(indices, taps, t * width, shared, width, step, offsets + 8 * row, tap32 + 4 * row)


@njit(nogil=True)
def strip_of(width: int) -> int:
    """How much of the rows of an operator that is not wide to work on at a time: those that neighbouring targets share
    stay in the first-level cache."""
    return max(1, L1_ELEMENTS // (width * STRIP)) * STRIP


@njit(nogil=True)
def rows_stage(source: int, target: int, outer: int, extent: int, low: int, high: int, inner: int, stage: Any) -> None:
    """Targets ``low`` to ``high`` of an operator: (outer, extent, inner) to (outer, high − low, inner)."""
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
    """Along the innermost dimension, any operator: ``batch`` rows at a time, transposed and back."""
    result = turned + 4 * extent * batch
    for row in range(0, rows, batch):
        n = min(batch, rows - row)
        turn(source + 4 * row * pitch, pitch, turned, batch, n, extent)
        rows_stage(turned, result, 1, extent, low, high, batch, stage)
        turn(result, batch, target + 4 * row * target_pitch, target_pitch, high - low, n)


@njit(nogil=True)
def split(source: int, n: int, phases: int, target: int, pitch: int) -> None:
    """``target[p · pitch + k] = source[k · phases + p]``; may read a vector past ``n``."""
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
    """The inverse: ``target[k · phases + p] = source[p · pitch + k]``; may write a vector past ``n``."""
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
    """Offsets and taps for ``phases_row``: of the first targets of the period, then of those outside of it, which are
    computed one by one."""
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
    """``Σ_j taps[j] · source[offsets[j]]``."""
    total = value(taps, 0) * value(source, integer(offsets, 0))
    for j in range(1, count):
        total += value(taps, j) * value(source, integer(offsets, j))
    return total


@njit(nogil=True)
def phases_row(source: int, target: int, low: int, high: int, period: Any, between: int, pitch: int, stage: Any) -> None:
    """One row along the innermost dimension, from its phases (the row itself if there is one). ``period``: the targets
    from [0] to [1] repeat, [2] of them for every [3] sources. ``between``: room for the target's phases."""
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


@njit(nogil=True)
def fetch(source: int, half: bool, at: int, target: int, n: int, ahead: int) -> None:
    """``n`` values of the source into scratch that has room for whole vectors; asks for those from ``ahead`` on."""
    whole = n - n % LANES
    if half:
        for i in range(0, whole, LANES):
            prefetch(source + 2 * (ahead + i))
            store(target, i, load_half(source, at + i))
        store(target, whole, load_half_first(source, at + whole, n - whole))
    else:
        for i in range(0, whole, LANES):
            prefetch(source + 4 * (ahead + i))
            store(target, i, load(source, at + i))
        store(target, whole, load_first(source, at + whole, n - whole))


@njit(nogil=True)
def fetch_split(source: int, half: bool, at: int, target: int, pitch: int, n: int, ahead: int) -> None:
    """The same, and ``split`` in two."""
    whole = n - n % (2 * LANES)
    if half:
        for i in range(0, whole, 2 * LANES):
            prefetch(source + 2 * (ahead + i))
            a, b = load_half(source, at + i), load_half(source, at + i + LANES)
            store(target, i // 2, evens(a, b))
            store(target, pitch + i // 2, odds(a, b))
        a = load_half_first(source, at + whole, n - whole)
        b = load_half_first(source, at + whole + LANES, n - whole - LANES)
    else:
        for i in range(0, whole, 2 * LANES):
            prefetch(source + 4 * (ahead + i))
            prefetch(source + 4 * (ahead + i + LANES))
            a, b = load(source, at + i), load(source, at + i + LANES)
            store(target, i // 2, evens(a, b))
            store(target, pitch + i // 2, odds(a, b))
        a = load_first(source, at + whole, n - whole)
        b = load_first(source, at + whole + LANES, n - whole - LANES)
    store(target, whole // 2, evens(a, b))
    store(target, pitch + whole // 2, odds(a, b))


@njit(nogil=True)
def deliver(source: int, target: int, half: bool, past_cache: bool, to: int, n: int) -> int:
    """``n`` values of scratch into the target; returns how many finite ones became infinite."""
    whole, overflowed = n - n % LANES, 0
    if half:
        if past_cache and to % LANES == 0:
            for i in range(0, whole, LANES):
                overflowed += store_half_past_cache(target, to + i, load(source, i))
        else:
            for i in range(0, whole, LANES):
                overflowed += store_half(target, to + i, load(source, i))
        if whole < n:
            overflowed += store_half_first(target, to + whole, load(source, whole), n - whole)
        return overflowed
    if past_cache and to % LANES == 0:
        for i in range(0, whole, LANES):
            store_past_cache(target, to + i, load(source, i))
    else:
        for i in range(0, whole, LANES):
            store(target, to + i, load(source, i))
    if whole < n:
        store_first(target, to + whole, load(source, whole), n - whole)
    return overflowed


@njit(nogil=True)
def row_starts(strides: Any, needed: Any, begins: Any, counts: Any, starts: int) -> int:
    """Where the rows of a box start in memory: one for every combination of places of the dimensions but the innermost,
    of which dimension d has ``counts[d]``, from ``needed[begins[d]]`` on. Returns how many rows there are."""
    put_integer(starts, 0, 0)
    n = 1
    for d in range(len(strides) - 1):
        count = counts[d]
        for r in range(n - 1, -1, -1):
            start = integer(starts, r)
            for i in range(count - 1, -1, -1):
                put_integer(starts, r * count + i, start + needed[begins[d] + i] * strides[d])
        n *= count
    return n


@njit(nogil=True)
def padded(n: int) -> int:
    """The pitch of rows of ``n`` values: whole vectors, and not a multiple of 4 KiB, which would alias in the cache."""
    pitch = (n + LANES - 1) // LANES * LANES
    return pitch + LANES if pitch % 1024 == 0 else pitch


@njit(nogil=True)
def product(values: Any, first: int, last: int) -> int:
    n = 1
    for d in range(first, last):
        n *= values[d]
    return n


@njit(nogil=True, cache=True)
def run_tiles(plan: Any, source: Any, target: Any, scratch: Any, first: int, last: int) -> int:
    """Tiles ``first`` to ``last`` of a ``tiling.Tiling``, from ``source`` into ``target`` (``tiling.Memory``). Returns
    how many finite values became infinite."""
    n_dims, n_stages = len(plan.grid), len(plan.along)
    inner = n_dims - 1
    low, high, tile_of = np.empty(n_dims, np.int64), np.empty(n_dims, np.int64), np.empty(n_dims, np.int64)
    extent, begins = np.empty(n_dims, np.int64), np.empty(n_dims, np.int64)
    here, there, row, phases = scratch.here, scratch.there, scratch.row, scratch.phases
    overflowed = 0
    for tile in range(first, last):
        rest = tile
        for d in range(inner, -1, -1):
            tile_of[d] = plan.first_tile[d] + rest % plan.grid[d]
            rest //= plan.grid[d]
            low[d], high[d] = plan.low[tile_of[d]], plan.high[tile_of[d]]
            begins[d] = plan.needed_at[tile_of[d]]
            extent[d] = plan.needed_at[tile_of[d] + 1] - begins[d]
        column = tile_of[inner] - plan.first_tile[inner]
        start, stop = plan.regular[2 * column], plan.regular[2 * column + 1]
        period = (start, stop, plan.per_target, plan.per_source)
        between = phases + 4 * plan.per_source * scratch.pitch
        polyphase = (0, 0, 0, False, scratch.phase_offsets, scratch.phase_taps)
        for s in range(n_stages):
            if plan.kind[s] == PHASES:
                polyphase = (plan.indices[s], plan.taps[s], plan.width[s], plan.shared[s] == 1,
                             scratch.phase_offsets, scratch.phase_taps)  # fmt: skip
                prepare_phases(period, low[inner], high[inner], scratch.pitch, polyphase)

        # The source's part of the tile; through the first stage at once if that works row by row.
        n_rows = row_starts(plan.source_strides, plan.needed, begins, extent, scratch.starts)
        at_once = n_stages > 1 and plan.kind[0] == PHASES
        pitch = padded(high[inner] - low[inner] if at_once else extent[inner])
        run, runs = plan.run_at[column], plan.run_at[column + 1]
        r = 0
        while r < n_rows:
            result = here + 4 * r * pitch
            fetched = row if at_once else result
            begin, n = integer(scratch.starts, r) + plan.run_start[run], extent[inner]
            ahead = integer(scratch.starts, min(r + 1, n_rows - 1)) + plan.run_start[run]
            r += 1
            if runs - run == 1 and at_once and plan.per_source == 2:
                fetch_split(source.address, source.half, begin, phases, scratch.pitch, n, ahead)
                phases_row(phases, result, low[inner], high[inner], period, between, scratch.pitch, polyphase)
                continue
            if runs - run == 1:
                if n == pitch and not at_once:  # neighbours in memory are fetched together
                    while r < n_rows and integer(scratch.starts, r) + plan.run_start[run] == begin + n:
                        r, n = r + 1, n + pitch
                    ahead = begin + n
                fetch(source.address, source.half, begin, fetched, n, ahead)
            else:
                to = fetched
                for k in range(run, runs):
                    begin += plan.run_start[k] - plan.run_start[max(run, k - 1)]
                    n = plan.run_length[k]
                    fetch(source.address, source.half, begin, to, n, ahead)
                    to += 4 * n
            if at_once:
                if plan.per_source > 1:
                    split(row, extent[inner], plan.per_source, phases, scratch.pitch)
                    fetched = phases
                phases_row(fetched, result, low[inner], high[inner], period, between, scratch.pitch, polyphase)
        done = 0
        if at_once:
            done, extent[inner] = 1, high[inner] - low[inner]

        # The stages between. The last one runs row by row into the target, unless it is wide or works on a turned box.
        final = n_stages - 1
        if plan.kind[final] == TURNED or (plan.kind[final] == ROWS and plan.width[final] > TAPS_AT_A_TIME):
            final = n_stages
        for s in range(done, final):
            d = plan.along[s]
            outer = product(extent, 0, d)
            stage = (plan.indices[s], plan.taps[s], plan.width[s], plan.shared[s] == 1, scratch.offsets, scratch.taps)
            if plan.kind[s] == ROWS:
                trailing = product(extent, d + 1, inner) * pitch
                rows_stage(here, there, outer, extent[d], low[d], high[d], trailing, stage)
            else:
                new = padded(high[d] - low[d])
                if plan.kind[s] == TURNED:
                    turned_stage(
                        here, there, outer, extent[d], pitch, low[d], high[d], new, scratch.turned, scratch.batch,
                        stage,
                    )  # fmt: skip
                else:
                    for r in range(outer):
                        fetched = here + 4 * r * pitch
                        if plan.per_source > 1:
                            split(fetched, extent[d], plan.per_source, phases, scratch.pitch)
                            fetched = phases
                        result = there + 4 * r * new
                        phases_row(fetched, result, low[d], high[d], period, between, scratch.pitch, polyphase)
                pitch = new
            extent[d] = high[d] - low[d]
            here, there = there, here

        # Into the target.
        for d in range(n_dims):
            begins[d] = low[d]
        along = inner
        if final < n_stages:
            along = plan.along[final]
        n_source, extent[along] = extent[along], high[along] - low[along]
        n_rows = row_starts(plan.target_strides, plan.places, begins, extent, scratch.starts)
        n = extent[inner]
        if final == n_stages or plan.kind[final] == PHASES:
            for r in range(n_rows):
                result = here + 4 * r * pitch
                if final < n_stages:
                    if plan.per_source > 1:
                        split(result, n_source, plan.per_source, phases, scratch.pitch)
                        result = phases
                    phases_row(result, row, low[inner], high[inner], period, between, scratch.pitch, polyphase)
                    result = row
                to = integer(scratch.starts, r) + low[inner]
                overflowed += deliver(result, target.address, target.half, target.past_cache, to, n)
        else:
            outer, trailing = product(extent, 0, along), product(extent, along + 1, inner)
            stage = (plan.indices[final], plan.taps[final], plan.width[final], plan.shared[final] == 1,
                     scratch.offsets, scratch.taps)  # fmt: skip
            width = plan.width[final]
            prepare_all(low[along], high[along], trailing * pitch, stage)
            for o in range(outer):
                for r in range(trailing):
                    base = here + 4 * (o * n_source * trailing + r) * pitch
                    for t in range(extent[along]):
                        combine(row, base, scratch.offsets + 8 * t * width, scratch.taps + 4 * t * width, width, n, False)
                        to = integer(scratch.starts, (o * extent[along] + t) * trailing + r) + low[inner]
                        overflowed += deliver(row, target.address, target.half, target.past_cache, to, n)
    return overflowed
