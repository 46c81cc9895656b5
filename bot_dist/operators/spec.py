"""Specifications of operators: a few numbers that can be compared, printed, stored and sent.

Every kind of operator is a type, and all have one protocol: callers ask an operator, and never which kind it is. Here
is what they have in common, and what is made of any of them: its details, what restores from these, and what AdamW's
moments take where weights take the operator. The kinds that are computed are in ``resample.py`` and ``copies.py``,
those that were fitted and are kept in a store in ``fitted.py``.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
import numpy.typing as npt

from bot_dist.errors import PlanError
from bot_dist.operators.banded import Indices, Operator, Taps
from bot_dist.operators.details import MAX_BLOCK, complement
from bot_dist.operators.optimizer_state import dual_operator, second_moments, squared_taps
from bot_dist.operators.origins import origins
from bot_dist.tensors.axes import Range

Rows = tuple[Indices, Taps]
"""Rows of an operator, both ``(rows, width)``: the source indices that each takes, and its taps."""
ReadKept = Callable[[str, Range], npt.NDArray[np.float64]]
"""Reads rows, ``(rows, width)``, of an array that is kept for a fitted operator. Its first argument is the suffix of
the array's name: empty for the operator itself."""


@dataclass(frozen=True, kw_only=True)
class OperatorSpec(ABC):
    """Everything that determines one operator ``A`` of shape ``(n_target, n_source)``.

    Properties and methods answer for an operator that is computed and combines several source indices. A kind of which
    something else holds says so.
    """

    n_source: int
    n_target: int

    @abstractmethod
    def build(self) -> Operator:
        """The operator, in float64. Callers use ``build_operator``, which remembers it.

        Raises RecipeError on an unknown wavelet, and PlanError if what is to be undone can't be.
        """

    @abstractmethod
    def __str__(self) -> str:
        """The operator in a few characters, for tables."""

    def check(self, what: str) -> None:
        """Raise PlanError, naming the axis by ``what``, when no such operator leads from ``n_source`` to ``n_target``,
        and RecipeError when its wavelet is unknown."""
        if min(self.n_source, self.n_target) < 1:
            raise PlanError(f"{what}: {self.change} is no size to resample; use sizes of at least 1")

    @property
    def change(self) -> str:
        """The change of size, for messages."""
        return f"{self.n_source} → {self.n_target}"

    @property
    def in_words(self) -> str:
        """Words for what becomes of the source's indices, to be put behind a word for these."""
        return f"are taken by {self}"

    @property
    def is_identity(self) -> bool:
        """Whether the operator changes nothing, so that applying it can be skipped."""
        return False

    @property
    def gain(self) -> float:
        """The factor on every value that the operator takes."""
        return 1.0

    @property
    def of_weights(self) -> OperatorSpec:
        """The operator that weights take: this one, or the one that this one is made of."""
        return self

    @property
    def fitted(self) -> bool:
        """Whether the operator was fitted and is kept in a store, or is made of one that is."""
        return False

    @property
    def per_layer(self) -> bool:
        """Whether the operator differs per source layer; never true of one that is made of another operator."""
        return False

    @property
    def restores(self) -> bool:
        """Whether the operator undoes one that has shrunk an axis."""
        return False

    @property
    def takes_nothing(self) -> bool:
        """Whether the target is the same whatever the source is."""
        return False

    def held(self, value: float) -> float:
        """The value that target indices which the source has too hold where nothing is taken from it, if new ones hold
        ``value``."""
        return value

    @property
    def takes_origin(self) -> bool:
        """Whether each target index takes one value, that of its origin (perhaps scaled), and nothing else."""
        return False

    @property
    def takes_all(self) -> bool:
        """Whether each target index takes one value as it is, and none is left out."""
        return False

    @property
    def mixes(self) -> bool:
        """Whether a target index may take a value between those of source indices, where the axis grows."""
        return False

    @property
    def mutes(self) -> bool:
        """Whether one of the copies of a source index is kept, and the others are zero."""
        return False

    @property
    def uneven(self) -> bool:
        """Whether the operator copies some source indices more often than others, whatever they hold."""
        return False

    @property
    def padded(self) -> bool:
        """Whether the operator is a fitted one whose target indices beyond the source's take nothing."""
        return False

    def grown_wrong(self, measure: float) -> str:
        """Why a model's function is lost where an axis grows by the operator, in words to be put behind the change of
        size; empty where it is kept. ``measure`` is the gain that keeps it: n_source / n_target where the axis is
        read."""
        return ""

    @property
    def n_details(self) -> int:
        """How many details give the source back, together with what a shrinking operator keeps."""
        return self.n_source - self.n_target

    def detail(self) -> OperatorSpec:
        """The operator from the source to its details."""
        return Detail(n_source=self.n_source, n_target=self.n_details, of=self)

    def restoring(self) -> OperatorSpec:
        """The operator that undoes this one: from its target and its details, one after the other, to the source."""
        return Restore(n_source=self.n_target + self.n_details, n_target=self.n_source, of=self)

    def with_unit_gain(self) -> OperatorSpec:
        """The operator without its gain."""
        return self

    def renamed(self, named: Callable[[str], str]) -> OperatorSpec:
        """The operator with its values kept at the place that ``named`` makes of theirs."""
        return self

    def undoing(self) -> tuple[Operator, Operator]:
        """D, from the source to its details, and R, which restores the source, of a shrinking operator
        (``details.py``). Raises PlanError if it can't be undone."""
        return complement(build_operator(self), f"{self} ({self.change})")

    @property
    def undone_block(self) -> int:
        """Source indices of the largest block that is inverted to undo the operator."""
        return self.n_source

    def of_gradients(self, *, inserts: bool = False) -> OperatorSpec:
        """The operator whose dual gradients take: the one that weights take, where these have gradients. ``inserts``:
        the target has new layers that change nothing, so what is copied into them has no gradients."""
        return self

    def dual(self) -> Operator:
        """The dual B of the operator, which gradients take (``optimizer_state.py``)."""
        return dual_operator(build_operator(self))

    @property
    def dual_block(self) -> int:
        """About how many indices the largest block has that is inverted to find the dual."""
        return 1

    def rows(self, read: ReadKept, rows: Range) -> Rows:
        """Some rows of the operator; ``read`` reads what is kept of it. Raises as ``read`` does."""
        return build_operator(self).restricted(rows, ((0, self.n_source),))

    def detail_rows(self, read: ReadKept, rows: Range) -> Rows:
        """Some rows of the operator that ``detail`` gives. Raises as ``read`` does."""
        return build_operator(self.detail()).restricted(rows, ((0, self.n_source),))

    def restoring_rows(self, read: ReadKept, rows: Range) -> Rows:
        """Some rows of the operator that ``restoring`` gives. Raises as ``read`` does."""
        restoring = self.restoring()
        return build_operator(restoring).restricted(rows, ((0, restoring.n_source),))

    def dual_rows(self, read: ReadKept, rows: Range) -> Rows:
        """Some rows of the operator that ``dual`` gives. Raises as ``read`` does."""
        return self.dual().restricted(rows, ((0, self.n_source),))

    @property
    def by_columns(self) -> bool:
        """Whether columns of the operator are kept, and not rows: ``columns`` gives them, and ``rows`` does not."""
        return False

    def columns(self, read: ReadKept, columns: Range) -> Taps:
        """Some columns of the operator, ``(columns, n_target)``, where they are kept."""
        raise AssertionError(f"{self} is not kept by columns")

    @property
    def undone_by_columns(self) -> bool:
        """Whether columns of the operator that ``restoring`` gives are kept, and not rows."""
        return False

    def undoing_columns(self, read: ReadKept, columns: Range) -> Taps:
        """Some columns of the operator that ``restoring`` gives, ``(columns, n_source)``, where they are kept."""
        raise AssertionError(f"what undoes {self} is not kept by columns")


