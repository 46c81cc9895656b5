"""Bases fitted to a signal: the Karhunen–Loève transform of the residual width.

The approximation band of a fitted basis is its leading coordinates, those of most energy. Where a function can't see a
rotation (a residual width under RMSNorm, once the norms' weights are folded into the maps that read them), the
isometry ``Q`` of shape ``(n_target, n)`` writes ``√(n_target/n) · Q``, and ``√(n/n_target) · Q`` or a fitted
:func:`bot_dist.operators.lifting.reading` reads.

A moment is the second moment ``E[x xᵀ]`` of a signal of n coordinates, not centred: ``(n, n)``, symmetric, float64.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from bot_dist.errors import CalibrationError

Array = npt.NDArray[np.float64]

SYMMETRY = 1e-6
"""How far a moment may be from its transpose, relative to its largest value (sums in float32 differ by about 1e-7)."""

TIE = 1 - 1e-6
"""Components within this factor of a vector's largest count as equal, so that rounding does not choose its sign."""


@dataclass(frozen=True, eq=False)
class Basis:
    """An orthonormal basis, most energy first."""

    vectors: Array
    """The vectors of the basis, one per row: ``(n, n)``."""
    energies: Array
    """The mean square of the signal along each vector, ``(n,)``: descending, none negative."""


def klt(moment: Array) -> Basis:
    """The Karhunen–Loève basis of a moment ``(n, n)``; the largest component of every vector is positive.

    Raises CalibrationError if the moment is not finite, or not symmetric.
    """
    checked(moment)
    energies, columns = torch.linalg.eigh(torch.from_numpy((moment + moment.T) / 2))
    return Basis(_signed(columns.numpy().T[::-1]), np.maximum(energies.numpy()[::-1], 0.0))


def isometry(basis: Basis, n_target: int) -> Array:
    """The leading rows of a basis, ``(n_target, n)``: Q with ``Q · Qᵀ = 1``."""
    assert 0 < n_target <= len(basis.vectors), (n_target, basis.vectors.shape)
    return basis.vectors[:n_target]


def isometry_centred(moment: Array, n_target: int) -> Array:
    """The two-sided basis of LayerNorm, ``(n_target, n)``: ``Q = E · V_{k−1}ᵀ``, k = n_target.

    V holds the leading vectors inside the complement of ones of the source, E an orthonormal basis of the complement of
    ones of the target. A centred signal stays centred and ``Q · Qᵀ`` is the target's centring, ``1 − 11ᵀ/k``.
    Raises CalibrationError if the moment is not finite, or not symmetric.
    """
    checked(moment)
    n = len(moment)
    assert 1 < n_target <= n, (n_target, n)
    inside = _complement_of_ones(n)
    leading = _signed(klt(inside.T @ moment @ inside).vectors[: n_target - 1] @ inside.T)
    centred: Array = _complement_of_ones(n_target) @ leading
    return centred


def checked(moment: Array) -> None:
    """Raise CalibrationError if a moment ``(n, n)`` is not finite, or not symmetric."""
    assert moment.ndim == 2, moment.shape
    assert moment.shape[0] == moment.shape[1], moment.shape
    if not np.isfinite(moment).all():
        bad = np.flatnonzero(~np.isfinite(moment).all(axis=0))
        raise CalibrationError(
            f"the second moment of a signal of {len(moment)} coordinates is not finite at {len(bad)} of them (the "
            f"first: {bad[0]}); the source model overflows on the calibration text: calibrate in float32, or check the "
            "source's weights"
        )
    if np.abs(moment - moment.T).max() > SYMMETRY * np.abs(moment).max():
        raise CalibrationError(
            f"the second moment of a signal of {len(moment)} coordinates is not symmetric; its statistics are damaged: "
            "calibrate again"
        )


def _complement_of_ones(n: int) -> Array:
    """Orthonormal columns that each sum to 0, ``(n, n − 1)``: the cosines of the DCT-II but the constant one."""
    angles = np.pi / n * (np.arange(n)[:, None] + 0.5) * np.arange(1, n)
    cosines: Array = np.sqrt(2 / n) * np.cos(angles)
    return cosines


def _signed(vectors: Array) -> Array:
    """The vectors, one per row, with the signs that make the first of their largest components positive."""
    sizes = np.abs(vectors)
    first = np.argmax(sizes >= TIE * sizes.max(axis=1, keepdims=True), axis=1)
    signs = np.where(vectors[np.arange(len(vectors)), first] < 0, -1.0, 1.0)
    return np.ascontiguousarray(vectors * signs[:, None])
