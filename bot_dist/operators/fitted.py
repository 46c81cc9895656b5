"""Fitted operators: their values are kept in a store, as arrays that are named after them.

Beside the array of an operator NAME lie those that its use takes: ``NAME.split`` or ``NAME.dual`` to undo it
(``dual.py``), ``NAME.moments`` for AdamW's moments (``optimizer_state.py``). Values are kept
without the ``gain`` of the operator.
"""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from bot_dist.operators.banded import Indices, Operator, Taps
from bot_dist.operators.copies import ROOTS, Constant, Shared, TakesNothing
from bot_dist.operators.dual import dropped, dual, places, split_of
from bot_dist.operators.optimizer_state import dual_matrix
from bot_dist.operators.spec import Gained, OperatorSpec, ReadKept, Rows
from bot_dist.tensors.axes import Range

SUFFIXES = SPLIT, DUAL, MOMENTS = ".split", ".dual", ".moments"
"""Suffixes of the names of the arrays that lie beside that of a fitted operator."""

Sizes = Mapping[str, int]
"""The axes of an array, without that of the layers, and their sizes."""
Values = npt.NDArray[Any]


@dataclass(frozen=True, kw_only=True)
class Fitted(OperatorSpec):
    """An operator whose values are kept in a store."""

    handle: str = ""
    """The place where its values are kept, ``URL#NAME``; until they are, its name alone."""
    digest: str = ""
    """The digest of the values that are meant; empty until they are kept."""
    per_layer: bool = False

    def __str__(self) -> str:
        return f"fitted {self.name}"

    @property
    def name(self) -> str:
        """The name of the operator where its values are kept."""
        return self.handle.rpartition("#")[2]

    @property
    def fitted(self) -> bool:
        return True

    def renamed(self, named: Callable[[str], str]) -> Fitted:
        return dataclasses.replace(self, handle=named(self.handle))

    def build(self) -> Operator:
        raise AssertionError(f"the operator {self.handle!r} is kept elsewhere and has to be loaded")

    def as_kept(self) -> Fitted:
        """The operator as it is to be kept: without its place, its digest, and what depends on its use."""
        return dataclasses.replace(self, handle="", digest="")

    @property
    @abstractmethod
    def sizes(self) -> Sizes:
        """The sizes of the operator's own array by axis, without that of the layers."""

    def beside(self, *, undone: bool, moments: bool) -> dict[str, Sizes]:
        """The sizes, by suffix, of the arrays that lie beside its own: with ``undone`` those that undo it, with
        ``moments`` those that AdamW's moments take."""
        return {}

    def made_beside(self, suffix: str, values: Taps, what: str) -> Values:
        """The array of this ``suffix`` beside an own array of these ``values``, both of one layer. Raises PlanError,
        calling the operator ``what``, where it can't be undone."""
        raise AssertionError(f"nothing lies beside {self}")

    @property
    @abstractmethod
    def placeholder(self) -> Values:
        """Values of its own array for a layer of which nothing is used; they can be undone as others can."""


@dataclass(frozen=True, kw_only=True)
class FittedDense(Fitted, Gained):
    """A fitted matrix ``(n_target, n_source)`` of any values."""

    def __str__(self) -> str:
        return f"{super().__str__()}{_times(self.gain)}"

    @property
    def sizes(self) -> Sizes:
        return {"target": self.n_target, "source": self.n_source}

    @property
    def placeholder(self) -> Values:
        return np.eye(self.n_target, self.n_source)

    def as_kept(self) -> Fitted:
        return dataclasses.replace(self, handle="", digest="", gain=1.0)

    def beside(self, *, undone: bool, moments: bool) -> dict[str, Sizes]:
        return {MOMENTS: self.sizes} if moments else {}

    def made_beside(self, suffix: str, values: Taps, what: str) -> Values:
        return dual_matrix(values)

    def rows(self, read: ReadKept, rows: Range) -> Rows:
        return _dense(read("", rows) * self.gain)

    def dual_rows(self, read: ReadKept, rows: Range) -> Rows:
        return _dense(read(MOMENTS, rows) / self.gain)


@dataclass(frozen=True, kw_only=True)
class FittedMatrix(FittedDense):
    """A fitted matrix that takes an inverse to undo it. Where it grows, its rows beyond the source's indices are zero:
    new units are like those of ``Lazy``."""

    rank: int = 0
    """How many of its rows are independent of each other, where that may be fewer than ``n_target``; 0: all."""

    @property
    def padded(self) -> bool:
        return self.n_target > self.n_source

    @property
    def n_details(self) -> int:
        return self.n_source - (self.rank or self.n_target)

    def beside(self, *, undone: bool, moments: bool) -> dict[str, Sizes]:
        arrays = super().beside(undone=undone, moments=moments)
        if undone and not self.padded:
            arrays[DUAL] = {"target": self.n_target + self.n_details, "source": self.n_source}
        return arrays

    def made_beside(self, suffix: str, values: Taps, what: str) -> Values:
        if suffix == DUAL:
            return dual(values, self.rank or self.n_target, what)
        return super().made_beside(suffix, values, what)

    def detail_rows(self, read: ReadKept, rows: Range) -> Rows:
        return _dense(self.undoing_columns(read, (self.n_target + rows[0], self.n_target + rows[1])))

    @property
    def undone_by_columns(self) -> bool:
        return True

    def undoing_columns(self, read: ReadKept, columns: Range) -> Taps:
        taps = read(DUAL, columns)
        taps[: max(0, self.n_target - columns[0])] /= self.gain
        return taps


