"""Details: what a shrinking operator drops, and how to undo it.

For a shrinking operator ``A`` of shape ``(n_target, n_source)``, the details of a signal w are ``D · w``, D of shape
``(n_source − n_target, n_source)``, and ``R · [A·w; D·w] = w`` with R of shape ``(n_source, n_source)``.

- Levels of a periodic filter bank: D is the high-pass analysis band of every level, the coarsest level first, and R
  the synthesis bank (Mallat 1989). D's rows are orthonormal if the wavelet is orthogonal.
- Fitted matrices: see ``dual.py``.
- Any other operator falls into blocks that share no index of source or target; an operator that is not banded is one
  block. In each, D's rows are an orthonormal basis of A's kernel, and ``R = [pinv(A), Dᵀ]``. Details are numbered block
  by block, in the order of the blocks' first source indices.
"""

from __future__ import annotations

import numpy as np

from bot_dist.errors import PlanError
from bot_dist.operators.banded import Indices, Operator, Taps, from_dense

Part = tuple[Indices, Indices, Taps]
"""Target indices, source indices and the dense matrix between them."""

MAX_BLOCK = 4096
"""Source indices of the largest block that is inverted."""

MAX_CONDITION = 1e6
"""Largest condition number of a block that is inverted: float32 has 7 digits, and a larger one would leave less than
one."""


def complement(operator: Operator, name: str) -> tuple[Operator, Operator]:
    """D, from the source to its details, and R, which restores the source, of any shrinking operator. Raises PlanError,
    calling the operator ``name``, if its rows are (nearly) dependent."""
    n_source, n_target = operator.n_source, operator.n_target
    known: dict[tuple[tuple[int, ...], bytes], tuple[Taps, Taps]] = {}
    details: list[Part] = []
    restores: list[Part] = []
    n_details = 0
    if not (operator.taps != 0).any(axis=1).all():
        raise _dependent(name)
    for rows, columns in blocks(operator):
        matrix = submatrix(operator, rows, columns)
        key = matrix.shape, matrix.tobytes()
        if key not in known:
            known[key] = _inverted(matrix, name)
        detail, restore = known[key]
        numbers = n_details + np.arange(len(detail))
        details.append((numbers, columns, detail))
        restores.append((columns, np.concatenate((rows, n_target + numbers)), restore))
        n_details += len(detail)
    return _assembled(details, n_source - n_target, n_source), _assembled(restores, n_source, n_source)


def blocks(operator: Operator) -> list[tuple[Indices, Indices]]:
    """The connected components of the graph that joins row i and column s where ``A[i, s] ≠ 0``: rows and columns of
    each, ascending, in the order of their first columns. Every row takes something."""
    used = operator.taps != 0
    row = np.broadcast_to(np.arange(operator.n_target)[:, None], used.shape)[used]
    column = operator.indices[used]
    label = np.arange(operator.n_source)  # of a column: the smallest that it is known to be joined with
    while True:
        of_row = np.full(operator.n_target, operator.n_source)
        np.minimum.at(of_row, row, label[column])
        joined = label.copy()
        np.minimum.at(joined, column, of_row[row])
        np.minimum.at(joined, label, joined)
        joined = joined[joined]
        if (joined == label).all():
            break
        label = joined
    first = np.unique(label)
    rows, columns = (_members(np.searchsorted(first, group), len(first)) for group in (of_row, label))
    return list(zip(rows, columns, strict=True))


def _members(group: Indices, n_groups: int) -> list[Indices]:
    """The members of each of ``n_groups`` groups, ascending; ``group[i]`` is the group of member i."""
    stops = np.cumsum(np.bincount(group, minlength=n_groups))
    return np.split(np.argsort(group, kind="stable"), stops[:-1])


def submatrix(operator: Operator, rows: Indices, columns: Indices) -> Taps:
    """The dense matrix ``(len(rows), len(columns))`` of some rows, where ``columns``, ascending, hold all their
    taps."""
    matrix = np.zeros((len(rows), len(columns)))
    taps = operator.taps[rows]
    row, place = np.nonzero(taps)
    np.add.at(matrix, (row, np.searchsorted(columns, operator.indices[rows[row], place])), taps[row, place])
    return matrix


def _inverted(matrix: Taps, name: str) -> tuple[Taps, Taps]:
    """D and R of a dense A: rows that are an orthonormal basis of its kernel, and ``[pinv(A), Dᵀ]``. Raises PlanError,
    calling A ``name``, if its rows are (nearly) dependent.

    The kernel alone has no preferred basis, and that of a decomposition depends on the machine: D is the one that the
    Gram-Schmidt process makes of fixed vectors projected onto it, so that another machine can put details back.
    """
    n_target, n_source = matrix.shape
    if n_target > n_source:
        raise _dependent(name)
    basis, triangle = np.linalg.qr(matrix.T, mode="complete")
    triangle = triangle[:n_target]
    if n_target and not np.linalg.cond(triangle, 1) < MAX_CONDITION:
        raise _dependent(name)
    inverse = basis[:, :n_target] @ np.linalg.inv(triangle).T
    kernel = basis[:, n_target:]
    fixed = np.random.RandomState(0).uniform(-1, 1, (n_source, n_source - n_target))
    rotation, triangle = np.linalg.qr(kernel.T @ fixed)
    kernel = kernel @ (rotation * np.sign(np.diag(triangle)))
    return kernel.T, np.concatenate((inverse, kernel), axis=1)


def _dependent(name: str) -> PlanError:
    return PlanError(
        f"{name} can't be undone: its rows are (nearly) dependent; use the wavelet haar, or keep no details"
    )


def _assembled(parts: list[Part], n_target: int, n_source: int) -> Operator:
    """The operator ``(n_target, n_source)`` that consists of dense parts, no two of which share a target."""
    if len(parts) == 1:
        return from_dense(parts[0][2])
    width = max(len(sources) for _, sources, _ in parts)
    indices, taps = np.empty((n_target, width), dtype=np.int64), np.zeros((n_target, width))
    for targets, sources, matrix in parts:
        indices[targets, : len(sources)] = sources
        indices[targets, len(sources) :] = sources[0]
        taps[targets, : len(sources)] = matrix
    return Operator(indices, taps, n_source)
