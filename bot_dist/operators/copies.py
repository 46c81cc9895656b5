"""Operators that take values as they are: copies, selections, untouched units, factors per index."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from bot_dist.operators.banded import Indices, Operator, Taps
from bot_dist.operators.filter_bank import HAAR
from bot_dist.operators.spec import OperatorSpec


def origins(n_source: int, n_target: int) -> Indices:
    """The source index that each target index copies, ``(n_target,)``: spread evenly, in order."""
    return np.arange(n_target) * n_source // n_target


def counts(n_source: int, n_target: int) -> Indices:
    """How often each source index is copied, ``(n_source,)``."""
    return np.bincount(origins(n_source, n_target), minlength=n_source)


def spread(loudness: npt.NDArray[np.float64], n_target: int) -> Indices:
    """The source index that each target index copies, ``(n_target,)``, ascending: all are there, and one after another
    a copy goes to the index whose copies are loudest, each having an equal part of its ``loudness`` ``(n_source,)``
    (D'Hondt's rule)."""
    assert n_target >= len(loudness), (n_target, loudness.shape)
    times = np.ones(len(loudness), dtype=np.int64)
    heap = [(-float(value), i) for i, value in enumerate(loudness)]
    heapq.heapify(heap)
    for _ in range(n_target - len(loudness)):
        i = heap[0][1]
        times[i] += 1
        heapq.heapreplace(heap, (-float(loudness[i]) / times[i], i))
    return np.repeat(np.arange(len(loudness)), times)


def copies_only(spec: OperatorSpec) -> bool:
    """Whether every target index takes one value, that of its origin (perhaps scaled), and nothing else."""
    if spec.policy == "copy":
        return spec.speaks == "every"
    return spec.policy == "resample" and spec.wavelet in HAAR and spec.n_target % spec.n_source == 0


def copying(spec: OperatorSpec) -> Operator:
    """Target index i takes its origin, divided by a power of the number of its copies; a selection where it shrinks."""
    indices = origins(spec.n_source, spec.n_target)
    copies = counts(spec.n_source, spec.n_target)[indices].astype(np.float64)
    taps: Taps = spec.row_sum / copies**spec.split
    run_starts = np.diff(indices, prepend=-1) > 0
    if spec.speaks == "first":
        taps[~run_starts] = 0.0
    elif spec.speaks == "last":
        taps[:-1][~run_starts[1:]] = 0.0
    return Operator(indices[:, None], taps[:, None], spec.n_source)


def lazy(spec: OperatorSpec) -> Operator:
    """``row_sum · [1; 0]``."""
    old = np.arange(spec.n_target) < spec.n_source
    indices = np.where(old, np.arange(spec.n_target), origins(spec.n_source, spec.n_target))
    return Operator(indices[:, None], np.where(old, spec.row_sum, 0.0)[:, None], spec.n_source)


def stack(spec: OperatorSpec) -> Operator:
    """The whole source again and again."""
    indices = np.arange(spec.n_target)[:, None] % spec.n_source
    return Operator(indices, np.full(indices.shape, spec.row_sum), spec.n_source)


def select(spec: OperatorSpec) -> Operator:
    """The indices that are named, divided by a power of how often each is."""
    assert len(spec.indices) == spec.n_target, spec
    indices = np.array(spec.indices)
    taps: Taps = spec.row_sum / np.bincount(indices)[indices].astype(np.float64) ** spec.split
    return Operator(indices[:, None], taps[:, None], spec.n_source)


def merge(spec: OperatorSpec) -> Operator:
    """Sums of neighbours, from one named index to before the next, over a power of their number."""
    starts = np.array(spec.indices)
    lengths = np.diff(starts, append=spec.n_source)
    assert starts[0] == 0, spec
    assert (lengths > 0).all(), spec
    place = np.arange(lengths.max())
    indices = starts[:, None] + np.minimum(place, lengths[:, None] - 1)
    taps = np.where(place < lengths[:, None], spec.row_sum / lengths[:, None].astype(np.float64) ** spec.split, 0.0)
    return Operator(indices, taps, spec.n_source)


def nothing(spec: OperatorSpec) -> Operator:
    """Rows of zeros."""
    return Operator(np.zeros((spec.n_target, 1), dtype=np.int64), np.zeros((spec.n_target, 1)), spec.n_source)


def diagonal(spec: OperatorSpec) -> Operator:
    """A factor per index."""
    assert len(spec.diagonal) == spec.n_source == spec.n_target, spec
    return Operator(np.arange(spec.n_source)[:, None], np.array(spec.diagonal)[:, None], spec.n_source)
