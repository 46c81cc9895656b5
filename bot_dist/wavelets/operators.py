"""Operators: the matrix ``A`` of shape ``(n_target, n_source)`` that resamples one axis.

A whole 3-D DWT of which only the approximation band is kept (or given) is one such matrix per axis, so nothing else is
ever computed. Matrices of filter banks are banded: an operator holds, per target index, the source indices of its row
and their taps. They are built in float64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import numpy.typing as npt

from bot_dist.axes import Range
from bot_dist.errors import PlanError
from bot_dist.wavelets.filter_bank import analysis_level, synthesis_level

Boundary = Literal["periodic", "symmetric"]
Policy = Literal["wavelet", "identity"]

Indices = npt.NDArray[np.int64]
Taps = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class OperatorSpec:
    """Everything that determines one operator; small enough to be printed, stored and sent."""

    n_source: int
    n_target: int
    row_sum: float
    """What every row sums to: the gain that this use of the axis asks for."""
    wavelet: str = "haar"
    boundary: Boundary = "periodic"
    policy: Policy = "wavelet"
    """``wavelet``: analysis or synthesis by the filter bank. ``identity``: each target index copies a source index."""
    silent_copies: bool = False
    """With ``identity``: all copies of a source index but the first are zero rows."""

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing but, perhaps, scale."""
        return self.n_source == self.n_target

    @property
    def levels(self) -> int:
        """Levels of the filter bank: negative where the axis grows."""
        return round(math.log2(self.n_source / self.n_target))

    def __str__(self) -> str:
        if self.is_identity:
            return "keep"
        return "identity" if self.policy == "identity" else f"{self.wavelet} ×{self.row_sum:.3g}"


@dataclass(frozen=True, eq=False)
class Operator:
    """A banded matrix: ``A[i, indices[i, j]] += taps[i, j]``; ``indices`` and ``taps`` are ``(n_target, width)``."""

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

    def support(self, target: Range) -> tuple[Range, ...]:
        """The source ranges, ascending, that the target indices need: the block under them and its halo."""
        needed = np.unique(self.indices[target[0] : target[1]])
        breaks = np.flatnonzero(np.diff(needed) > 1)
        starts = needed[np.concatenate(([0], breaks + 1))]
        stops = needed[np.concatenate((breaks, [len(needed) - 1]))] + 1
        return tuple((int(a), int(b)) for a, b in zip(starts, stops, strict=True))

    def restricted(self, target: Range, source: tuple[Range, ...]) -> tuple[Indices, Taps]:
        """Rows of ``target`` with indices into the concatenation of the ``source`` ranges."""
        positions = np.full(self.n_source, -1)
        offset = 0
        for start, stop in source:
            positions[start:stop] = np.arange(offset, offset + stop - start)
            offset += stop - start
        local = positions[self.indices[target[0] : target[1]]]
        assert (local >= 0).all(), "a source range misses part of the support"
        return local, self.taps[target[0] : target[1]]

    def after(self, first: Operator) -> Operator:
        """The product ``self · first``, with equal indices of a row merged."""
        indices = first.indices[self.indices].reshape(self.n_target, -1)
        taps = (self.taps[:, :, None] * first.taps[self.indices]).reshape(self.n_target, -1)
        return Operator(*merge(indices, taps), first.n_source)


def merge(indices: Indices, taps: Taps) -> tuple[Indices, Taps]:
    """Sort each row by index, add taps of equal indices and trim to the widest row; spare places repeat an index
    with tap zero."""
    order = np.argsort(indices, axis=1, kind="stable")
    indices = np.take_along_axis(indices, order, 1)
    taps = np.take_along_axis(taps, order, 1)
    first = np.ones(indices.shape, dtype=bool)
    first[:, 1:] = indices[:, 1:] != indices[:, :-1]
    slot = np.cumsum(first, axis=1) - 1
    width = int(slot.max()) + 1
    merged_indices = np.repeat(indices[:, :1], width, axis=1)
    merged_taps = np.zeros((len(indices), width))
    rows = np.arange(len(indices))[:, None]
    merged_indices[rows, slot] = indices
    np.add.at(merged_taps, (np.broadcast_to(rows, slot.shape), slot), taps)
    return merged_indices, merged_taps


def check_supported(spec: OperatorSpec, what: str) -> None:
    """Raise PlanError, naming the axis by ``what``, when no operator leads from ``n_source`` to ``n_target``."""
    if spec.is_identity:
        return
    if spec.policy == "identity":
        if spec.n_target < spec.n_source:
            raise PlanError(
                f"{what}: depth policy 'identity' only grows, and {spec.n_source} → {spec.n_target} shrinks; "
                f"use depth 'wavelet'"
            )
        return
    large, small = max(spec.n_source, spec.n_target), min(spec.n_source, spec.n_target)
    ratio = large / small
    if large % small or ratio != 2 ** round(math.log2(ratio)):
        shrunk = [str(spec.n_source >> k) for k in range(1, 5) if spec.n_source % (1 << k) == 0]
        grown = [str(spec.n_source << k) for k in range(1, 4)]
        raise PlanError(
            f"{what}: {spec.n_source} → {spec.n_target} is no power of two, and no other ratio is supported yet; "
            f"from {spec.n_source} use {', '.join(shrunk + grown)}"
        )


@lru_cache(maxsize=256)
def build_operator(spec: OperatorSpec) -> Operator:
    """The operator that ``spec`` describes.

    With the orthonormal row sum √(n_source/n_target) and a periodic boundary it is the approximation band of
    ``pywt.wavedec`` (or ``waverec`` with zero details) in mode ``periodization``.
    """
    if spec.is_identity or spec.policy == "identity":
        return _copies(spec)
    operator = Operator(np.arange(spec.n_source)[:, None], np.ones((spec.n_source, 1)), spec.n_source)
    n = spec.n_source
    for _ in range(abs(spec.levels)):
        level = analysis_level if spec.levels > 0 else synthesis_level
        indices, taps = level(n, spec.wavelet, spec.boundary)
        operator = Operator(indices, taps, n).after(operator)
        n = operator.n_target
    return Operator(operator.indices, operator.taps * (spec.row_sum * 2 ** (-spec.levels / 2)), spec.n_source)


def _copies(spec: OperatorSpec) -> Operator:
    indices = np.arange(spec.n_target) * spec.n_source // spec.n_target
    taps = np.full(spec.n_target, spec.row_sum)
    if spec.silent_copies:
        taps[1:][indices[1:] == indices[:-1]] = 0.0
    return Operator(indices[:, None], taps[:, None], spec.n_source)
