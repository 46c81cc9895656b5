"""Cutting modules into tiles: the steps of a plan.

A tile must fit the memory limit. Below that, tiles are small enough that two of them fit (so that one is read or
written while another is transformed), that work can be shared out evenly, and that little is done twice after a
failure. An axis is cut where that costs least: a halo that is read again, or more and smaller files.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from functools import lru_cache

from bot_dist.errors import PlanError
from bot_dist.plan.axis_plan import AxisPlan
from bot_dist.plan.cost import step_peak
from bot_dist.plan.module_plan import ModulePlan
from bot_dist.tensors import chunk_shape
from bot_dist.tensors.axes import ITEMSIZE

STEP_BYTES = 2**26
"""Most bytes of a step's target: so progress shows, and little is done twice after an interruption."""
LANES = 2
"""Steps that an actor has in progress at a time."""
SHARE = 10
"""Least steps (of at least ``LEAST_BYTES``) that an actor's part is cut into, so that parts can be equal."""
LEAST_BYTES = 2**20
DEAR = 2
"""How many times as much tiles may read of the source as those that are no smaller than they must be, for the sake of
overlap and of equal parts."""
MOST_STEPS = 2**20
"""Most steps of a plan."""
REQUEST_BYTES = 2**20
"""The cost of asking a storage for one more file or range, as bytes that could have been moved meanwhile."""


def tiled(modules: Sequence[ModulePlan], memory_limit: int, actors: int) -> tuple[ModulePlan, ...]:
    """The modules with tiles that fit the limit, and the chunks of what is written.

    Raises PlanError when no tile fits, naming the smallest limit that works.
    """
    total = sum(m.source_bytes + math.prod(m.target_shape()) * ITEMSIZE[m.dtype] for m in modules)
    most = max(LEAST_BYTES, total // (actors * SHARE)) if actors > 1 else total
    cut, smallest = [], 0
    for module in modules:
        module = _cut(_whole_rows(module), memory_limit, most)
        if (peak := _peak(module)) > memory_limit:
            smallest = max(smallest, peak)
        cut.append(dataclasses.replace(module, chunk=chunk_shape(module.shard, ITEMSIZE[module.dtype])))
    if smallest:
        raise PlanError(
            f"memory limit of {memory_limit:,} bytes per actor: no tile is small enough; "
            f"the smallest that works is {smallest:,} bytes: transfer.memory_limit={smallest}"
        )
    if (steps := sum(module.n_tiles for module in cut)) > MOST_STEPS:
        raise PlanError(
            f"memory limit of {memory_limit:,} bytes per actor: {actors:,} actors would have {steps:,} steps, wanted "
            f"at most {MOST_STEPS:,}; give a larger limit, or fewer actors"
        )
    return tuple(cut)


def _cut(module: ModulePlan, memory_limit: int, most: int) -> ModulePlan:
    """The module with tiles that fit ``memory_limit``, if there are such, and that are as small as is good (their steps
    move at most ``most`` bytes), unless smaller ones read too much."""
    affordable = math.inf
    while True:
        peak = _peak(module)
        must = peak > memory_limit or _written(module) > STEP_BYTES
        if not must and peak * LANES <= memory_limit and _moved(module) <= most:
            return module
        cut = min(_halves(module), key=_cost, default=None)
        if not must:
            affordable = min(affordable, DEAR * _read(module))
        if cut is None or (not must and _read(cut) > affordable):
            return module
        module = cut


def _whole_rows(module: ModulePlan) -> ModulePlan:
    """The module with steps of whole rows where reading part of one costs all of it, whatever shards they fill."""
    axes = [dataclasses.replace(a, tile=a.n_target) for a in module.axes[module.row_axes :]]
    return dataclasses.replace(module, axes=(*module.axes[: module.row_axes], *axes))


def _peak(module: ModulePlan) -> int:
    """Bytes of tensors that the module's largest step holds at its worst moment."""
    return step_peak(module, tuple((0, a.tile) for a in module.axes), tuple(_widest(a) for a in module.axes))


def _written(module: ModulePlan) -> int:
    """Bytes that the module's largest step writes."""
    return math.prod(a.tile for a in module.axes) * ITEMSIZE[module.dtype]


def _moved(module: ModulePlan) -> int:
    """Bytes that the module's largest step reads and writes."""
    share = math.prod(_widest(a) / a.n_source for a in module.axes[: module.row_axes])
    return round(module.source_bytes * share) + _written(module)


def _read(module: ModulePlan) -> float:
    """Bytes that all steps of the module read."""
    return module.source_bytes * math.prod(_needed(a) / a.n_source for a in module.axes[: module.row_axes])


def _cost(module: ModulePlan) -> float:
    """Bytes that all steps of the module read, and what asking for the parts and writing the files costs besides."""
    within = math.prod(-(-a.n_target // a.shard) for a in module.axes[int(module.layered) :])
    layers = (_needed(module.axes[0]) + module.axes[0].n_target) if module.layered else 2
    return _read(module) + REQUEST_BYTES * layers * within


@lru_cache(maxsize=4096)
def _sums(a: AxisPlan) -> tuple[int, int]:
    sizes = [sum(stop - start for start, stop in a.needed(t)) for t in a.tiles()]
    return sum(sizes), max(sizes)


def _needed(a: AxisPlan) -> int:
    """Source indices that all tiles along an axis read, together."""
    return _sums(a)[0] if a.changes or a.spec is None else a.n_target


def _widest(a: AxisPlan) -> int:
    """Source indices that the tile with the largest support reads."""
    return _sums(a)[1] if a.changes or a.spec is None else a.tile


def _halves(module: ModulePlan) -> list[ModulePlan]:
    """The module with tiles of half the size along an axis, for every axis that can be cut; the outermost first.

    Rows stay whole: the innermost axis is cut only where tensor parallelism does, and no part of a row where reading
    one costs all of it.
    """
    halves = []
    for i, a in enumerate(module.axes[: module.row_axes]):
        if a.spec is not None and a.tile > 1 and (a.cut is not None or i < len(module.axes) - 1):
            cut = dataclasses.replace(a.cut, tiles=a.cut.tiles * 2) if a.cut is not None else None
            tile = cut.tile if cut is not None else -(-a.tile // 2)
            if tile < a.tile:
                axes = (*module.axes[:i], dataclasses.replace(a, tile=tile, cut=cut), *module.axes[i + 1 :])
                halves.append(dataclasses.replace(module, axes=axes))
    return halves
