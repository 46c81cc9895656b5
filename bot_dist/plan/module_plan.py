"""The plans of modules: of a weight, of a band of the details that shrinking drops, of a state of the optimizer."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from bot_dist.model import Weight
from bot_dist.plan.axis_plan import AxisPlan
from bot_dist.tensors import Box
from bot_dist.tensors.axes import Parameter, Range

DETAILS = "details/"
"""Prefix of the arrays that hold what shrinking dropped."""

MOMENTS = "moments/"
"""Prefix of the arrays that hold AdamW's moments of a parameter; then come the moment's name and the parameter's."""

Moment = Literal["exp_avg", "exp_avg_sq"]
"""AdamW's first and second moment of a weight, by their names in ``torch.optim``."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class ModulePlan(ABC):
    """One module: the same array of every layer, its axes (that of the layers first, if it has one) and its tiles."""

    weight: Weight
    origin: Weight
    """The source's weight that this one is made of: the same, or the table of an untied head."""
    axes: tuple[AxisPlan, ...]
    dtype: str
    """The dtype that is written."""
    chunk: tuple[int, ...]
    """The shape of the inner chunks of each array that is written."""
    source_bytes: int
    """Bytes that the module takes on the source's storage."""
    source_dtype: str
    """The dtype that is read."""
    whole_rows: bool
    """Whether reading a part of a row from the source costs reading all of it."""
    factors: tuple[tuple[str, float], ...] = ()
    """Factors on the whole module besides those of the operators, by the axis whose change asks for one."""
    init_std: float = 0.0
    """Standard deviation of the values that are drawn as the family initialises them."""
    noise: float = 0.0
    """Strength of the noise on copies (``AxisPlan.copies``)."""
    seed: int = 0
    """The seed of noise and initialisation."""
    learning_rate_factor: float = 1.0
    """The factor on Adam's learning rate; weight decay takes its inverse."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the module, unique in a plan."""

    @property
    @abstractmethod
    def derived(self) -> bool:
        """Whether the module is no weight of the model, but belongs to one."""

    @abstractmethod
    def array_of(self, parameter: Parameter) -> Parameter:
        """The array of the module that belongs to a parameter of the model, where each layer has its own."""

    @property
    def stacked(self) -> bool:
        """Whether all layers are written to one array."""
        return False

    @property
    def shift(self) -> float:
        """The value that is added to every element of the module at the end."""
        return 0.0

    @property
    def blank_is_zero(self) -> bool:
        """Whether target indices that take nothing from the source are zero, whatever the weight holds there."""
        return False

    @property
    def operator_bytes(self) -> int:
        """Bytes of the operators that a step holds all the time, where they may be large."""
        return 0

    @property
    def layered(self) -> bool:
        return self.weight.layered

    @property
    def scale(self) -> float:
        return math.prod(factor for _, factor in self.factors)

    @property
    def shard(self) -> tuple[int, ...]:
        """The shape of the shards of each array that is written: of one layer, or of all where they are stacked."""
        return self.within_array(tuple(a.shard for a in self.axes))

    @property
    def order(self) -> tuple[int, ...]:
        """The axes in the order in which their operators are applied. First come those that are applied alone; then
        those that shrink, the innermost first; those that grow, the innermost last; and at the end those that are
        applied alone and undo others."""
        changing = [(i, a) for i, a in enumerate(self.axes) if a.changes]

        def key(item: tuple[int, AxisPlan]) -> tuple[int, bool, int]:
            i, a = item
            assert a.spec is not None
            grows = a.spec.n_target > a.spec.n_source
            when = (2 if a.restores else 0) if a.alone else 1
            return when, grows, i if grows else -i

        return tuple(i for i, _ in sorted(changing, key=key))

    @property
    def random(self) -> bool:
        """Whether any values of the module are drawn at random."""
        return self.noise > 0 or any(a.fill == "init" for a in self.axes)

    @cached_property
    def energy_gain(self) -> float:
        """Squared norm of the result over that of an orthonormal approximation band: per operator, the mean of the
        squares of its singular values. Of fitted operators, which are not known here, and of constants 1."""
        gain = self.scale**2
        for a in self.axes:
            if a.changes and not a.alone and not a.constant:
                gain *= float((a.operator().taps ** 2).sum()) / min(a.n_source, a.n_target)
        return gain

    def described(self) -> dict[str, str]:
        """The operators in words, by the name of the axis that changes; joined where a weight has an axis twice."""
        in_words: dict[str, str] = {}
        for a in self.axes:
            if a.changes:
                in_words[a.axis] = f"{in_words[a.axis]}, {a.spec}" if a.axis in in_words else str(a.spec)
        return in_words

    @property
    def row_axes(self) -> int:
        """How many axes, from the outermost on, can be read in part without reading all of them."""
        return int(self.layered) + len(self.origin.dims[0]) if self.whole_rows else len(self.axes)

    def source_shape(self) -> tuple[int, ...]:
        return tuple(a.n_source for a in self.axes)

    def target_shape(self) -> tuple[int, ...]:
        return tuple(a.n_target for a in self.axes)

    @property
    def n_tiles(self) -> int:
        return math.prod(len(a.tiles()) for a in self.axes)

    def layers(self, box: Box) -> Range:
        return box[0] if self.layered else (0, 1)

    def within_layer(self, box: Box) -> Box:
        return box[1:] if self.layered else box

    def within_array(self, sides: tuple[T, ...]) -> tuple[T, ...]:
        """Those of ``sides``, one per axis of the module, that belong to the axes of each array that is written."""
        return sides[1:] if self.layered and not self.stacked else sides

    def to_json(self) -> dict[str, Any]:
        """All about the module that decides what is written, as plain data."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            "band": "",
            "moment": None,
            **fields,
            "weight": dataclasses.asdict(self.weight),
            "origin": dataclasses.asdict(self.origin),
            "axes": [a.to_json() for a in self.axes],
        }


@dataclass(frozen=True, kw_only=True)
class WeightPlan(ModulePlan):
    """The plan of a weight of the model."""

    @property
    def name(self) -> str:
        return self.weight.name

    @property
    def derived(self) -> bool:
        return False

    def array_of(self, parameter: Parameter) -> Parameter:
        return parameter

    @property
    def shift(self) -> float:
        """The value that is added to every element at the end, so that what the model itself adds to the weights is
        scaled with them."""
        return self.weight.offset * (self.scale - 1)


@dataclass(frozen=True, kw_only=True)
class DetailPlan(ModulePlan):
    """The plan of a band of the details that shrinking a weight drops. Its layers are no layers of a model, and lie in
    one array."""

    band: str
    """The band, as one letter per axis: ``d`` where it is the detail, ``a`` where it is the approximation."""

    @property
    def name(self) -> str:
        return f"{DETAILS}{self.weight.name}/{self.band}"

    @property
    def derived(self) -> bool:
        return True

    def array_of(self, parameter: Parameter) -> Parameter:
        return parameter

    @property
    def stacked(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class OptimizerStatePlan(ModulePlan):
    """The plan of a state of AdamW about a weight: of one of its two moments."""

    moment: Moment

    @property
    def name(self) -> str:
        return moment_name(self.moment, self.weight.name)

    @property
    def derived(self) -> bool:
        return True

    def array_of(self, parameter: Parameter) -> Parameter:
        return dataclasses.replace(parameter, name=moment_name(self.moment, parameter.name))

    @property
    def blank_is_zero(self) -> bool:
        return True

    @property
    def operator_bytes(self) -> int:
        """Bytes of the operators and of the taps that a tile takes of them, which may be as many: operators of moments
        may be dense where those of weights are banded."""
        return sum(2 * a.operator().taps.nbytes for a in self.axes if a.changes and not a.alone)


def moment_name(moment: Moment, name: str) -> str:
    """The name of the array that holds a moment of the parameter ``name``."""
    return f"{MOMENTS}{moment}/{name}"


def fields_of(module: ModulePlan) -> dict[str, Any]:
    """The fields that plans of all kinds have, to make a plan of another kind of the same module."""
    return {field.name: getattr(module, field.name) for field in dataclasses.fields(ModulePlan)}
