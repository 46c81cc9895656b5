"""Operators that take values as they are: copies, selections, untouched units, sums, factors per index; or nothing."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bot_dist.errors import PlanError
from bot_dist.operators.banded import Operator, Taps
from bot_dist.operators.origins import counts, origins
from bot_dist.operators.resample import Resample
from bot_dist.operators.spec import Gained, OperatorSpec

Speaks = Literal["every", "first", "last"]

ROOTS = {0.0: "", 0.5: " /c^½", 1.0: " /c"}


@dataclass(frozen=True, kw_only=True)
class Shared(Gained):
    """An operator that divides a value which it takes c times by c ** ``split``: 0 for plain copies, 1 for the measure
    of a read axis, ½ for the residual width."""

    split: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Copy(Shared):
    """Target index i takes source index ⌊i · n_source / n_target⌋: an even selection where the axis shrinks."""

    speaks: Speaks = "every"
    """Which of the copies of one index is kept; the rows of the others are zero."""

    def __str__(self) -> str:
        if self.is_identity:
            return "keep"
        if self.n_target < self.n_source:
            return "even"
        if self.mutes:
            return "identity"
        return f"copy ×{self.gain:.3g}{ROOTS.get(self.split, f' /c^{self.split:.3g}')}"

    @property
    def in_words(self) -> str:
        return "are repeated"

    @property
    def is_identity(self) -> bool:
        return self.n_source == self.n_target and self.gain == 1

    @property
    def takes_origin(self) -> bool:
        return not self.mutes

    @property
    def mutes(self) -> bool:
        return self.speaks != "every"

    @property
    def uneven(self) -> bool:
        return self.n_target % self.n_source != 0

    def check(self, what: str) -> None:
        super().check(what)
        if self.n_target < self.n_source and self.split:
            raise PlanError(
                f"{what}: policy 'copy' with its copies sharing a value (split {self.split:g}) only grows, and "
                f"{self.change} shrinks; use 'resample', or split 0 to select"
            )

    def build(self) -> Operator:
        indices = origins(self.n_source, self.n_target)
        copies = counts(self.n_source, self.n_target)[indices].astype(np.float64)
        taps: Taps = self.gain / copies**self.split
        run_starts = np.diff(indices, prepend=-1) > 0
        if self.speaks == "first":
            taps[~run_starts] = 0.0
        elif self.speaks == "last":
            taps[:-1][~run_starts[1:]] = 0.0
        return Operator(indices[:, None], taps[:, None], self.n_source)

    @property
    def undone_block(self) -> int:
        return 1

    def of_gradients(self, *, inserts: bool = False) -> OperatorSpec:
        return dataclasses.replace(self, speaks="first") if inserts and not self.mutes else self


@dataclass(frozen=True, kw_only=True)
class OnlyGrows(Gained):
    """An operator that leaves no source index out, so that its axis can't shrink."""

    name = ""

    def __str__(self) -> str:
        return "keep" if self.is_identity else self.name

    @property
    def is_identity(self) -> bool:
        return self.n_source == self.n_target and self.gain == 1

    def check(self, what: str) -> None:
        super().check(what)
        if self.n_target < self.n_source:
            raise PlanError(
                f"{what}: policy '{self.name}' only grows, and {self.change} shrinks; use 'resample', or 'copy' to "
                f"select"
            )


@dataclass(frozen=True, kw_only=True)
class Lazy(OnlyGrows):
    """Old indices stay, new ones are zero: ``gain · [1; 0]``."""

    name = "lazy"

    def build(self) -> Operator:
        old = np.arange(self.n_target) < self.n_source
        indices = np.where(old, np.arange(self.n_target), origins(self.n_source, self.n_target))
        return Operator(indices[:, None], np.where(old, self.gain, 0.0)[:, None], self.n_source)


@dataclass(frozen=True, kw_only=True)
class Stack(OnlyGrows):
    """The whole source again and again: target index i takes source index i mod n_source."""

    name = "stack"

    @property
    def in_words(self) -> str:
        return "are stacked"

    def build(self) -> Operator:
        indices = np.arange(self.n_target)[:, None] % self.n_source
        return Operator(indices, np.full(indices.shape, self.gain), self.n_source)


@dataclass(frozen=True, kw_only=True)
class Select(Shared):
    """Target index i takes source index ``indices[i]``."""

    indices: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "select"

    @property
    def takes_all(self) -> bool:
        return self.gain == 1 and sorted(self.indices) == list(range(self.n_source))

    def build(self) -> Operator:
        assert len(self.indices) == self.n_target, self
        indices = np.array(self.indices)
        taps: Taps = self.gain / np.bincount(indices)[indices].astype(np.float64) ** self.split
        return Operator(indices[:, None], taps[:, None], self.n_source)

    @property
    def undone_block(self) -> int:
        return 1


@dataclass(frozen=True, kw_only=True)
class Merge(Shared):
    """Target index i takes the sum of the source indices from ``indices[i]`` to the next of these, c of them, over
    c ** ``split``."""

    indices: tuple[int, ...] = ()

    def __str__(self) -> str:
        return "merge"

    def build(self) -> Operator:
        starts = np.array(self.indices)
        lengths = np.diff(starts, append=self.n_source)
        assert starts[0] == 0, self
        assert (lengths > 0).all(), self
        place = np.arange(lengths.max())
        indices = starts[:, None] + np.minimum(place, lengths[:, None] - 1)
        taps = np.where(place < lengths[:, None], self.gain / lengths[:, None].astype(np.float64) ** self.split, 0.0)
        return Operator(indices, taps, self.n_source)


@dataclass(frozen=True, kw_only=True)
class Diagonal(OperatorSpec):
    """An operator that multiplies every index by a factor of its own."""

    factors: tuple[float, ...]

    def __str__(self) -> str:
        return "diagonal"

    def build(self) -> Operator:
        assert len(self.factors) == self.n_source == self.n_target, self
        return Operator(np.arange(self.n_source)[:, None], np.array(self.factors)[:, None], self.n_source)

    def restoring(self) -> OperatorSpec:
        inverse = tuple(1 / factor for factor in self.factors)
        return Diagonal(n_source=self.n_source, n_target=self.n_target, factors=inverse)


@dataclass(frozen=True, kw_only=True)
class TakesNothing(OperatorSpec):
    """An operator that takes nothing from the source, all of which is the detail."""

    @property
    def takes_nothing(self) -> bool:
        return True

    @property
    def n_details(self) -> int:
        return self.n_source

    def detail(self) -> OperatorSpec:
        return Resample(n_source=self.n_source, n_target=self.n_source)

    def restoring(self) -> OperatorSpec:
        return Resample(n_source=self.n_source, n_target=self.n_source)


@dataclass(frozen=True, kw_only=True)
class Constant(TakesNothing):
    """An operator whose target indices hold ``value``, whatever the source is; where the axis grows, only those that
    the source has do."""

    value: float = 1.0

    def __str__(self) -> str:
        return f"= {self.value:g}"

    def held(self, value: float) -> float:
        return self.value

    def build(self) -> Operator:
        return Operator(np.zeros((self.n_target, 1), dtype=np.int64), np.zeros((self.n_target, 1)), self.n_source)
