"""Which source index each target index of an axis stems from."""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

from bot_dist.operators.banded import Indices


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
