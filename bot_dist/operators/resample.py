"""Resampling at any ratio: levels of a filter bank, and area resampling for what is left of the ratio.

Seen as a function that is constant over each of its cells, a signal is area-resampled by averaging it over the cells of
the target. The Haar filter bank does just that for cells of two, so with it the whole operator is area resampling.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from bot_dist.errors import PlanError
from bot_dist.operators.banded import Operator, below, beside, keep
from bot_dist.operators.filter_bank import HAAR, Boundary, analysis, filters, is_orthogonal, synthesis
from bot_dist.operators.spec import Gained, build_operator

MOST_PRODUCTS = 2**27
"""Most products of two taps that a level of an operator may take: so many take seconds, and a GiB."""


@dataclass(frozen=True, kw_only=True)
class Resample(Gained):
    """An operator of levels of a filter bank, and area resampling for the rest of the ratio. Every row sums to
    ``gain``."""

    wavelet: str = "haar"
    boundary: Boundary = "periodic"

    def __str__(self) -> str:
        if self.is_identity:
            return "keep"
        bank = self.wavelet if self.levels else ""
        area = "" if bank and self.is_dyadic else "area"
        return f"{'+'.join(filter(None, (bank, area)))} ×{self.gain:.3g}"

    @property
    def in_words(self) -> str:
        return f"are resampled by {self.wavelet}"

    @property
    def is_identity(self) -> bool:
        return self.n_source == self.n_target and self.gain == 1

    @property
    def levels(self) -> int:
        """Levels of the filter bank: the whole number nearest to |log₂(n_source / n_target)|."""
        return round(abs(math.log2(self.n_source / self.n_target)))

    @property
    def is_dyadic(self) -> bool:
        """Whether the ratio is a power of two, so that levels of the filter bank are all there is to the operator."""
        return max(self.n_source, self.n_target) == min(self.n_source, self.n_target) << self.levels

    @property
    def averages(self) -> bool:
        """Whether the operator takes means over cells, and nothing beyond them."""
        return self.wavelet in HAAR or not self.levels

    @property
    def takes_origin(self) -> bool:
        return self.wavelet in HAAR and self.n_target % self.n_source == 0

    @property
    def mixes(self) -> bool:
        return not self.takes_origin

    def grown_wrong(self, measure: float) -> str:
        if not self.takes_origin:
            return f"is {'averaged, for it is no multiple' if self.wavelet in HAAR else f'resampled by {self.wavelet}'}"
        return "" if math.isclose(self.gain, measure) else "has the orthonormal gain"

    def check(self, what: str) -> None:
        super().check(what)
        taps = max(map(len, filters(self.wavelet)))
        if taps**2 * max(self.n_source, self.n_target) > MOST_PRODUCTS and self.n_source != self.n_target:
            raise PlanError(
                f"{what}: {self.change} by {self.wavelet}, of {taps} taps, takes too long to compute: at most "
                f"{MOST_PRODUCTS // taps**2:,}; use haar, or a smaller size"
            )

    def build(self) -> Operator:
        """The operator. Growing: synthesis to ``n_source · 2^levels``, then area resampling. Shrinking: area resampling
        to ``n_target · 2^levels``, then analysis. With the orthonormal gain √(n_source/n_target), a dyadic ratio and a
        periodic boundary it is the approximation band of ``pywt.wavedec`` (or ``waverec`` with zero details) in mode
        ``periodization``.
        """
        n_source, n_target, levels = self.n_source, self.n_target, self.levels
        if self.averages:
            return area(n_source, n_target).scaled(self.gain)
        bank = filters(self.wavelet)
        if n_source < n_target:
            operator = synthesis(n_source, bank.rec_lo, self.boundary)
            for level in range(1, levels):
                operator = synthesis(n_source << level, bank.rec_lo, self.boundary).after(operator)
            if not self.is_dyadic:
                operator = area(n_source << levels, n_target).after(operator)
            return operator.scaled(self.gain * 2 ** (levels / 2))
        operator = area(n_source, n_target << levels)
        for level in range(levels, 0, -1):
            operator = analysis(n_target << level, bank.dec_lo, self.boundary).after(operator)
        return operator.scaled(self.gain * 2 ** (-levels / 2))

    @property
    def is_bank(self) -> bool:
        """Whether the operator, where it shrinks, is levels of a filter bank that a synthesis bank undoes exactly."""
        periodic = self.boundary == "periodic" or self.wavelet in HAAR
        exact = self.wavelet != "dmey"  # a truncated filter: its synthesis does not undo its analysis
        return self.levels > 0 and self.is_dyadic and periodic and exact

    @property
    def _is_isometry(self) -> bool:
        """Whether the operator is known to be a multiple of an isometry."""
        return self.is_bank and is_orthogonal(self.wavelet)

    def undoing(self) -> tuple[Operator, Operator]:
        if not self.is_bank:
            return super().undoing()
        bank = filters(self.wavelet)
        down = up = keep(self.n_source)
        detail, restore = [], []
        for level in range(self.levels):
            n = self.n_source >> level
            detail.append(analysis(n, bank.dec_hi, "periodic").after(down))
            restore.append(up.after(synthesis(n // 2, bank.rec_hi, "periodic")))
            down = analysis(n, bank.dec_lo, "periodic").after(down)
            up = up.after(synthesis(n // 2, bank.rec_lo, "periodic"))
        scale = self.gain * 2 ** (-self.levels / 2)
        return below(detail[::-1]), beside([up.scaled(1 / scale), *restore[::-1]])

    @property
    def undone_block(self) -> int:
        if self.is_bank:
            return 1
        return self.n_source // math.gcd(self.n_source, self.n_target) if self.averages else self.n_source

    def dual(self) -> Operator:
        if not self._is_isometry:
            return super().dual()
        operator = build_operator(self)
        square = float((operator.taps**2).sum()) / min(self.n_source, self.n_target)
        return operator.scaled(1 / square)

    @property
    def dual_block(self) -> int:
        if self._is_isometry:
            return 1
        largest = max(self.n_source, self.n_target)
        return largest // math.gcd(self.n_source, self.n_target) if self.averages else largest


def area(n_source: int, n_target: int) -> Operator:
    """Area resampling: target cell t is the mean over its stretch of source cells, from ``t · n_source / n_target`` to
    ``(t + 1) · n_source / n_target``: tap s is the part of that stretch that lies in cell s."""
    # In units of 1 / n_target of a source cell, all bounds are whole numbers.
    start = np.arange(n_target)[:, None] * n_source
    stop = start + n_source
    first, last = start // n_target, (stop - 1) // n_target
    cells = first + np.arange(int((last - first).max()) + 1)
    overlap = np.minimum(stop, (cells + 1) * n_target) - np.maximum(start, cells * n_target)
    return Operator(np.minimum(cells, last), np.maximum(overlap, 0) / n_source, n_source)
