"""Lifting (Sweldens 1996): units are split into kept and dropped, P predicts the dropped ones, U updates the kept ones.

For signals ``x = (kept, dropped)``, the operators of an axis that shrinks are, columns in that order,

    A_write = [1 − U·P, U]        A_read = [1, Pᵀ]

``P = 0, U = 0`` is the lazy wavelet: weight selection. ``P = 1, U = ½`` on pairs is Haar. ``U = 0`` and P by ridge least
squares on a calibration text is the best linear prediction: what reads the axis, reads what it would have read, as far
as the kept units tell. :func:`reading` is the same for the leading coordinates of a rotated basis.

A moment is the second moment ``E[x xᵀ]`` of a signal, not centred; a ridge is relative to the mean square of the
signals that predict.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from bot_dist.errors import CalibrationError
from bot_dist.wavelets.bases import Array, checked

Indices = npt.NDArray[np.int64]


def split(importance: Array, n_target: int) -> tuple[Indices, Indices]:
    """Indices of the ``n_target`` most important units, and those of the others; both ascending.

    Of equally important units the first are kept. Raises CalibrationError if an importance is not finite.
    """
    assert 0 < n_target <= len(importance), (n_target, importance.shape)
    if not np.isfinite(importance).all():
        raise CalibrationError(
            f"the importance of unit {np.flatnonzero(~np.isfinite(importance))[0]} of {len(importance)} is not finite; "
            "the source model overflows on the calibration text: calibrate in float32, or check the source's weights"
        )
    order = np.argsort(-importance, kind="stable")
    return np.sort(order[:n_target]), np.sort(order[n_target:])


def expanded(indices: Indices, inner: int) -> Indices:
    """The coordinates of a composite axis (``heads × head_dim``) that belong to ``indices`` of its outer axis.

    ``(len(indices) · inner,)``; each index stands for ``inner`` consecutive coordinates.
    """
    return (np.asarray(indices, dtype=np.int64)[:, None] * inner + np.arange(inner)).reshape(-1)


def regression(cross: Array, moment: Array, ridge: float) -> Array:
    """The matrix B ``(m, n)`` of the least mean square of ``y − B·x`` plus ``ridge · mean(E[x²]) · |B|²``.

    ``cross`` is ``E[y xᵀ]``, ``(m, n)``; ``moment`` is ``E[x xᵀ]``, ``(n, n)``.
    Raises CalibrationError if the moment is not finite, not symmetric, or singular with this ridge.
    """
    assert ridge >= 0, ridge
    assert cross.shape[1:] == moment.shape[1:], (cross.shape, moment.shape)
    checked(moment)
    n = len(moment)
    damped = (moment + moment.T) / 2 + ridge * np.mean(np.diag(moment)) * np.eye(n)
    factor, failed = torch.linalg.cholesky_ex(torch.from_numpy(damped))
    pivots = factor.diagonal().square()
    if failed or pivots.min() <= n * np.finfo(np.float64).eps * pivots.max():
        raise CalibrationError(
            f"the second moment of the {n} signals to predict from is singular at ridge {ridge:g}; calibrate on at "
            f"least {n} tokens, or raise the ridge (1e-3 is usual)"
        )
    return torch.cholesky_solve(torch.from_numpy(np.ascontiguousarray(cross.T)), factor).numpy().T


def predictor(moment: Array, kept: Indices, dropped: Indices, ridge: float) -> Array:
    """P of shape ``(n_dropped, n_kept)`` with ``dropped ≈ P · kept`` on the text of the ``moment`` ``(n, n)``.

    Raises CalibrationError as :func:`regression` does.
    """
    checked(moment)
    return regression(moment[np.ix_(dropped, kept)], moment[np.ix_(kept, kept)], ridge)


def lifted(n: int, kept: Indices, dropped: Indices, P: Array, U: Array | None = None) -> tuple[Array, Array]:  # noqa: N803
    """``A_write`` and ``A_read``, each ``(n_kept, n)``, columns in the original order of the ``n`` units.

    ``P`` is ``(n_dropped, n_kept)``; ``U`` ``(n_kept, n_dropped)``, none for 0.
    """
    assert np.array_equal(np.sort(np.concatenate([kept, dropped])), np.arange(n)), "kept and dropped are no split"
    write, read = np.zeros((len(kept), n)), np.zeros((len(kept), n))
    write[:, kept] = read[:, kept] = np.eye(len(kept))
    read[:, dropped] = P.T
    if U is not None:
        write[:, kept] -= U @ P
        write[:, dropped] = U
    return write, read


def reading(moment: Array, isometry: Array, ridge: float) -> Array:
    """``A_read`` ``(n_target, n)`` of what is left of a signal after ``isometry`` Q ``(n_target, n)``: ``x ≈ A_readᵀ·Q·x``.

    It is Q and, for the coordinates that Q drops, their prediction from the kept ones:
    ``A_readᵀ = Qᵀ + (1 − QᵀQ)·C·Qᵀ · (Q·C·Qᵀ + ridge)⁻¹``, C the ``moment`` ``(n, n)`` of the signal that is read. One
    basis serves a whole residual stream, and every map that reads the stream has its own moment.
    Raises CalibrationError as :func:`regression` does.
    """
    checked(moment)
    seen = isometry @ moment
    kept = seen @ isometry.T
    return isometry + regression(seen.T - isometry.T @ kept, (kept + kept.T) / 2, ridge).T
