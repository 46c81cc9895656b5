"""A shuffled order of any number of samples, of which any place can be asked for, and which takes no memory."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

ROUNDS = 8
"""Rounds of the Feistel network."""


def shuffled(places: NDArray[np.int64], n: int, key: Sequence[int]) -> NDArray[np.int64]:
    """The numbers at ``places`` of a permutation of ``range(n)``, which ``key`` decides.

    A Feistel network over the next power of four, gone through again from where it leaves ``range(n)`` (cycle walking:
    Black and Rogaway, *Ciphers with arbitrary finite domains*, 2002).
    """
    half = max(1, -(-(n - 1).bit_length() // 2))
    keys = np.random.SeedSequence([*key, n]).generate_state(ROUNDS, np.uint64).astype(np.uint64)
    numbers = places.astype(np.uint64)
    outside = np.ones(len(numbers), dtype=bool)
    while outside.any():
        numbers[outside] = _network(numbers[outside], np.uint64(half), keys)
        outside = numbers >= n
    return numbers.astype(np.int64)


def _network(values: NDArray[np.uint64], half: np.uint64, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mask = np.uint64((1 << int(half)) - 1)
    left, right = values >> half, values & mask
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) & mask)
    return (left << half) | right


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))
