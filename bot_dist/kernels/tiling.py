"""The description of a problem for the compiled pass: its shape, its tiles, and the part of the source for each tile.

A tile is a box of the target small enough that its part of the source and everything between stays in the cache, and
large enough that the halo, which neighbouring tiles fetch and transform again, costs little.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bot_dist.kernels.kernels import PHASES, ROWS, TURNED
from bot_dist.kernels.rows import padded as compiled_padded
from bot_dist.kernels.scratch import ScratchSizes
from bot_dist.kernels.simd import LANES
from bot_dist.kernels.sums import TAPS_AT_A_TIME

Ints = npt.NDArray[np.int64]
Doubles = npt.NDArray[np.float64]

LONGEST_ROW = 2048
"""Longest row that shares the first-level cache with its phases, in elements."""
CACHE_BYTES = 3 * 2**20
"""Scratch that a thread has at most where tiles can be made small enough."""
SCRATCH_BYTES = 24 * 2**20
"""Scratch that all threads together may have where operators need whole axes."""
TURNED_ROWS = 64
"""Number of rows that are transposed at a time; half or a quarter of it where they are long."""
MAX_PERIOD = 32
"""Longest period, in targets and in sources, after which an operator is looked at for repetition."""
padded = compiled_padded.py_func
MERGED_GAP = 8
"""Largest gap between two needed source values, in elements, that is fetched rather than skipped."""


@dataclass(frozen=True, eq=False)
class Axis:
    """One dimension of the problem; neighbours that no stage touches are one. Strides are in elements."""

    n_source: int
    n_target: int
    source_stride: int
    target_stride: int
    indices: Ints | None = None
    """Source index of every tap, ``(n_target, width)``, or one row that holds for all targets."""
    taps: Doubles | None = None

    @property
    def width(self) -> int:
        return 0 if self.taps is None else self.taps.shape[1]

    def continues_in(self, inner: Axis) -> bool:
        """Whether this and the next dimension, neither changed by a stage, are one in memory."""
        contiguous = self.source_stride == inner.n_source * inner.source_stride
        return self.indices is None and contiguous and self.target_stride == inner.n_target * inner.target_stride

    def needed(self, low: int, high: int, merged_gap: int = 0) -> Ints:
        """The source indices, ascending, that targets ``low`` to ``high`` need."""
        if self.indices is None:
            return np.arange(low, high)
        if 2 * self.width > self.n_source or len(self.indices) < self.n_target:
            return np.arange(self.n_source)
        used = np.zeros(self.n_source, dtype=bool)
        used[self.indices[low:high]] = True
        starts, stops = _runs(np.flatnonzero(used), merged_gap)
        return np.concatenate([np.arange(a, b) for a, b in zip(starts, stops, strict=True)])


def _runs(places: Ints, merged_gap: int = 0) -> tuple[Ints, Ints]:
    """First and past-last of the stretches of ascending places, closer ones than the gap taken as one."""
    breaks = np.flatnonzero(np.diff(places) > merged_gap + 1)
    return places[np.concatenate(([0], breaks + 1))], places[np.concatenate((breaks, [len(places) - 1]))] + 1


class Tiling(NamedTuple):
    """The problem, as the kernel reads it. Tiles of dimension d are numbers ``first_tile[d]`` to ``first_tile[d] +
    grid[d]`` of the arrays that have one entry per tile and dimension."""

    grid: Ints
    first_tile: Ints
    low: Ints
    high: Ints
    needed: Ints
    """The source indices that tiles need, one tile after the other: those of a tile are from ``needed_at[tile]`` to
    ``needed_at[tile + 1]``."""
    needed_at: Ints
    places: Ints
    """The numbers 0, 1, 2, …, which are for the target what ``needed`` is for the source."""
    run_start: Ints
    """First index of every stretch of the innermost dimension that is contiguous in memory."""
    run_length: Ints
    run_at: Ints
    regular: Ints
    """First and past-last target between which the operator repeats, for each tile of the innermost dimension."""
    per_target: int
    """Number of targets after which the operator repeats."""
    per_source: int
    """Number of sources by which it has moved on then."""
    source_strides: Ints
    target_strides: Ints
    along: Ints
    """The dimension of every stage."""
    kind: Ints
    indices: Ints
    """Address of every stage's indices into the tile's ``needed``, ``(n_target, width)``, or one row for all targets
    where the stage is ``shared``."""
    taps: Ints
    """Address of every stage's taps, float64."""
    width: Ints
    shared: Ints


@dataclass(frozen=True, eq=False)
class Task:
    """A pass, ready to be run by several threads."""

    tiling: Tiling
    scratch: ScratchSizes
    kept: tuple[list[Ints], list[Doubles]]
    """The arrays whose addresses the tiling holds."""