@lru_cache(maxsize=64)
def build_operator(spec: OperatorSpec) -> Operator:
    """The operator that ``spec`` describes. Raises as ``OperatorSpec.build`` does."""
    return spec.build()


@lru_cache(maxsize=4)
def _undoing(spec: OperatorSpec) -> tuple[Operator, Operator]:
    return spec.undoing()


@dataclass(frozen=True, kw_only=True)
class Gained(OperatorSpec):
    """An operator with a factor on all of it."""

    gain: float = 1.0

    def with_unit_gain(self) -> Self:
        return dataclasses.replace(self, gain=1.0)


@dataclass(frozen=True, kw_only=True)
class Derived(OperatorSpec):
    """An operator that is made of another one."""

    of: OperatorSpec

    @property
    def of_weights(self) -> OperatorSpec:
        return self.of

    @property
    def fitted(self) -> bool:
        return self.of.fitted

    @property
    def takes_nothing(self) -> bool:
        return self.of.takes_nothing

    @property
    @abstractmethod
    def role(self) -> str:
        """The word for what the operator is to the one that it is made of."""

    def __str__(self) -> str:
        return f"{self.role} of {self.of}"


@dataclass(frozen=True, kw_only=True)
class Undoing(Derived):
    """An operator that leads to, or from, the details of one that shrinks."""

    def check(self, what: str) -> None:
        super().check(what)
        of = self.of
        of.check(what)
        if of.n_target > of.n_source or (of.n_target == of.n_source and not of.fitted):
            raise PlanError(f"{what}: {of.change} drops nothing, so it has no details; keep those of axes that shrink")
        if (block := of.undone_block) > MAX_BLOCK:
            way_out = "basis permutation in one pass" if of.fitted else "haar, a ratio that is a power of two,"
            raise PlanError(
                f"{what}: undoing {of} ({of.change}) takes a dense inverse of {block:,} indices, over {MAX_BLOCK:,}; "
                f"use {way_out} or keep_details false"
            )


