"""Rows of a tensor in memory, float32 or bfloat16, to and from scratch, which is float32.

Conventions as in ``sums.py``.
"""

from __future__ import annotations

from typing import Any

from numba import njit

from bot_dist.kernels.simd import (
    LANES,
    evens,
    integer,
    load,
    load_first,
    load_half,
    load_half_first,
    odds,
    prefetch,
    put_integer,
    store,
    store_first,
    store_half,
    store_half_first,
    store_half_past_cache,
    store_past_cache,
)


@njit(nogil=True)
def padded(n: int) -> int:
    """The pitch of rows of ``n`` values: whole vectors, and not a multiple of 4 KiB, which would alias in the cache."""
    pitch = (n + LANES - 1) // LANES * LANES
    return pitch + LANES if pitch % 1024 == 0 else pitch


@njit(nogil=True)
def row_starts(strides: Any, needed: Any, begins: Any, counts: Any, starts: int) -> int:
    """Write where the rows of a box start in memory, in elements, to ``starts``: one for every combination of places of
    the dimensions but the innermost, of which dimension d has ``counts[d]``, from ``needed[begins[d]]`` on. Returns how
    many rows there are."""
    put_integer(starts, 0, 0)
    n = 1
    for d in range(len(strides) - 1):
        count = counts[d]
        for r in range(n - 1, -1, -1):
            start = integer(starts, r)
            for i in range(count - 1, -1, -1):
                put_integer(starts, r * count + i, start + needed[begins[d] + i] * strides[d])
        n *= count
    return n


@njit(nogil=True)
def fetch(source: int, half: bool, at: int, target: int, n: int, ahead: int) -> None:
    """Copy ``n`` values of the source, from element ``at`` on, into scratch that has room for whole vectors; asks for
    those from element ``ahead`` on to be brought into the cache. ``half``: the source is bfloat16."""
    whole = n - n % LANES
    if half:
        for i in range(0, whole, LANES):
            prefetch(source + 2 * (ahead + i))
            store(target, i, load_half(source, at + i))
        store(target, whole, load_half_first(source, at + whole, n - whole))
    else:
        for i in range(0, whole, LANES):
            prefetch(source + 4 * (ahead + i))
            store(target, i, load(source, at + i))
        store(target, whole, load_first(source, at + whole, n - whole))


@njit(nogil=True)
def fetch_split(source: int, half: bool, at: int, target: int, pitch: int, n: int, ahead: int) -> None:
    """Copy as ``fetch`` does, and split the values in two phases: the even ones to ``target``, the odd ones ``pitch``
    elements behind."""
    whole = n - n % (2 * LANES)
    if half:
        for i in range(0, whole, 2 * LANES):
            prefetch(source + 2 * (ahead + i))
            a, b = load_half(source, at + i), load_half(source, at + i + LANES)
            store(target, i // 2, evens(a, b))
            store(target, pitch + i // 2, odds(a, b))
        a = load_half_first(source, at + whole, n - whole)
        b = load_half_first(source, at + whole + LANES, n - whole - LANES)
    else:
        for i in range(0, whole, 2 * LANES):
            prefetch(source + 4 * (ahead + i))
            prefetch(source + 4 * (ahead + i + LANES))
            a, b = load(source, at + i), load(source, at + i + LANES)
            store(target, i // 2, evens(a, b))
            store(target, pitch + i // 2, odds(a, b))
        a = load_first(source, at + whole, n - whole)
        b = load_first(source, at + whole + LANES, n - whole - LANES)
    store(target, whole // 2, evens(a, b))
    store(target, pitch + whole // 2, odds(a, b))


@njit(nogil=True)
def deliver(source: int, target: int, half: bool, past_cache: bool, to: int, n: int) -> int:
    """Write ``n`` values of scratch into the target, from its element ``to`` on; returns how many finite ones became
    infinite. ``half``: the target is bfloat16; ``past_cache``: write past the cache where vectors are aligned."""
    whole, overflowed = n - n % LANES, 0
    if half:
        if past_cache and to % LANES == 0:
            for i in range(0, whole, LANES):
                overflowed += store_half_past_cache(target, to + i, load(source, i))
        else:
            for i in range(0, whole, LANES):
                overflowed += store_half(target, to + i, load(source, i))
        if whole < n:
            overflowed += store_half_first(target, to + whole, load(source, whole), n - whole)
        return overflowed
    if past_cache and to % LANES == 0:
        for i in range(0, whole, LANES):
            store_past_cache(target, to + i, load(source, i))
    else:
        for i in range(0, whole, LANES):
            store(target, to + i, load(source, i))
    if whole < n:
        store_first(target, to + whole, load(source, whole), n - whole)
    return overflowed