@dataclass(frozen=True, kw_only=True)
class FittedLifting(FittedDense):
    """A fitted matrix by which each target index takes one source index as it is, in ascending order, and a part of
    each of those that no target index takes so."""

    @property
    def undone_block(self) -> int:
        return 1

    def beside(self, *, undone: bool, moments: bool) -> dict[str, Sizes]:
        arrays = super().beside(undone=undone, moments=moments)
        return arrays | ({SPLIT: {"target": self.n_target, "source": 1}} if undone else {})

    def made_beside(self, suffix: str, values: Taps, what: str) -> Values:
        return split_of(values) if suffix == SPLIT else super().made_beside(suffix, values, what)

    def detail_rows(self, read: ReadKept, rows: Range) -> Rows:
        return _detail_rows(self._kept(read), self.n_source, rows)

    def restoring_rows(self, read: ReadKept, rows: Range) -> Rows:
        kept = self._kept(read)
        place = places(kept, self.n_source)[slice(*rows)]
        own = place < self.n_target
        taps = np.zeros((len(place), self.n_source))
        taps[np.arange(len(place)), place] = np.where(own, 1 / self.gain, 1.0)
        if own.any():
            predicted = read("", (place[own].min(), place[own].max() + 1))
            taps[own, self.n_target :] = -predicted[:, dropped(kept, self.n_source)]
        return _dense(taps)

    def _kept(self, read: ReadKept) -> Indices:
        return _indices(read(SPLIT, (0, self.n_target)))


@dataclass(frozen=True, kw_only=True)
class FittedSelection(Fitted, Shared):
    """A fitted choice of the source index that each target index takes: those that are kept where the axis shrinks;
    some of them repeatedly where it grows."""

    def __str__(self) -> str:
        return f"{super().__str__()}{_times(self.gain)}{ROOTS[self.split]}"

    @property
    def sizes(self) -> Sizes:
        return {"target": self.n_target, "source": 1}

    @property
    def placeholder(self) -> Values:
        return np.arange(self.n_target)

    def as_kept(self) -> Fitted:
        return dataclasses.replace(self, handle="", digest="", gain=1.0, split=0.0)

    @property
    def undone_block(self) -> int:
        return 1

    def rows(self, read: ReadKept, rows: Range) -> Rows:
        kept = self._kept(read)
        taken = kept[slice(*rows)]
        copies = np.bincount(kept)[taken].astype(np.float64)
        return taken[:, None], (self.gain / copies**self.split)[:, None]

    def detail_rows(self, read: ReadKept, rows: Range) -> Rows:
        return _detail_rows(self._kept(read), self.n_source, rows)

    def restoring_rows(self, read: ReadKept, rows: Range) -> Rows:
        place = places(self._kept(read), self.n_source)[slice(*rows)]
        return place[:, None], np.where(place < self.n_target, 1 / self.gain, 1.0)[:, None]

    def dual_rows(self, read: ReadKept, rows: Range) -> Rows:
        indices, taps = self.rows(read, rows)
        return indices, 1 / (taps * np.bincount(self._kept(read))[indices])

    def _kept(self, read: ReadKept) -> Indices:
        return _indices(read("", (0, self.n_target)))


@dataclass(frozen=True, kw_only=True)
class FittedConstant(TakesNothing, Fitted):
    """A fitted number that all target indices hold, whatever the source is."""

    def __str__(self) -> str:
        return f"= {super().__str__()}"

    @property
    def sizes(self) -> Sizes:
        return {"value": 1}

    @property
    def placeholder(self) -> Values:
        return np.ones(())

    def of_gradients(self, *, inserts: bool = False) -> OperatorSpec:
        """A constant that is not fitted, for gradients do not depend on its value."""
        return Constant(n_source=self.n_source, n_target=self.n_target)


def _times(gain: float) -> str:
    return f" ×{gain:.3g}" if gain != 1 else ""


def _dense(taps: Taps) -> Rows:
    return np.broadcast_to(np.arange(taps.shape[1]), taps.shape), taps


def _indices(kept: Taps) -> Indices:
    return kept[:, 0].astype(np.int64)


def _detail_rows(kept: Indices, n_source: int, rows: Range) -> Rows:
    return dropped(kept, n_source)[slice(*rows), None], np.ones((rows[1] - rows[0], 1))
