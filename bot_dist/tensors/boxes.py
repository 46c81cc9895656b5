"""Box arithmetic: index ranges in a global tensor. Pure integers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from bot_dist.tensors.axes import Range

Box = tuple[Range, ...]
"""A part of a tensor: one range of indices per axis."""


def whole(shape: Sequence[int]) -> Box:
    """The box that is the whole tensor."""
    return tuple((0, n) for n in shape)


def box_shape(box: Box) -> tuple[int, ...]:
    """The number of indices along each axis of a box."""
    return tuple(stop - start for start, stop in box)


def box_size(box: Box) -> int:
    """The number of elements in a box."""
    return math.prod(stop - start for start, stop in box)


def grid(box: Box, tile: Sequence[int]) -> Iterator[Box]:
    """The cells of the regular grid of pitch ``tile`` (anchored at the origin) that meet ``box``, clipped to it,
    in row-major order."""
    ranges = [
        [
            (max(start, i * t), min(stop, (i + 1) * t))
            for i in range(start // t, -(-stop // t) if stop > start else start // t)
        ]
        for (start, stop), t in zip(box, tile, strict=True)
    ]
    yield from itertools.product(*ranges)


def flat_boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[Box]:
    """Cut the flat range ``[start, stop)`` of a row-major tensor into boxes, in flat order.

    At most ``2·ndim − 1`` boxes; their sizes add up to ``stop − start``.
    """
    if start >= stop:
        return
    if not shape:
        yield ()
        return
    row = math.prod(shape[1:])
    first, last = start // row, -(-stop // row)

    def inside(i: int, low: int, high: int) -> Iterator[Box]:
        for box in flat_boxes(shape[1:], low, high):
            yield ((i, i + 1), *box)

    if last - first == 1:
        if stop - start == row:
            yield ((first, last), *whole(shape[1:]))
        else:
            yield from inside(first, start - first * row, stop - first * row)
        return
    head = first if start == first * row else first + 1
    tail = last if stop == last * row else last - 1
    if head > first:
        yield from inside(first, start - first * row, row)
    if tail > head:
        yield ((head, tail), *whole(shape[1:]))
    if tail < last:
        yield from inside(tail, 0, stop - tail * row)


def runs(sizes: Sequence[int], box: Box) -> Iterator[Range]:
    """The maximal runs of row-major flat indices that a box covers, in order."""
    cut = max((i for i, size in enumerate(sizes) if box[i] != (0, size)), default=None)
    if cut is None:
        yield 0, math.prod(sizes)
        return
    stride = math.prod(sizes[cut + 1 :])
    low, high = box[cut]
    for indices in itertools.product(*(range(*r) for r in box[:cut])):
        base = 0
        for index, size in zip(indices, sizes[:cut], strict=True):
            base = base * size + index
        yield (base * sizes[cut] + low) * stride, (base * sizes[cut] + high) * stride


def even_range(n: int, parts: int, i: int) -> Range:
    """Part ``i`` of ``n`` indices cut into ``parts`` runs as equal as can be; the first ones have one more."""
    each, more = divmod(n, parts)
    start = i * each + min(i, more)
    return start, start + each + (i < more)
