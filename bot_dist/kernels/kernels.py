"""The compiled pass: one tile of the target at a time, all stages of it in scratch that stays in the cache.

A tile is a box of the target (``tiling.py`` chooses it). Its part of the source, halo included, is copied into scratch
as float32; each stage turns the box of one extent into the next; the last one's rows are rounded into the target.
Scratch is a box whose innermost dimension is padded to a ``pitch``, so a stage along any other dimension is a weighted
sum of rows (``sums.py``). The innermost dimension has phases (``polyphase.py``), and an operator without a period is
applied to the transposed box.

Every value is ``((t0·x0) + t1·x1) + …`` in float32 whatever the path. Conventions as in ``sums.py``; a ``box``
holds four arrays, per dimension the first target, the past-last target, the first entry of ``needed``, and the extent,
which changes from stage to stage.
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numba import njit

from bot_dist.kernels.polyphase import phases_row, prepare_phases, split
from bot_dist.kernels.rows import deliver, fetch, fetch_split, padded, row_starts
from bot_dist.kernels.simd import integer
from bot_dist.kernels.sums import TAPS_AT_A_TIME, combine, prepare_all, rows_stage, turned_stage

ROWS, PHASES, TURNED = 0, 1, 2
"""The ways in which a stage runs: sums of rows, polyphase along the innermost dimension, or rows of the transposed
box."""

PARTS = zlib.crc32(b"".join((Path(__file__).parent / f"{name}.py").read_bytes() for name in
                            ("polyphase", "rows", "simd", "sums")))  # fmt: skip
"""Checksum of the modules that are compiled into the pass. numba's cache on disk knows a kernel by its own file and the
types of its arguments, which a default is part of."""


@njit(nogil=True)
def product(values: Any, first: int, last: int) -> Any:
    n = 1
    for d in range(first, last):
        n *= values[d]
    return n


@njit(nogil=True)
def stage_of(plan: Any, s: int, offsets: int, taps: int) -> Any:
    return plan.indices[s], plan.taps[s], plan.width[s], plan.shared[s] == 1, offsets, taps


@njit(nogil=True)
def locate(plan: Any, tile: int, box: Any) -> Any:
    """Fill in the box of a tile, and return the tile's number along the innermost dimension."""
    low, high, begins, extent = box
    column = 0
    for d in range(len(plan.grid) - 1, -1, -1):
        number = plan.first_tile[d] + tile % plan.grid[d]
        tile //= plan.grid[d]
        low[d], high[d] = plan.low[number], plan.high[number]
        begins[d] = plan.needed_at[number]
        extent[d] = plan.needed_at[number + 1] - begins[d]
        column += number * (d == len(plan.grid) - 1)
    return column - plan.first_tile[len(plan.grid) - 1]


@njit(nogil=True)
def phases_of(plan: Any, row: int, n: int, scratch: Any) -> Any:
    """Split a row of scratch of ``n`` values into its phases, if there are several, and return their address."""
    if plan.per_source == 1:
        return row
    split(row, n, plan.per_source, scratch.phases, scratch.pitch)
    return scratch.phases


@njit(nogil=True)
def fetch_box(plan: Any, source: Any, scratch: Any, box: Any, column: int, period: Any, polyphase: Any) -> None:
    """Copy the source's part of a tile into scratch; through the first stage at once if that works row by row."""
    low, high, begins, extent = box
    inner = len(plan.grid) - 1
    between = scratch.phases + 4 * plan.per_source * scratch.pitch
    n_rows = row_starts(plan.source_strides, plan.needed, begins, extent, scratch.starts)
    at_once = len(plan.along) > 1 and plan.kind[0] == PHASES
    pitch = padded(high[inner] - low[inner] if at_once else extent[inner])
    run, runs = plan.run_at[column], plan.run_at[column + 1]
    r = 0
    while r < n_rows:
        result = scratch.here + 4 * r * pitch
        row = scratch.row if at_once else result
        start, n = integer(scratch.starts, r), extent[inner]
        begin, ahead = (
            start + plan.run_start[run],
            integer(scratch.starts, min(r + 1, n_rows - 1)) + plan.run_start[run],
        )
        r += 1
        if runs - run > 1:
            to = row
            for k in range(run, runs):
                fetch(source.address, source.half, start + plan.run_start[k], to, plan.run_length[k], ahead)
                to += 4 * plan.run_length[k]
        elif at_once and plan.per_source == 2:
            fetch_split(source.address, source.half, begin, scratch.phases, scratch.pitch, n, ahead)
            phases_row(scratch.phases, result, low[inner], high[inner], period, between, scratch.pitch, polyphase)
            continue
        else:
            if n == pitch and not at_once:  # neighbours in memory are fetched together
                while r < n_rows and integer(scratch.starts, r) + plan.run_start[run] == begin + n:
                    r, n = r + 1, n + pitch
                ahead = begin + n
            fetch(source.address, source.half, begin, row, n, ahead)
        if at_once:
            phases = phases_of(plan, row, extent[inner], scratch)
            phases_row(phases, result, low[inner], high[inner], period, between, scratch.pitch, polyphase)


