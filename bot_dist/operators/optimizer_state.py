"""The operators that AdamW's moments take when an operator ``A`` of shape ``(n_target, n_source)`` takes the weights.

With ``w' = A·w`` a gradient of the old weights is ``g = Aᵀ·g'``; the smallest new one that is, or comes nearest to it,
is ``g' = B·g``, ``B = pinv(A)ᵀ``, of the shape of A. First moments are means of gradients: ``m' = B·m``. Second
moments are means of their squares: ``v' = (B∘B)·v``, as if the gradients of different weights were independent. Of
several axes A is a Kronecker product, and so are B and B∘B: each axis has its own.

A row of B that takes nothing is that of a new weight, and no gradient of it is known: ``m' = 0``. With ``v' = 0`` too,
AdamW's next steps would be too long, for its bias corrections are those of a run of many steps (by up to
``(1 − β₁ⁿ) / √(1 − β₂ⁿ)`` after n of them: 6.6 for β₂ = 0.999). So it has the second moment of the old weight in whose
place it is (``origins``).
"""

from __future__ import annotations

import numpy as np

from bot_dist.operators.banded import Operator, Taps, from_dense
from bot_dist.operators.details import MAX_CONDITION, blocks, submatrix
from bot_dist.operators.origins import origins


def dual_operator(operator: Operator) -> Operator:
    """The dual ``B = pinv(A)ᵀ`` of an operator A, of the same shape. A falls into blocks that share no index, each with
    a pseudo-inverse of its own.

    A filter bank that is orthogonal is a multiple of an isometry, and B a multiple of A: ``Resample.dual`` knows.
    """
    taking = np.flatnonzero((operator.taps != 0).any(axis=1))
    others = Operator(operator.indices[taking], operator.taps[taking], operator.n_source)
    known: dict[tuple[tuple[int, ...], bytes], Taps] = {}
    parts = []
    for rows, columns in blocks(others):
        matrix = submatrix(others, rows, columns)
        key = matrix.shape, matrix.tobytes()
        if key not in known:
            known[key] = dual_matrix(matrix)
        parts.append((taking[rows], columns, known[key]))
    if len(parts) == 1 and parts[0][2].shape == (operator.n_target, operator.n_source):
        return from_dense(parts[0][2])
    width = max((len(columns) for rows, columns, _ in parts if len(rows)), default=1)
    indices = np.repeat(origins(operator.n_source, operator.n_target)[:, None], width, axis=1)
    taps = np.zeros(indices.shape)
    for rows, columns, matrix in parts:
        indices[rows, : len(columns)] = columns
        indices[rows, len(columns) :] = columns[0]
        taps[rows, : len(columns)] = matrix
    return Operator(indices, taps, operator.n_source)


def dual_matrix(matrix: Taps) -> Taps:
    """The dual ``B = pinv(A)ᵀ`` of a dense A, of the same shape; what A maps to nothing, or nearly, is left out."""
    n_target, n_source = matrix.shape
    if n_target <= n_source:
        return np.linalg.pinv(matrix @ matrix.T, rcond=MAX_CONDITION**-1.5, hermitian=True) @ matrix
    return matrix @ np.linalg.pinv(matrix.T @ matrix, rcond=MAX_CONDITION**-1.5, hermitian=True)


def second_moments(first: Operator) -> Operator:
    """The operator B∘B of second moments, made of B, that of the first; rows that take nothing take the index in whose
    place they are."""
    dense = first.indices.strides[0] == 0
    taps = squared_taps(first.taps, origins(first.n_source, first.n_target) if dense else np.zeros(1, dtype=np.int64))
    return Operator(first.indices, taps, first.n_source)


def squared_taps(taps: Taps, own: np.ndarray) -> Taps:
    """The squares of the taps ``(rows, width)`` of some rows; rows of zeros hold 1 at the place in the row that
    ``own``, ``(rows,)`` or ``(1,)``, names."""
    squares: Taps = taps**2
    empty = np.flatnonzero(~squares.any(axis=1))
    squares[empty, np.broadcast_to(own, len(squares))[empty]] = 1.0
    return squares