@dataclass(frozen=True, kw_only=True)
class Detail(Undoing):
    """The operator from a source to its details: to what the shrinking operator ``of`` drops."""

    role = "detail"

    def build(self) -> Operator:
        return _undoing(self.of.with_unit_gain())[0]

    def rows(self, read: ReadKept, rows: Range) -> Rows:
        return self.of.detail_rows(read, rows)


@dataclass(frozen=True, kw_only=True)
class Restore(Undoing):
    """The operator that undoes ``of``: from its target and its details, one after the other, to its source."""

    role = "restore"

    @property
    def restores(self) -> bool:
        return True

    def build(self) -> Operator:
        restore = _undoing(self.of.with_unit_gain())[1]
        scale = np.where(restore.indices < self.of.n_target, 1 / self.of.gain, 1.0)
        return Operator(restore.indices, restore.taps * scale, restore.n_source)

    def rows(self, read: ReadKept, rows: Range) -> Rows:
        return self.of.restoring_rows(read, rows)

    @property
    def by_columns(self) -> bool:
        return self.of.undone_by_columns

    def columns(self, read: ReadKept, columns: Range) -> Taps:
        return self.of.undoing_columns(read, columns)


@dataclass(frozen=True, kw_only=True)
class FirstMoment(Derived):
    """The operator that AdamW's first moments take where weights take ``of`` (``optimizer_state.py``)."""

    role = "exp_avg"

    def check(self, what: str) -> None:
        super().check(what)
        self.of.check(what)
        if (block := self.of.dual_block) > MAX_BLOCK:
            raise PlanError(
                f"{what}: carrying AdamW's moments through {self.of} ({self.change}) takes a dense inverse of "
                f"{block:,} indices, over {MAX_BLOCK:,}; use haar, an orthogonal wavelet at a ratio that is a power of "
                f"two, or transfer.moments none"
            )

    def build(self) -> Operator:
        return self.of.dual()

    def rows(self, read: ReadKept, rows: Range) -> Rows:
        return self.of.dual_rows(read, rows)


@dataclass(frozen=True, kw_only=True)
class SecondMoment(FirstMoment):
    """The operator that AdamW's second moments take where weights take ``of`` (``optimizer_state.py``)."""

    role = "exp_avg_sq"

    def build(self) -> Operator:
        return second_moments(super().build())

    def rows(self, read: ReadKept, rows: Range) -> Rows:
        indices, taps = super().rows(read, rows)
        return indices, squared_taps(taps, origins(self.of.n_source, self.of.n_target)[slice(*rows)])
