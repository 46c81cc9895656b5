"""What determines an operator: a few numbers and words that can be printed, stored and sent."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Boundary = Literal["periodic", "symmetric"]
Policy = Literal[
    "resample",
    "copy",
    "lazy",
    "stack",
    "select",
    "merge",
    "constant",
    "diagonal",
    "detail",
    "restore",
    "stored",
    "exp_avg",
    "exp_avg_sq",
]
Speaks = Literal["every", "first", "last"]

ROOTS = {0.0: "", 0.5: " /c^½", 1.0: " /c"}


@dataclass(frozen=True, kw_only=True)
class OperatorSpec:
    """Everything that determines one operator ``A`` of shape ``(n_target, n_source)``.

    - ``resample``: levels of a filter bank, and area resampling for the rest of the ratio.
    - ``copy``: target index i takes source index ⌊i · n_source / n_target⌋: an even selection where the axis shrinks.
    - ``lazy``: old indices stay, new ones are zero.
    - ``stack``: target index i takes source index i mod n_source.
    - ``select``: target index i takes source index ``indices[i]``.
    - ``merge``: target index i takes the sum of the source indices from ``indices[i]`` to the next of these.
    - ``constant``: nothing is taken from the source; all indices hold ``row_sum`` (growing, the old ones), or one
      number that was fitted and is kept elsewhere.
    - ``diagonal``: a factor per index.
    - ``detail``: what the shrinking operator ``of`` drops.
    - ``restore``: undoes ``of``, on its target and its details one after the other.
    - ``exp_avg``, ``exp_avg_sq``: where ``of`` takes weights, this takes AdamW's first and second moments of them
      (``moments.py``).
    - ``stored``: a fitted matrix that is kept elsewhere, or the source index that each target index takes. A matrix
      that grows has zeros beyond the source's indices: new units are as of ``lazy``.
    """

    n_source: int
    n_target: int
    row_sum: float = 1.0
    """``resample``: what every row sums to. ``constant``: the value. Else: the factor of every value that is taken."""
    wavelet: str = "haar"
    boundary: Boundary = "periodic"
    policy: Policy = "resample"
    split: float = 0.0
    """``copy``: a value that is copied c times is divided by c ** split: 0 for plain copies, 1 for the measure of a
    read axis, ½ for the residual width. ``select``, ``stored`` that selects: the same. ``merge``: c values that are
    summed are."""
    speaks: Speaks = "every"
    """``copy``: which of the copies of one index is kept; the rows of the others are zero."""
    indices: tuple[int, ...] = ()
    """``select``: the n_target source indices. ``merge``: the first of each."""
    diagonal: tuple[float, ...] = ()
    """``diagonal``: the n_source = n_target factors."""
    of: OperatorSpec | None = None
    """``detail``, ``restore``: the shrinking operator that they belong to. ``exp_avg``, ``exp_avg_sq``: that of the
    weights."""
    handle: str = ""
    """``stored``: where the matrix is kept. ``constant``: where the number is, if it is."""
    digest: str = ""
    """Of what is kept there."""
    per_layer: bool = False
    """Whether there is one per layer."""
    selects: bool = False
    """``stored``: whether each target index takes one source index: those that are kept; growing, some repeatedly."""
    lifted: bool = False
    """``stored``: whether each target index takes one source index as it is (they ascend), and something of those that
    none takes."""
    rank: int = 0
    """``stored``: how many of its rows tell something of their own, where that may be fewer than ``n_target``; 0: all.
    """

    @property
    def name(self) -> str:
        """What it is called where it is kept."""
        return self.handle.rpartition("#")[2]

    @property
    def fitted(self) -> bool:
        """Whether it is kept elsewhere, or belongs to a matrix that is."""
        return self.matrix.policy == "stored" or bool(self.matrix.handle)

    @property
    def matrix(self) -> OperatorSpec:
        """The operator, or the one that it belongs to."""
        return self.of or self

    @property
    def inverted(self) -> bool:
        """``stored``: whether it takes an inverse to undo it."""
        return not (self.selects or self.lifted)

    @property
    def padded(self) -> bool:
        """``stored``: whether target indices beyond the source's take nothing."""
        return self.policy == "stored" and not self.selects and self.n_target > self.n_source

    @property
    def n_details(self) -> int:
        """How many details give the source back, with what a shrinking operator keeps."""
        return self.n_source if self.policy == "constant" else self.n_source - (self.rank or self.n_target)

    @property
    def is_identity(self) -> bool:
        """Whether it changes nothing, so that applying it can be skipped."""
        return (
            self.n_source == self.n_target
            and self.policy in ("resample", "copy", "lazy", "stack")
            and self.row_sum == 1
        )

    @property
    def levels(self) -> int:
        """Of the filter bank: the whole number nearest to |log₂(n_source / n_target)|."""
        return round(abs(math.log2(self.n_source / self.n_target)))

    @property
    def is_dyadic(self) -> bool:
        """Whether levels of the filter bank are all there is to it."""
        return max(self.n_source, self.n_target) == min(self.n_source, self.n_target) << self.levels

    def __str__(self) -> str:
        if self.is_identity:
            return "keep"
        if self.policy == "resample":
            bank = self.wavelet if self.levels else ""
            area = "" if bank and self.is_dyadic else "area"
            return f"{'+'.join(filter(None, (bank, area)))} ×{self.row_sum:.3g}"
        if self.policy == "copy":
            if self.n_target < self.n_source:
                return "even"
            if self.speaks != "every":
                return "identity"
            return f"copy ×{self.row_sum:.3g}{ROOTS.get(self.split, f' /c^{self.split:.3g}')}"
        if self.policy == "stored":
            gain = f" ×{self.row_sum:.3g}" if self.row_sum != 1 else ""
            return f"fitted {self.name}{gain}{ROOTS[self.split]}"
        if self.policy == "constant":
            return f"= fitted {self.name}" if self.handle else f"= {self.row_sum:g}"
        return f"{self.policy} of {self.of}" if self.of is not None else self.policy


def spec_from_json(data: Mapping[str, Any]) -> OperatorSpec:
    """The inverse of ``dataclasses.asdict``, through JSON."""
    of = data.get("of")
    tuples = {key: tuple(data.get(key, ())) for key in ("diagonal", "indices")}
    return OperatorSpec(**{**data, **tuples, "of": None if of is None else spec_from_json(of)})