@njit(nogil=True)
def inner_stage(
    plan: Any, s: int, here: int, there: int, pitch: int, new: int, scratch: Any, box: Any, period: Any, polyphase: Any
) -> None:
    """Run a stage along the innermost dimension, from rows ``pitch`` apart to rows ``new`` apart."""
    low, high, _, extent = box
    d = plan.along[s]
    rows = product(extent, 0, d)
    if plan.kind[s] == TURNED:
        stage = stage_of(plan, s, scratch.offsets, scratch.taps)
        turned_stage(
            here, there, rows, extent[d], pitch, low[d], high[d], new, scratch.turned, scratch.batch, stage
        )  # fmt: skip
        return
    between = scratch.phases + 4 * plan.per_source * scratch.pitch
    for r in range(rows):
        phases = phases_of(plan, here + 4 * r * pitch, extent[d], scratch)
        phases_row(phases, there + 4 * r * new, low[d], high[d], period, between, scratch.pitch, polyphase)


@njit(nogil=True)
def deliver_box(
    plan: Any, final: int, here: int, pitch: int, target: Any, scratch: Any, box: Any, period: Any, polyphase: Any
) -> int:
    """Write a box of scratch, through stage ``final`` if there is that one, row by row into the target. Returns how
    many finite values became infinite."""
    low, high, _, extent = box
    inner = len(plan.grid) - 1
    along = plan.along[final] if final < len(plan.along) else inner
    n_source, extent[along] = extent[along], high[along] - low[along]
    n_rows, n = row_starts(plan.target_strides, plan.places, low, extent, scratch.starts), extent[inner]
    overflowed = 0
    if final < len(plan.along) and plan.kind[final] == ROWS:
        outer, trailing, width = product(extent, 0, along), product(extent, along + 1, inner), plan.width[final]
        prepare_all(low[along], high[along], trailing * pitch, stage_of(plan, final, scratch.offsets, scratch.taps))
        for o in range(outer):
            for r in range(trailing):
                base = here + 4 * (o * n_source * trailing + r) * pitch
                for t in range(extent[along]):
                    offsets, taps = scratch.offsets + 8 * t * width, scratch.taps + 4 * t * width
                    combine(scratch.row, base, offsets, taps, width, n, False)
                    to = integer(scratch.starts, (o * extent[along] + t) * trailing + r) + low[inner]
                    overflowed += deliver(scratch.row, target.address, target.half, target.past_cache, to, n)
        return overflowed
    between = scratch.phases + 4 * plan.per_source * scratch.pitch
    for r in range(n_rows):
        row = here + 4 * r * pitch
        if final < len(plan.along):
            phases = phases_of(plan, row, n_source, scratch)
            row = scratch.row
            phases_row(phases, row, low[inner], high[inner], period, between, scratch.pitch, polyphase)
        to = integer(scratch.starts, r) + low[inner]
        overflowed += deliver(row, target.address, target.half, target.past_cache, to, n)
    return overflowed


@njit(nogil=True, cache=True)
def run_tiles(plan: Any, source: Any, target: Any, scratch: Any, first: int, last: int, parts: int = PARTS) -> int:
    """Make the tiles from ``first`` to before ``last`` of a ``tiling.Tiling``, from ``source`` into ``target``
    (``scratch.Memory``). Returns how many finite values became infinite."""
    n_dims, n_stages = len(plan.grid), len(plan.along)
    box = (
        np.empty(n_dims, np.int64),
        np.empty(n_dims, np.int64),
        np.empty(n_dims, np.int64),
        np.empty(n_dims, np.int64),
    )
    low, high, _, extent = box
    inner = n_dims - 1
    overflowed = 0
    for tile in range(first, last):
        column = locate(plan, tile, box)
        period = (plan.regular[2 * column], plan.regular[2 * column + 1], plan.per_target, plan.per_source)
        polyphase = (0, 0, 0, False, scratch.phase_offsets, scratch.phase_taps)
        for s in range(n_stages):
            if plan.kind[s] == PHASES:
                polyphase = stage_of(plan, s, scratch.phase_offsets, scratch.phase_taps)
                prepare_phases(period, low[inner], high[inner], scratch.pitch, polyphase)
        fetch_box(plan, source, scratch, box, column, period, polyphase)
        done = 1 if n_stages > 1 and plan.kind[0] == PHASES else 0
        if done == 1:
            extent[inner] = high[inner] - low[inner]

        # The last stage runs row by row into the target, unless it is wide or works on a turned box.
        final = n_stages - 1
        if plan.kind[final] == TURNED or (plan.kind[final] == ROWS and plan.width[final] > TAPS_AT_A_TIME):
            final = n_stages
        here, there, pitch = scratch.here, scratch.there, padded(extent[inner])
        for s in range(done, final):
            d = plan.along[s]
            if plan.kind[s] == ROWS:
                outer, trailing = product(extent, 0, d), product(extent, d + 1, inner) * pitch
                stage = stage_of(plan, s, scratch.offsets, scratch.taps)
                rows_stage(here, there, outer, extent[d], low[d], high[d], trailing, stage)
            else:
                new = padded(high[d] - low[d])
                inner_stage(plan, s, here, there, pitch, new, scratch, box, period, polyphase)
                pitch = new
            extent[d] = high[d] - low[d]
            here, there = there, here
        overflowed += deliver_box(plan, final, here, pitch, target, scratch, box, period, polyphase)
    return overflowed
