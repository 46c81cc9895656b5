"""Operators: the matrix ``A`` of shape ``(n_target, n_source)`` that resamples one axis.

A whole 3-D DWT of which only the approximation band is kept (or given) is one such matrix per axis, so nothing else is
ever computed. Matrices of filter banks are banded: an operator holds, per target index, the source indices of its row
and their taps. They are built in float64.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from bot_dist.tensors.axes import Range

Indices = npt.NDArray[np.int64]
Taps = npt.NDArray[np.float64]

BLOCK = 2**21
"""Elements of each array that a product of operators holds at a time."""


@dataclass(frozen=True, eq=False)
class Operator:
    """A banded matrix: ``A[i, indices[i, j]] += taps[i, j]``; ``indices`` and ``taps`` are ``(n_target, width)``.

    Rows with fewer taps than the widest repeat one of their indices, with tap zero.
    """

    indices: Indices
    taps: Taps
    n_source: int

    @property
    def n_target(self) -> int:
        return len(self.indices)

    def dense(self) -> Taps:
        """The matrix, ``(n_target, n_source)``."""
        matrix = np.zeros((self.n_target, self.n_source))
        np.add.at(matrix, (np.arange(self.n_target)[:, None], self.indices), self.taps)
        return matrix

    def _distinct(self, target: Range) -> Indices:
        """Indices of the rows ``target``, ``(rows, width)``; one row stands for all where they share it."""
        return self.indices[target[0] : target[0] + 1 if self.indices.strides[0] == 0 else target[1]]

    def support(self, target: Range) -> tuple[Range, ...]:
        """The source ranges, ascending, that the target indices need: the block under them and its halo."""
        needed = np.zeros(self.n_source + 2, dtype=np.int8)
        needed[self._distinct(target) + 1] = 1
        edges = np.flatnonzero(np.diff(needed))
        return tuple((int(start), int(stop)) for start, stop in edges.reshape(-1, 2))

    def restricted(self, target: Range, source: tuple[Range, ...]) -> tuple[Indices, Taps]:
        """Indices and taps, both ``(rows, width)``, of the rows ``target``; the indices count within the concatenation
        of the ``source`` ranges, which must cover the rows' support."""
        positions = np.full(self.n_source, -1)
        offset = 0
        for start, stop in source:
            positions[start:stop] = np.arange(offset, offset + stop - start)
            offset += stop - start
        local = positions[self._distinct(target)]
        assert (local >= 0).all(), "a source range misses part of the support"
        taps = self.taps[target[0] : target[1]]
        return np.broadcast_to(local, taps.shape), taps

    def scaled(self, factor: float) -> Operator:
        return Operator(self.indices, self.taps * factor, self.n_source)

    def after(self, first: Operator) -> Operator:
        """The product ``self · first``, with equal indices of a row merged."""
        assert self.n_source == first.n_target, (self.n_source, first.n_target)
        rows = max(1, BLOCK // (self.indices.shape[1] * first.indices.shape[1]))
        blocks = []
        for start in range(0, self.n_target, rows):
            outer, outer_taps = self.indices[start : start + rows], self.taps[start : start + rows]
            indices = first.indices[outer].reshape(len(outer), -1)
            taps = (outer_taps[:, :, None] * first.taps[outer]).reshape(len(outer), -1)
            blocks += _merged(indices, taps, first.n_source)
        return below(blocks)


def keep(n: int) -> Operator:
    """The identity on ``n`` indices."""
    return Operator(np.arange(n)[:, None], np.ones((n, 1)), n)


def from_dense(matrix: Taps) -> Operator:
    """The operator of a matrix ``(n_target, n_source)`` with few zeros; its indices take no memory."""
    return Operator(np.broadcast_to(np.arange(matrix.shape[1]), matrix.shape), matrix, matrix.shape[1])


def below(operators: Sequence[Operator]) -> Operator:
    """One operator of several on the same source, their targets one after the other."""
    width = max(operator.indices.shape[1] for operator in operators)
    indices = np.empty((sum(operator.n_target for operator in operators), width), dtype=np.int64)
    taps = np.zeros(indices.shape)
    start = 0
    for operator in operators:
        stop, own = start + operator.n_target, operator.indices.shape[1]
        indices[start:stop, :own] = operator.indices
        indices[start:stop, own:] = operator.indices[:, :1]
        taps[start:stop, :own] = operator.taps
        start = stop
    return Operator(indices, taps, operators[0].n_source)


def beside(operators: Sequence[Operator]) -> Operator:
    """One operator of several to the same target, their sources one after the other; what they give is added."""
    offsets = np.cumsum([0, *(operator.n_source for operator in operators)])
    indices = [operator.indices + offset for operator, offset in zip(operators, offsets[:-1], strict=True)]
    return Operator(
        np.concatenate(indices, axis=1), np.concatenate([o.taps for o in operators], axis=1), int(offsets[-1])
    )


def _merged(indices: Indices, taps: Taps, n_source: int) -> list[Operator]:
    """Consecutive rows with taps of equal indices added, and those left out that are zero.

    The taps of a row are summed in a window of the source, which may wrap around its end.
    """
    first = indices[:, :1]
    place = (indices - first + n_source // 2) % n_source
    start = place.min(axis=1, keepdims=True)
    place -= start
    rows, window = len(indices), int(place.max()) + 1
    if rows > 1 and rows * window > 4 * BLOCK:
        half = rows // 2
        return _merged(indices[:half], taps[:half], n_source) + _merged(indices[half:], taps[half:], n_source)
    place += np.arange(rows)[:, None] * window
    sums = np.bincount(place.ravel(), taps.ravel(), rows * window).reshape(rows, window)
    row, column = np.nonzero(sums)
    counts = np.bincount(row, minlength=rows)
    slot = np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)
    width = max(1, int(counts.max()))
    kept_indices, kept_taps = np.repeat(first, width, axis=1), np.zeros((rows, width))
    kept_indices[row, slot] = (first[row, 0] + start[row, 0] - n_source // 2 + column) % n_source
    kept_taps[row, slot] = sums[row, column]
    spare = np.arange(width) >= counts[:, None]
    return [Operator(np.where(spare, kept_indices[:, :1], kept_indices), kept_taps, n_source)]
