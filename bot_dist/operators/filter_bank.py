"""One level of a filter bank as an operator, aligned as PyWavelets aligns mode ``periodization``.

Analysis (DWT) of a signal x of even length n into one band:
``c[k] = Σ_j dec[j] · x[2k + L/2 − j]``. Synthesis (IDWT) from one band, the other being zero:
``x[m] = Σ_k rec[m − 2k + L/2 − 1] · c[k]``, L the filters' (even) length and indices extended at the ends. The low-pass
filters give and take the approximation band, the high-pass filters the detail band.

On a symmetric axis (layers, which have an order) the whole samples by which a long filter moves the signal are taken
back: sample k of the coarse signal lies between samples 2k and 2k + 1 of the fine one.
"""

from __future__ import annotations

from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from bot_dist.errors import RecipeError, nearest
from bot_dist.operators.banded import Indices, Operator, Taps, keep

Boundary = Literal["periodic", "symmetric"]

HAAR = frozenset({"haar", "db1", "bior1.1", "rbio1.1"})
"""The names of the wavelet whose filter bank takes averages and differences of two."""


class Filters(NamedTuple):
    """The filters of one wavelet, all of one even length: analysis (``dec``) and synthesis (``rec``), low-pass and
    high-pass."""

    dec_lo: Taps
    dec_hi: Taps
    rec_lo: Taps
    rec_hi: Taps


@cache
def filters(wavelet: str) -> Filters:
    """The filters of a wavelet, by its name in PyWavelets. Raises RecipeError on an unknown one."""
    import pywt

    if wavelet not in pywt.wavelist(kind="discrete"):
        raise RecipeError(f"unknown wavelet {wavelet!r}; {nearest(wavelet, pywt.wavelist(kind='discrete'))}")
    return Filters(*map(np.array, pywt.Wavelet(wavelet).filter_bank))


def is_orthogonal(wavelet: str) -> bool:
    """Whether the synthesis bank of ``wavelet`` is its analysis bank, transposed."""
    import pywt

    return bool(pywt.Wavelet(wavelet).orthogonal)


def analysis(n: int, taps: Taps, boundary: Boundary) -> Operator:
    """The operator from ``n`` (even) indices to ``n / 2`` by one analysis filter (the low-pass one if the boundary is
    symmetric)."""
    length = len(taps)
    reach = length // 2 - np.arange(length)
    shift = _phase(taps, reach - 0.5) if boundary == "symmetric" else 0
    positions = 2 * np.arange(n // 2)[:, None] + reach[None, :] - shift
    rows = Operator(_extend(positions, n, boundary), np.broadcast_to(taps, positions.shape), n)
    return rows.after(keep(n))


def synthesis(n: int, taps: Taps, boundary: Boundary) -> Operator:
    """The operator from ``n`` indices to ``2n`` by one synthesis filter (the low-pass one if the boundary is
    symmetric)."""
    length = len(taps)
    shift = _phase(taps, np.arange(length) - length // 2 + 0.5) if boundary == "symmetric" else 0
    m = np.arange(2 * n)[:, None]
    # x[m] takes the taps j of one parity, those with an integer k = (m + shift + L/2 − 1 − j) / 2.
    parity = (m + shift + length // 2 - 1) % 2
    j = parity + 2 * np.arange(length // 2)[None, :]
    positions = (m + shift + length // 2 - 1 - j) // 2
    return Operator(_extend(positions, n, boundary), taps[j], n).after(keep(n))


def _phase(taps: Taps, offsets: npt.NDArray[np.floating[Any]]) -> int:
    """The whole number of samples by which a filter's centre of gravity is off."""
    return round(float((taps * offsets).sum() / taps.sum()))


def _extend(positions: Indices, n: int, boundary: Boundary) -> Indices:
    """Bring positions outside ``[0, n)`` back: wrapped, or mirrored at the half sample, as often as needed."""
    if boundary == "periodic":
        return positions % n
    folded = positions % (2 * n)
    return np.where(folded < n, folded, 2 * n - 1 - folded)
