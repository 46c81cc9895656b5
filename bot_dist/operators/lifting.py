"""Lifting (Sweldens 1996): units are split into kept and dropped, P predicts the dropped ones, U updates the kept ones.

For signals ``x = (kept, dropped)``, the operators of an axis that shrinks are, columns in that order,

    A_write = [1 − U·P, U]        A_read = [1, Pᵀ]

``P = 0, U = 0`` is the lazy wavelet: weight selection. ``P = 1, U = ½`` on pairs is Haar. ``U = 0`` and P by ridge
least squares on a calibration text is the best linear prediction: what reads the axis, reads what it would have read,
as far as the kept units tell. :func:`reading` is the same for the leading coordinates of a rotated basis.

A moment is the second moment ``E[x xᵀ]`` of a signal, not centred; a ridge is relative to the mean square of the
signals that predict.
"""

from __future__ import annotations

import math
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from bot_dist.errors import CalibrationError
from bot_dist.operators.klt import Array, checked

Indices = npt.NDArray[np.int64]

TOGETHER = 64
"""Units that are dropped before the inverse of the others is brought up to date."""


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


def most_telling(moment: Array, weight: Array, ridge: float, n_target: int, inner: int = 1, runs: int = 1) -> Indices:
    """The ``n_target`` units that are left when the cheapest is dropped again and again; ascending.

    A unit's cost is the mean square error of ``W·x`` without it, when the others take over its part as well as they
    can: ``tr(W_g · ([C⁻¹]_gg)⁻¹ · W_gᵀ)`` for its coordinates g, C and W being what they are after those dropped before
    (Optimal Brain Surgeon, Hassibi & Stork 1993). A unit that others predict well is cheap, however loud it is; of two
    that say the same, one is.

    ``moment`` C is ``(n, n)``; ``weight`` W, which reads the signal, ``(m, n)``; a unit is ``inner`` consecutive
    coordinates; each of ``runs`` equal runs of units keeps as many. Raises CalibrationError as :func:`regression` does.
    """
    units = len(moment) // inner
    inverse = torch.cholesky_inverse(_factor(moment, ridge))
    columns = torch.from_numpy(np.ascontiguousarray(weight.T))
    left = torch.ones(runs, units // runs, dtype=torch.bool)
    while (more := int(left.sum()) - n_target) > 0:
        full = left.sum(1, keepdim=True) * runs == n_target
        costs = _costs(inverse, columns, inner).masked_fill((full | ~left).flatten(), math.inf)
        cheapest = costs.argmin()[None]
        if more > TOGETHER and runs == inner == 1:
            cheapest = _cheapest(inverse, columns, costs.argsort(stable=True)[: 4 * TOGETHER])
        left.view(-1)[cheapest] = False
        _drop(inverse, columns, _coordinates(cheapest, inner))
    return torch.nonzero(left.flatten()).flatten().numpy()


def _cheapest(inverse: torch.Tensor, columns: torch.Tensor, among: torch.Tensor) -> torch.Tensor:
    """``TOGETHER`` coordinates that are cheapest one after the other, when no more than these are looked at.

    As :func:`_drop` does it, but of the inverse, and of the products of columns, only the diagonals and what is dropped
    next are brought up to date: both are what they were at first, less a sum over those dropped.
    """
    inverse, columns = inverse[among][:, among], columns[among]
    first, products = inverse.numpy(), (columns @ columns.T).numpy()
    left, squares = first.diagonal().copy(), products.diagonal().copy()
    gains, rows, shifts = np.empty((3, TOGETHER, len(first)))
    gone = np.zeros(len(first), bool)
    for i in range(TOGETHER):
        unit = int(np.where(gone, np.inf, squares / left).argmin())
        gone[unit] = True
        row = first[unit] - gains[:i, unit] @ rows[:i]
        product = products[unit] - gains[:i, unit] @ shifts[:i] - shifts[:i, unit] @ gains[:i]
        gains[i], rows[i] = row / row[unit], row
        shifts[i] = product - product[unit] / 2 * gains[i]
        left -= gains[i] * row
        squares -= 2 * gains[i] * shifts[i]
        left[gone] = 1.0  # no division by what is nearly zero
    return among[torch.from_numpy(gone)]


def _costs(inverse: torch.Tensor, columns: torch.Tensor, inner: int) -> torch.Tensor:
    """The cost of every unit of ``inner`` coordinates, ``(n / inner,)``. ``inverse`` is that of C, ``(n, n)``;
    ``columns`` are those of W, ``(n, m)``."""
    units = len(columns) // inner
    if inner == 1:
        alone: torch.Tensor = columns.square().sum(1) / inverse.diagonal()
        return alone
    each = torch.arange(units)
    blocks = inverse.reshape(units, inner, units, inner)[each, :, each, :]
    parts = columns.reshape(units, inner, -1)
    costs: torch.Tensor = (parts * _solved(blocks, parts)).sum((1, 2))
    return costs


def _drop(inverse: torch.Tensor, columns: torch.Tensor, at: torch.Tensor) -> None:
    """Let the other coordinates take over the part of those ``at`` some places, in ``inverse`` and ``columns`` (shapes
    as in :func:`_costs`) themselves; what is left of these coordinates means nothing."""
    gain = _solved(inverse[at][:, at], inverse[at])  # (k, n)
    columns.addmm_(gain.T, columns[at], alpha=-1)
    inverse.addmm_(inverse[at].T, gain, alpha=-1)
    inverse[at, at] = 1.0  # no division by what is nearly zero


def _solved(blocks: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """The solutions x of ``blocks · x = values``, by Cholesky: blocks of an inverse moment are symmetric and positive,
    and LU, in batches over threads, sometimes fails in MKL."""
    solution: torch.Tensor = torch.cholesky_solve(values, torch.linalg.cholesky(blocks))
    return solution


def _coordinates(units: torch.Tensor, inner: int) -> torch.Tensor:
    return (units[:, None] * inner + torch.arange(inner)).reshape(-1)


def energy(moment: Array, weight: Array) -> float:
    """Mean square ``tr(W · C · Wᵀ)`` of what a map puts out. Shapes are those of :func:`most_telling`."""
    columns = torch.from_numpy(np.ascontiguousarray(weight.T))
    return float((columns * (torch.from_numpy(moment) @ columns)).sum())


def loudness(moment: Array, weight: Array, inner: int = 1) -> Array:
    """Mean square of what each unit alone puts out, ``tr(W_g · C_gg · W_gᵀ)``, ``(n / inner,)``: what dropping it costs
    when nothing takes over its part. Shapes are those of :func:`most_telling`."""
    units = len(moment) // inner
    each = np.arange(units)
    own = moment.reshape(units, inner, units, inner)[each, :, each, :]
    parts = weight.T.reshape(units, inner, -1)
    mean_squares: Array = np.einsum("uim,uij,ujm->u", parts, own, parts, optimize=True)
    return mean_squares


def paired(costs: Array, n_target: int) -> tuple[int, ...]:
    """The first index of each of ``n_target`` runs of one or two neighbours, such that the ``costs`` ``(n,)`` of those
    in runs of two are least in total."""
    n = len(costs)
    assert n_target <= n <= 2 * n_target, (n, n_target)
    best: list[list[tuple[float, tuple[int, ...]]]] = [[(0.0, ())]]  # by indices done, then by pairs so far
    for i in range(n):
        by_pairs = [(cost, (*starts, i)) for cost, starts in best[i]]
        for pairs, (cost, starts) in enumerate(best[i - 1] if i else ()):
            merged = (cost + float(costs[i - 1] + costs[i]), (*starts, i - 1))
            if pairs + 1 < len(by_pairs):
                by_pairs[pairs + 1] = min(by_pairs[pairs + 1], merged)
            else:
                by_pairs.append(merged)
        best.append(by_pairs)
    return best[n][n - n_target][1]


def expanded(indices: Indices, inner: int) -> Indices:
    """The coordinates of a composite axis (``heads × head_dim``) that belong to ``indices`` of its outer axis.

    ``(len(indices) · inner,)``; each index stands for ``inner`` consecutive coordinates.
    """
    return (np.asarray(indices, dtype=np.int64)[:, None] * inner + np.arange(inner)).reshape(-1)


def regression(cross: Array, moment: Array, ridge: float, prior: Array | None = None) -> Array:
    """The matrix B ``(m, n)`` of the least ``E|y − B·x|² + ridge · mean(E[x²]) · |B − prior|²``.

    ``cross`` is ``E[y xᵀ]``, ``(m, n)``; ``moment`` is ``E[x xᵀ]``, ``(n, n)``; ``prior`` is ``(m, n)``, none for 0.
    Raises CalibrationError if a statistic is not finite, or the moment not symmetric or singular with this ridge.
    """
    assert cross.shape[1:] == moment.shape[1:], (cross.shape, moment.shape)
    if not np.isfinite(cross).all():
        raise CalibrationError(
            f"the moment of {len(cross)} signals with the {len(moment)} that predict them is not finite; the source "
            "model overflows on the calibration text: calibrate in float32, or check the source's weights"
        )
    factor = _factor(moment, ridge)
    missed = cross if prior is None else cross - prior @ _symmetric(moment)
    solution = torch.cholesky_solve(torch.from_numpy(np.ascontiguousarray(missed.T)), factor).numpy().T
    return np.ascontiguousarray(solution if prior is None else prior + solution)


def _factor(moment: Array, ridge: float) -> torch.Tensor:
    """The Cholesky factor ``(n, n)`` of a moment with its ridge. Raises CalibrationError as :func:`regression` does."""
    assert ridge >= 0, ridge
    checked(moment)
    n = len(moment)
    damped = torch.from_numpy(_symmetric(moment))
    damped.diagonal().add_(ridge * float(np.mean(np.diag(moment))))
    factor, failed = torch.linalg.cholesky_ex(damped)
    pivots = factor.diagonal().square()
    if failed or pivots.min() <= n * np.finfo(np.float64).eps * pivots.max():
        raise CalibrationError(
            f"the second moment of the {n} signals to predict from is singular at ridge {ridge:g}; calibrate on more "
            f"than {n} tokens, or raise the ridge (1e-3 is usual)"
        )
    return cast(torch.Tensor, factor)


def _symmetric(moment: Array) -> Array:
    symmetric: Array = (moment + moment.T) / 2
    return symmetric


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
    """``A_read`` ``(n_target, n)`` after a rotation: ``x ≈ A_readᵀ · Q·x``, Q ``(n_target, n)`` the ``isometry``.

    It is Q, and what the kept coordinates tell of the dropped ones: the ridge pulls towards ``A_readᵀ = Qᵀ``. One basis
    serves a whole residual stream, and each map that reads the stream has the ``moment`` ``(n, n)`` of what it reads.
    Raises CalibrationError as :func:`regression` does.
    """
    checked(moment)
    cross = moment @ isometry.T
    kept = isometry @ cross
    return regression(cross, (kept + kept.T) / 2, ridge, prior=isometry.T).T
