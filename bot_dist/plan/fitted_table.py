"""The table of fitted operators: which module takes which, and along which of its axes.

It names the operators; what is in them is fitted later (``fit/``). Each belongs to the map that reads or writes
(``fitted_names``). Where key/value heads and the query heads that share one change in opposite directions, nothing is
fitted: all query heads stay, in other groups, and key/value heads are copied, or the mean of those that become one (as
in GQA, arXiv 2305.13245).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from bot_dist.errors import PlanError
from bot_dist.model import Model, Weight
from bot_dist.operators import (
    Constant,
    Copy,
    Fitted,
    FittedConstant,
    FittedLifting,
    FittedMatrix,
    FittedSelection,
    OperatorSpec,
    Resample,
    Select,
)
from bot_dist.plan.fitted import ORDER, norm_bias, regroups
from bot_dist.plan.fitted_names import FittedName, owner_of
from bot_dist.plan.rules import RESIDUAL
from bot_dist.recipe import Basis
from bot_dist.tensors.axes import AxisUse

Place = tuple[int, int]
"""The axes that an operator acts on together, among ``Weight.uses``: the first, and how many."""
OperatorTable = Mapping[str, Mapping[Place, OperatorSpec]]
"""The operators that take the place of those of ``rules.py``, by the name of a module and their place in it."""


def adaptive(
    source: Model,
    target: Model,
    basis: Basis,
    axes: Collection[str],
    *,
    sequential: bool = False,
    averaged: bool = False,
) -> dict[str, dict[Place, OperatorSpec]]:
    """The fitted operators along ``axes`` (``embed``, ``mlp``, ``heads``), with names for handles and without digests;
    ``basis`` is what ``basis_of`` gave. ``sequential``: with what corrects the maps that write into the stream;
    ``averaged``: of ``averages``. What grows is spread, but the residual width in a rotated basis.

    Raises PlanError where query heads can't share key/value heads as the target's do, FamilyError where it can't be
    told which of several maps reads what another one writes.
    """
    rotates = basis == "rotation"
    table: dict[str, dict[Place, OperatorSpec]] = {}
    for weight in target.weights:
        for i in range(len(weight.uses)):
            at = _At(source=source, target=target, weight=weight, first=i)
            spec: OperatorSpec | None = None
            if at.name == "heads" and regroups(source, target):
                at = at.with_heads()
                spec = _regrouped(at)
            elif at.name in axes and at.grows and not (at.name == RESIDUAL and rotates):
                at = at.with_heads()
                spec = _spread(at)
            elif at.name == RESIDUAL and sequential and weight.layered and weight.into_residual:
                spec = at.matrix("write", owner_of(weight.name))
            elif at.name == RESIDUAL and RESIDUAL in axes:
                if rotates or (sequential and weight.layered):
                    spec = _rotated(at, averaged=averaged)
                else:
                    spec = _permuted(at, predicts=not sequential)
            elif at.name in ("mlp", "heads") and at.name in axes:
                at = at.with_heads()
                at = at.with_coordinates() if at.reads else at
                spec = _lifted(at)
            if spec is not None:
                table.setdefault(weight.name, {})[i, at.spans] = spec
    return table


def operators(fitted: OperatorTable) -> dict[str, Fitted]:
    """The operators that must be fitted, by name. Raises PlanError where two modules mean different operators by one
    name."""
    by_name: dict[str, tuple[str, Fitted]] = {}
    for module, _, spec in _kept(fitted):
        first, kept = by_name.setdefault(spec.name, (module, spec.as_kept()))
        if kept != spec.as_kept():
            raise PlanError(
                f"{first} and {module} take one fitted operator, {spec.name}, which is {kept.change} in one and "
                f"{spec.change} in the other; each must have an operator of its own"
            )
    return {name: kept for name, (_, kept) in by_name.items()}


def placed(fitted: OperatorTable, stored: Mapping[str, Fitted]) -> dict[str, dict[Place, OperatorSpec]]:
    """The table with the places and digests of the operators that have been fitted, which ``stored`` gives by name."""
    table = {name: dict(places) for name, places in fitted.items()}
    for module, place, spec in _kept(fitted):
        kept = stored[spec.name]
        table[module][place] = dataclasses.replace(spec, handle=kept.handle, digest=kept.digest)
    return table


def _kept(fitted: OperatorTable) -> Iterator[tuple[str, Place, Fitted]]:
    for module, places in fitted.items():
        for place, spec in places.items():
            if isinstance(spec, Fitted):
                yield module, place, spec


@dataclass(frozen=True, kw_only=True)
class _At:
    """Consecutive axes of a weight, which an operator takes together."""

    source: Model
    target: Model
    weight: Weight
    first: int
    spans: int = 1

    @property
    def use(self) -> AxisUse:
        """The first axis, and what the weight does along it."""
        return self.weight.uses[self.first]

    @property
    def name(self) -> str:
        """The name of the first axis where fits are named: ``heads`` for any axis of heads."""
        return "heads" if self.use.axis in ("kv_heads", "heads") else self.use.axis

    @property
    def reads(self) -> bool:
        return self.use.role == "read"

    @property
    def grows(self) -> bool:
        """Whether any of the axes that are fitted together with the first one (``ORDER``) grows."""
        before, after = self.source.sizes, self.target.sizes
        return any(after.get(axis, 0) > before.get(axis, 0) for axis in ORDER.get(self.name, ()))

    @cached_property
    def sizes(self) -> tuple[int, int]:
        """The numbers of indices of the axes taken together, of source and target."""
        names = [use.axis for use in self.weight.uses[self.first : self.first + self.spans]]
        n_source, n_target = (math.prod(model.sizes[name] for name in names) for model in (self.source, self.target))
        return n_source, n_target

    @property
    def grouped(self) -> bool:
        """Whether the heads are those of queries that share key/value heads."""
        return [use.axis for use in self.weight.uses[self.first :]][:2] == ["kv_heads", "group"]

    @property
    def heads(self) -> str:
        """The kind of the heads, as a part of a name: ``query`` or ``keyvalue``."""
        return "keyvalue" if self.use.axis == "kv_heads" and not self.grouped else "query"

    def with_heads(self) -> _At:
        """The same place with all axes of heads, where it is a place of query heads in groups."""
        return dataclasses.replace(self, spans=2) if self.name == "heads" and self.grouped else self

    def with_coordinates(self) -> _At:
        """The same place with the coordinates of each head, too, where it is a place of heads."""
        return dataclasses.replace(self, spans=self.spans + 1) if self.name == "heads" else self

    @property
    def reader(self) -> str:
        """The map that reads the units or heads that the weight puts out, or itself where it reads them."""
        axes = ("mlp",) if self.name == "mlp" else ("kv_heads", "heads")
        return owner_of(self.target.reader_of(self.weight, *axes).name)

    def named(self, part: str, owner: str = "") -> str:
        return str(FittedName(axis=self.name, part=part, owner=owner))

    def matrix(self, part: str, owner: str = "", *, per_layer: bool = True, gain: float = 1.0) -> OperatorSpec:
        n_source, n_target = self.sizes
        centred = self.source.family.norm == "layer" and not self.grows  # then the all-ones direction may be empty
        return FittedMatrix(
            n_source=n_source,
            n_target=n_target,
            handle=self.named(part, owner),
            per_layer=per_layer,
            gain=gain,
            rank=n_target - 1 if centred else 0,
        )

    def lifting(self, part: str, owner: str, *, per_layer: bool = True, gain: float = 1.0) -> OperatorSpec:
        n_source, n_target = self.sizes
        name = self.named(part, owner)
        return FittedLifting(n_source=n_source, n_target=n_target, handle=name, per_layer=per_layer, gain=gain)

    def selection(
        self, part: str, owner: str = "", *, per_layer: bool = True, gain: float = 1.0, split: float = 0.0
    ) -> OperatorSpec:
        n_source, n_target = self.sizes
        name = self.named(part, owner)
        return FittedSelection(
            n_source=n_source, n_target=n_target, handle=name, per_layer=per_layer, gain=gain, split=split
        )


def _rotated(at: _At, *, averaged: bool) -> OperatorSpec:
    family, weight, (n_source, n_target) = at.source.family, at.weight, at.sizes
    if norm := family.norm_of(weight):
        if at.use.role == "write":
            return Constant(n_source=n_source, n_target=n_target, value=norm_bias(min(n_source, n_target)))
        per_layer = weight.layered and not averaged
        return FittedConstant(n_source=n_source, n_target=n_target, handle=at.named("gain", norm), per_layer=per_layer)
    if at.reads:
        return at.matrix("read", family.norm_before(weight), per_layer=weight.layered)
    return at.matrix("write", per_layer=False, gain=math.sqrt(n_target / n_source))


def _gain(at: _At) -> float:
    """The gain of coordinates of the residual stream that are taken as they are."""
    family, (n_source, n_target) = at.source.family, at.sizes
    root = 1.0 if family.post_norm else math.sqrt(n_target / n_source)
    return 1.0 if family.norm_of(at.weight) else (1 / root if at.reads else root)


def _permuted(at: _At, *, predicts: bool) -> OperatorSpec:
    if predicts and at.reads and (reader := at.source.family.read_with(at.weight)):
        return at.lifting("read", reader, per_layer=at.weight.layered, gain=_gain(at))
    return at.selection("kept", per_layer=False, gain=_gain(at))


def _spread(at: _At) -> OperatorSpec:
    """A selection that copies: what reads the c copies of a unit or head takes 1/c of each, what reads or writes those
    of a coordinate of the residual stream 1/√c."""
    if at.name == RESIDUAL:
        split = 0.0 if at.source.family.norm_of(at.weight) else 0.5
        return at.selection("spread", per_layer=False, gain=_gain(at), split=split)
    part = "spread" if at.name == "mlp" else at.heads
    return at.selection(part, at.reader, split=1.0 if at.reads else 0.0)


def _lifted(at: _At) -> OperatorSpec:
    """The operator of units or heads that are kept or dropped whole: a selection for what writes them, a lifting over
    all their coordinates for what reads them."""
    if at.reads:
        return at.lifting("read", at.reader)
    return at.selection("kept" if at.name == "mlp" else at.heads, at.reader)


def _regrouped(at: _At) -> OperatorSpec:
    """The operator of heads in other groups: every query head as it is; copies of the key/value heads, or means of
    those that become one. Raises PlanError where a query head would have no key/value head of its own."""
    (kv, group), (new_kv, new_group) = (
        [model.sizes[axis] for axis in ("kv_heads", "group")] for model in (at.source, at.target)
    )
    heads, new_heads = kv * group, new_kv * new_group
    if new_heads != heads:
        first = (
            f"first target.heads={new_heads} target.kv_heads={new_heads // group}, which keep {group} per key/value "
            f"head"
        )
        raise PlanError(
            f"target heads={new_heads} with kv_heads={new_kv}, from {heads} with {kv}: query heads change in number, "
            f"or share key/value heads otherwise, not both in one step; "
            + (f"{first}, or " if new_heads % group == 0 else "")
            + f"set target.heads={heads}"
        )
    if new_kv % kv and kv % new_kv:
        known = [n for n in range(1, heads + 1) if heads % n == 0 and not (n % kv and kv % n)]
        raise PlanError(
            f"target kv_heads={new_kv}, from {kv}: {heads} query heads can't share them as they do now; set "
            f"target.kv_heads={' or '.join(map(str, known))}"
        )
    n_source, n_target = at.sizes
    if at.heads == "query":
        return Select(n_source=n_source, n_target=n_target, indices=tuple(range(heads)))
    return (Resample if new_kv < kv else Copy)(n_source=n_source, n_target=n_target)
