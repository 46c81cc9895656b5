"""Resampling at any ratio: levels of a filter bank, and area resampling for what is left of the ratio.

Seen as a function that is constant over each of its cells, a signal is area-resampled by averaging it over the cells of
the target. The Haar filter bank does just that for cells of two, so with it the whole operator is area resampling.
"""

from __future__ import annotations

import numpy as np

from bot_dist.operators.banded import Operator
from bot_dist.operators.filter_bank import HAAR, analysis, filters, synthesis
from bot_dist.operators.spec import OperatorSpec


def resampling(spec: OperatorSpec) -> Operator:
    """The operator of a ``resample`` spec.

    Growing: synthesis to ``n_source · 2^levels``, then area resampling. Shrinking: area resampling to
    ``n_target · 2^levels``, then analysis. With the orthonormal row sum √(n_source/n_target), a dyadic ratio and a
    periodic boundary it is the approximation band of ``pywt.wavedec`` (or ``waverec`` with zero details) in mode
    ``periodization``.
    """
    n_source, n_target, levels = spec.n_source, spec.n_target, spec.levels
    if spec.wavelet in HAAR or not levels:
        return area(n_source, n_target).scaled(spec.row_sum)
    bank = filters(spec.wavelet)
    if n_source < n_target:
        operator = synthesis(n_source, bank.rec_lo, spec.boundary)
        for level in range(1, levels):
            operator = synthesis(n_source << level, bank.rec_lo, spec.boundary).after(operator)
        if not spec.is_dyadic:
            operator = area(n_source << levels, n_target).after(operator)
        return operator.scaled(spec.row_sum * 2 ** (levels / 2))
    operator = area(n_source, n_target << levels)
    for level in range(levels, 0, -1):
        operator = analysis(n_target << level, bank.dec_lo, spec.boundary).after(operator)
    return operator.scaled(spec.row_sum * 2 ** (-levels / 2))


def area(n_source: int, n_target: int) -> Operator:
    """Target cell t is the mean over its stretch of source cells, from ``t · n_source / n_target`` to
    ``(t + 1) · n_source / n_target``: tap s is the part of that stretch that lies in cell s."""
    # In units of 1 / n_target of a source cell, all bounds are whole numbers.
    start = np.arange(n_target)[:, None] * n_source
    stop = start + n_source
    first, last = start // n_target, (stop - 1) // n_target
    cells = first + np.arange(int((last - first).max()) + 1)
    overlap = np.minimum(stop, (cells + 1) * n_target) - np.maximum(start, cells * n_target)
    return Operator(np.minimum(cells, last), np.maximum(overlap, 0) / n_source, n_source)