def find_period(indices: Ints, taps: Doubles) -> tuple[int, int]:
    """The smallest (targets, sources) after which most rows of an operator repeat, shifted; (0, 0) if they do not."""
    n, width = indices.shape
    if width > TAPS_AT_A_TIME:
        return 0, 0
    middle = slice(max(0, n // 2 - 128), n // 2 + 128)
    some, weights = indices[middle], taps[middle]
    for period in range(1, min(MAX_PERIOD, len(some) // 2) + 1):
        step = some[period:] - some[:-period]
        same = (step == step[:, :1]).all(1) & (weights[period:] == weights[:-period]).all(1)
        shifts, counts = np.unique(step[same, 0], return_counts=True)
        if len(counts) and 2 * counts.max() >= len(step):
            sources = int(shifts[counts.argmax()])
            if 0 < sources <= MAX_PERIOD:
                return period, sources
    return 0, 0


def repeating(indices: Ints, taps: Doubles, period: tuple[int, int]) -> tuple[int, int]:
    """The longest stretch of rows that repeat with the period."""
    per_target, per_source = period
    if not per_target or len(indices) <= per_target:
        return 0, 0
    regular = (indices[per_target:] - indices[:-per_target] == per_source).all(1)
    regular &= (taps[per_target:] == taps[:-per_target]).all(1)
    edges = np.flatnonzero(np.diff(np.concatenate(([False], regular, [False])).astype(np.int8)))
    if not len(edges):
        return 0, 0
    lengths = edges[1::2] - edges[::2]
    best = int(lengths.argmax())
    return int(edges[2 * best]), int(edges[2 * best + 1]) + per_target


@dataclass(frozen=True, eq=False)
class _Sizes:
    """Finds tile sizes by an estimate of cycles per target element."""

    axes: Sequence[Axis]
    order: Sequence[int]
    kinds: Sequence[int]

    def extents(self, d: int, size: int, cache: dict[tuple[int, int], int]) -> int:
        """How many source indices a tile of ``size`` targets needs, in the middle of axis ``d``."""
        if (d, size) not in cache:
            axis = self.axes[d]
            low = max(0, (axis.n_target - size) // 2)
            gap = MERGED_GAP if d == len(self.axes) - 1 else 0
            cache[d, size] = len(axis.needed(low, min(low + size, axis.n_target), gap))
        return cache[d, size]

    def estimate(self, sizes: Sequence[int], cache: dict[tuple[int, int], int]) -> tuple[float, int]:
        """Cycles per target element, and elements of the boxes between stages."""
        box = [self.extents(d, size, cache) for d, size in enumerate(sizes)]
        cycles = 5000.0 + _rows(box) * 100 + _elements(box)
        longest = box[-1]
        boxes = [] if at_once(self.kinds) else [_elements(box)]
        for s, d in enumerate(self.order):
            before, before_rows = _elements(box), _rows(box)
            box[d] = sizes[d]
            after, width = _elements(box), self.axes[d].width
            if self.kinds[s] == TURNED:
                # Rows are transposed, and back, a batch at a time however many there are.
                filled = -(-before_rows // TURNED_ROWS) * TURNED_ROWS / before_rows
                cycles += (before + after) * 2.5 + after * width * 0.07 * filled
            else:
                cycles += after * (0.15 + width * 0.07) + _rows(box) * (40 if self.kinds[s] == ROWS else 80 + 4 * width)
            if s < len(self.order) - 1 or self.kinds[s] == TURNED or width > TAPS_AT_A_TIME:
                boxes.append(after)
        longest = max(longest, box[-1])
        cycles += _rows(box) * 60 + _elements(box) * (0.5 if longest <= LONGEST_ROW else 0.9)
        return cycles / math.prod(sizes), max(boxes[::2], default=0) + max(boxes[1::2], default=0)

    def best(self, allowed_bytes: int) -> list[int] | None:
        """Tile sizes; None where even the smallest tile needs more scratch than that."""
        cache: dict[tuple[int, int], int] = {}
        sizes = [1] * len(self.axes)
        sizes[-1] = min(LANES, self.axes[-1].n_target)
        cost, box = self.estimate(sizes, cache)
        if 4 * box > allowed_bytes and len(self.order) > 1:
            return None
        limit = max(min(CACHE_BYTES, allowed_bytes), 4 * box)
        while True:
            options = []
            for d, axis in enumerate(self.axes):
                if sizes[d] < axis.n_target:
                    larger = [*sizes[:d], min(2 * sizes[d], axis.n_target), *sizes[d + 1 :]]
                    estimate, elements = self.estimate(larger, cache)
                    if 4 * elements <= limit and estimate < 0.99 * cost:
                        options.append((estimate, larger))
            if not options:
                return sizes
            cost, sizes = min(options)


def at_once(kinds: Sequence[int]) -> bool:
    """Whether the first stage is applied while fetching, so that there is no box before it."""
    return len(kinds) > 1 and kinds[0] == PHASES


def _elements(box: Sequence[int]) -> int:
    return math.prod(box[:-1]) * int(padded(box[-1]))


def _rows(box: Sequence[int]) -> int:
    return math.prod(box[:-1])


def make_tiling(axes: Sequence[Axis], order: Sequence[int], threads: int) -> Task | None:
    """The tiles for stages along the axes ``order``, and the scratch that a thread needs; None where several operators
    need so much of their axes that the smallest tile exceeds SCRATCH_BYTES."""
    last = len(axes) - 1
    inner = axes[last]
    period = (0, 0)
    if inner.indices is not None and inner.taps is not None and len(inner.indices) == inner.n_target:
        period = find_period(inner.indices, inner.taps)
    kinds = [ROWS if d != last else PHASES if period[0] else TURNED for d in order]
    sizes = _Sizes(axes, order, kinds).best(SCRATCH_BYTES // threads)
    if sizes is None:
        return None

    lows, highs, needed, grid = [], [], [], []
    local: dict[int, Ints] = {}
    regular: list[int] = []
    for d, axis in enumerate(axes):
        bounds = [*range(0, axis.n_target, sizes[d]), axis.n_target]
        tiles = list(itertools.pairwise(bounds))
        parts = [axis.needed(low, high, MERGED_GAP if d == last else 0) for low, high in tiles]
        grid.append(len(tiles))
        lows += bounds[:-1]
        highs += bounds[1:]
        needed += parts
        if axis.indices is None or axis.taps is None:
            continue
        local[d] = axis.indices
        if any(len(part) < axis.n_source for part in parts):
            local[d] = np.empty_like(axis.indices)
            position = np.empty(axis.n_source, np.int64)
            for (low, high), part in zip(tiles, parts, strict=True):
                position[part] = np.arange(len(part))
                local[d][low:high] = position[axis.indices[low:high]]
        if d == last and period[0]:
            for low, high in tiles:
                start, stop = repeating(local[d][low:high], axis.taps[low:high], period)
                regular += [low + start, low + stop]
            alone = axis.n_target - sum(regular[1::2]) + sum(regular[::2])
            if alone * axis.width > 2 * (axis.n_source + axis.n_target):
                kinds = [TURNED if kind == PHASES else kind for kind in kinds]
    if PHASES not in kinds:
        regular, period = [0] * (2 * grid[-1]), (1, 1)

    runs = [_runs(part) for part in needed[-grid[-1] :]]
    counts = np.array([len(part) for part in needed])
    indices = [np.ascontiguousarray(local[d]) for d in order]
    taps = [np.ascontiguousarray(axes[d].taps) for d in order]
    tiling = Tiling(
        grid=np.array(grid),
        first_tile=np.concatenate(([0], np.cumsum(grid)[:-1])),
        low=np.array(lows),
        high=np.array(highs),
        needed=np.concatenate(needed),
        needed_at=np.concatenate(([0], np.cumsum(counts))),
        places=np.arange(max(highs)),
        run_start=np.concatenate([starts for starts, _ in runs]),
        run_length=np.concatenate([stops - starts for starts, stops in runs]),
        run_at=np.concatenate(([0], np.cumsum([len(starts) for starts, _ in runs]))),
        regular=np.array(regular),
        per_target=period[0],
        per_source=period[1],
        source_strides=np.array([axis.source_stride for axis in axes]),
        target_strides=np.array([axis.target_stride for axis in axes]),
        along=np.array(order),
        kind=np.array(kinds),
        indices=np.array([array.ctypes.data for array in indices]),
        taps=np.array([array.ctypes.data for array in taps]),
        width=np.array([axes[d].width for d in order]),
        shared=np.array([int(len(array) < axes[d].n_target) for d, array in zip(order, indices, strict=True)]),
    )
    extents = [int(counts[first : first + n].max()) for first, n in zip(tiling.first_tile, grid, strict=True)]
    ends = zip(lows[-grid[-1] :], highs[-grid[-1] :], regular[::2], regular[1::2], strict=True)
    alone = max(high - low - stop + start for low, high, start, stop in ends)
    scratch = _scratch_sizes(axes, order, kinds, extents, sizes, period, alone)
    return Task(tiling, scratch, (indices, taps))


def _scratch_sizes(
    axes: Sequence[Axis],
    order: Sequence[int],
    kinds: Sequence[int],
    extents: Sequence[int],
    sizes: Sequence[int],
    period: tuple[int, int],
    alone: int,
) -> ScratchSizes:
    """Room for the largest tile: every axis at its widest."""
    box = list(extents)
    boxes = [] if at_once(kinds) else [_elements(box)]
    starts = [_rows(box)]
    for d in order:
        box[d] = sizes[d]
        boxes.append(_elements(box))
    starts.append(_rows(box))
    n_source, n_target = extents[-1], sizes[-1]
    turned = n_source + n_target if TURNED in kinds else 0
    batch = next((b for b in (TURNED_ROWS, TURNED_ROWS // 2) if 8 * b * turned <= CACHE_BYTES), LANES)
    per_target, per_source = period
    pitch = int(padded(max(-(-n_source // per_source), -(-n_target // per_target)))) + 2 * LANES
    return ScratchSizes(
        here=max(boxes[::2]),
        there=max(boxes[1::2], default=0),
        row=max(int(padded(n_source)), int(padded(n_target))),
        phases=(per_target + per_source) * pitch,
        turned=turned * batch,
        width=max(sizes[d] * axes[d].width if axes[d].width <= TAPS_AT_A_TIME else TAPS_AT_A_TIME for d in order),
        phase_taps=(per_target + alone) * axes[-1].width,
        starts=max(starts),
        pitch=pitch,
        batch=batch,
    )
