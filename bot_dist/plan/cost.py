"""The cost of a step: bytes moved, and bytes held."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from bot_dist.tensors import PIECE_BYTES, Box, box_size
from bot_dist.tensors.axes import ITEMSIZE

if TYPE_CHECKING:
    from bot_dist.operators import Fitted, OperatorSpec
    from bot_dist.plan.module_plan import ModulePlan
    from bot_dist.plan.plan import Step

FLOAT32 = ITEMSIZE["float32"]

REQUESTS = 4
"""Files or ranges that an actor asks a storage for at a time."""
OPERATOR_BYTES = 2**24
"""Bytes of a fitted matrix, in float64, that are held at a time (at least one row)."""


def step_bytes(module: ModulePlan, step: Step) -> tuple[int, int]:
    """Bytes that a step reads from the source's storage (halo included, and whole rows where it can't read parts),
    and writes to the target's."""
    shape = step.source_shape()[: module.row_axes]
    share = math.prod(shape) / math.prod(module.source_shape()[: module.row_axes])
    return round(module.source_bytes * share), box_size(step.target) * ITEMSIZE[module.dtype]


def operator_rows(spec: OperatorSpec) -> int:
    """How many rows of a fitted operator's matrix are held at a time: of an operator that undoes one half as many, for
    they take more to make."""
    return max(1, OPERATOR_BYTES // ((16 if spec.restores else 8) * spec.n_source))


def dual_bytes(spec: Fitted, layers: int) -> int:
    """Bytes on storage of the matrices that are kept beside a fitted operator to undo it, over ``layers`` source
    layers; indices that are kept are next to nothing, and not counted."""
    arrays = spec.beside(undone=True, moments=False).values()
    matrices = sum(math.prod(sizes.values()) for sizes in arrays if sizes["source"] > 1)
    return FLOAT32 * matrices * (layers if spec.per_layer else 1)


def step_peak(module: ModulePlan, target: Box, source_shape: tuple[int, ...]) -> int:
    """Bytes of tensors that a step holds at its worst moment.

    Reading: the source box, and per request two pieces (as stored, and decoded) or layers of it, if that is less.
    Transforming: the source box, what each operator makes of it that is applied by itself, a block of its matrix
    (as read, and as taps), what all others make before those that restore, a centred copy; and the target, in float32
    where anything but operators acts on it, then with what is drawn. Writing: the result, and per request a layer of it
    twice (encoded, and being sent). All the time: operators of moments, which may be dense where those of weights are
    banded, with the taps that a tile takes of them.
    """
    source = math.prod(source_shape) * (2 if module.source_dtype == "bfloat16" else FLOAT32)
    shape = list(source_shape)
    layers = shape[0] if module.layered else 1
    peak = source + 2 * min(REQUESTS, layers) * min(PIECE_BYTES, source // max(1, layers))
    held = source
    alone = [i for i in module.order if module.axes[i].alone]
    together = [i for i in module.order if i not in alone]
    if together and any(module.axes[i].restores for i in alone):
        for i in together:
            shape[i] = target[i][1] - target[i][0]
        held += FLOAT32 * math.prod(shape)
    for i in alone:
        a = module.axes[i]
        assert a.spec is not None, a
        shape[i : i + a.spans] = [stop - start for start, stop in target[i : i + a.spans]]
        rows, made = math.prod(shape[i : i + a.spans]), FLOAT32 * math.prod(shape)
        held += made
        if a.restores:  # a block of the dual's rows makes a part of all target indices
            block = 3 * 8 * a.spec.n_source * (1 + min(operator_rows(a.spec), a.spec.n_source))
            peak = max(peak, held + block + made // (shape[0] if a.spec.of_weights.per_layer else 1))
        else:
            block = min(operator_rows(a.spec), rows)
            peak = max(peak, held + block * (2 * 8 * a.spec.n_source + made // max(1, rows)))
    if any(a.centred for a in module.axes):
        held += FLOAT32 * math.prod(shape)
    size = box_size(target)
    written = size * ITEMSIZE[module.dtype]
    if module.random or module.scale != 1 or module.shift:
        drawn = size * (4 if module.noise else 1) * FLOAT32 + size if module.random else 0
        peak = max(peak, held + size * FLOAT32 + max(drawn, written))
    elif module.dtype in ("float32", "bfloat16"):
        peak = max(peak, held + written)
    else:  # made in float32, and cast
        peak = max(peak, held + size * FLOAT32 + written)
    layers = target[0][1] - target[0][0] if module.layered else 1
    peak = int(max(peak, written * (1 + 2 * min(REQUESTS, layers) / max(1, layers))))
    return peak + module.operator_bytes
