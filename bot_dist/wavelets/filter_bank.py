"""One level of a filter bank as rows of indices and taps, aligned as PyWavelets aligns mode ``periodization``.

Analysis (DWT, approximation band only) of a signal x of even length n:
``cA[k] = Σ_j dec_lo[j] · x[2k + L/2 − j]``. Synthesis (IDWT with zero details):
``x[m] = Σ_k rec_lo[m − 2k + L/2 − 1] · cA[k]``, L the filters' (even) length and indices extended at the ends.

On a symmetric axis (layers, which have an order) the whole samples by which a long filter moves the signal are taken
back: sample k of the coarse signal lies between samples 2k and 2k + 1 of the fine one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from bot_dist.errors import RecipeError, nearest

Rows = tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]
"""Indices and taps, both ``(n_target, width)``."""


@cache
def filters(wavelet: str) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Low-pass analysis and synthesis filters. Raises RecipeError on an unknown wavelet."""
    import pywt

    if wavelet not in pywt.wavelist(kind="discrete"):
        raise RecipeError(f"unknown wavelet {wavelet!r}; {nearest(wavelet, pywt.wavelist(kind='discrete'))}")
    bank = pywt.Wavelet(wavelet)
    return np.array(bank.dec_lo), np.array(bank.rec_lo)


def analysis_level(n: int, wavelet: str, boundary: str) -> Rows:
    """From ``n`` (even) to ``n / 2``."""
    low, _ = filters(wavelet)
    length = len(low)
    reach = length // 2 - np.arange(length)
    shift = _phase(low, reach - 0.5) if boundary == "symmetric" else 0
    positions = 2 * np.arange(n // 2)[:, None] + reach[None, :] - shift
    return _extend(positions, n, boundary), np.broadcast_to(low, positions.shape)


def synthesis_level(n: int, wavelet: str, boundary: str) -> Rows:
    """From ``n`` to ``2n``."""
    _, low = filters(wavelet)
    length = len(low)
    shift = _phase(low, np.arange(length) - length // 2 + 0.5) if boundary == "symmetric" else 0
    m = np.arange(2 * n)[:, None]
    # x[m] takes the taps j of one parity, those with an integer k = (m + shift + L/2 − 1 − j) / 2.
    phase = (m + shift + length // 2 - 1) % 2
    j = phase + 2 * np.arange(length // 2)[None, :]
    positions = (m + shift + length // 2 - 1 - j) // 2
    return _extend(positions, n, boundary), low[j]


def _phase(taps: npt.NDArray[np.float64], offsets: npt.NDArray[np.floating[Any]]) -> int:
    """The whole number of samples by which a filter's centre of gravity is off, for the layer axis."""
    return round(float((taps * offsets).sum() / taps.sum()))


def _extend(positions: npt.NDArray[np.int64], n: int, boundary: str) -> npt.NDArray[np.int64]:
    """Bring positions outside ``[0, n)`` back: wrapped, or mirrored at the half sample, as often as needed."""
    if boundary == "periodic":
        return positions % n
    folded = positions % (2 * n)
    return np.where(folded < n, folded, 2 * n - 1 - folded)
