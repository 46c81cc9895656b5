"""How to undo a fitted matrix ``A`` of shape ``(n_target, n_source)``, which may be dense, and differ per layer.

- In general, with ``U S Vᵀ`` the singular values of A, r of which count: the details are ``D · w``, D the rows of Vᵀ
  after the first r, and ``w = R · [A·w; D·w]`` with ``R = [V_r S_r⁻¹ U_rᵀ, Dᵀ]``. As rows of one matrix that is R's
  transpose, its dual ``(n_target + n_details, n_source)``: those that restore from what is kept, then D.
- Lifting, ``A = [1, Pᵀ]`` in the order kept, dropped: the details are what is dropped, ``d = w_dropped`` (those of the
  lazy wavelet), and ``w_kept = a − Pᵀ·d``. Nothing is inverted.
- A selection: the same, with P = 0.
"""

from __future__ import annotations

import numpy as np

from bot_dist.errors import PlanError
from bot_dist.operators.banded import Indices, Taps
from bot_dist.operators.details import MAX_CONDITION


def dual(matrix: Taps, rank: int, name: str) -> Taps:
    """The dual ``(n_target + n_source − rank, n_source)`` of a matrix ``(n_target, n_source)``, of whose rows at least
    ``rank`` are independent. Raises PlanError, calling the matrix ``name``, if fewer are, or nearly so."""
    left, sizes, right = np.linalg.svd(matrix)
    if not sizes[rank - 1] * MAX_CONDITION > sizes[0]:
        raise PlanError(
            f"{name} can't be undone: of its {len(matrix)} rows fewer than {rank} are independent; use keep_details "
            f"false, or another target size"
        )
    inverse = (left[:, :rank] / sizes[:rank]) @ right[:rank]
    return np.concatenate((inverse, right[rank:]))


def split_of(matrix: Taps) -> Indices:
    """The source index that each target index of a lifted matrix takes as it is, ``(n_target,)``."""
    unit = (matrix.max(axis=0) == 1) & ((matrix != 0).sum(axis=0) == 1)
    owner = matrix.argmax(axis=0)
    taken: list[int] = []
    for index in np.flatnonzero(unit):
        if owner[index] == len(taken):  # else it is a dropped one that is predicted to be just like a kept one
            taken.append(int(index))
    assert len(taken) == len(matrix), "the matrix is no lifting of ascending indices"
    return np.array(taken)


def dropped(kept: Indices, n_source: int) -> Indices:
    """The source indices, of ``n_source``, that are not kept; ascending."""
    return np.setdiff1d(np.arange(n_source), kept)


def places(kept: Indices, n_source: int) -> Indices:
    """The place of each source index in ``[kept; dropped]``, ``(n_source,)``."""
    place = np.empty(n_source, dtype=np.int64)
    place[np.concatenate((kept, dropped(kept, n_source)))] = np.arange(n_source)
    return place
