"""Baselines: published rules that make one model of another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from bot_dist.errors import PlanError
from bot_dist.formats.source import Source
from bot_dist.model import Model, Weight
from bot_dist.plan import OperatorTable
from bot_dist.tensors import whole

if TYPE_CHECKING:
    import torch

Depth = Literal["auto", "stack", "interpolate", "identity"]
"""Policies of ``transfer.depth`` that are someone's rule, too; ``auto`` where there is none."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """The work of a baseline on one model: operators, and nothing else; or weights that it makes by other means."""

    name: str
    """Name of the rule, with its authors."""
    operators: OperatorTable = field(default_factory=dict)
    """Operators of each module, along its widths that change."""
    layers: tuple[int, ...] = ()
    """Layers of the source that the layers of the target are made of; empty where ``depth`` says it."""
    depth: Depth = "auto"
    exact: bool = False
    """Whether a tied head and scaled embeddings get the factors that they need for the function to be kept."""
    make: Make | None = None
    """Makes the weights of the model ``made``, which the plan then reads; None where operators say it all."""
    made: Model | None = None


@dataclass(frozen=True, kw_only=True)
class Given:
    """Everything that a rule may make weights from."""

    source: Source
    model: Model
    target: Model
    """The model that is to be made."""
    seed: int
    context: int
    """Tokens per sequence that the target is trained on."""
    calibration_context: int
    """Tokens per sequence that statistics are taken on."""
    statistics: Callable[[], Moments]
    """Takes statistics of the source on the calibration text, in one pass. Raises InputError where there is none."""
    batch: Callable[[int], Batch]
    """Gives the batch of a step of the target's training."""

    def values(self, weight: Weight) -> torch.Tensor:
        """A weight of the source, float32, unfused, all layers stacked: ``(layers or 1, *sizes)``."""
        import torch

        model = self.model
        parameters = [model.parameter(weight, layer) for layer in range(model.weight_layers(weight))]
        return torch.stack([self.source.read(p, whole(p.sizes)).float() for p in parameters])

    def named(self, values: Mapping[Weight, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Stacked weights of the target as the tensors of its files, by name."""
        return {
            p.name: values[weight][layer].reshape(p.shape).contiguous() for weight, layer, p in self.target.parameters()
        }


@dataclass(frozen=True, kw_only=True)
class Made:
    """Weights, by name and in the shape of the target's files."""

    weights: dict[str, torch.Tensor]
    flops: float = 0.0
    """FLOPs that making the weights took, besides arithmetic on the weights alone."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Facts for the record, as plain data."""


class Make(Protocol):
    def __call__(self, given: Given) -> Made: ...


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """A published way to make one model of another: called with both, it gives the rule that leads from one to the
    other. Raises PlanError where there is none."""

    rule: Callable[[Model, Model], Rule]
    """Makes the rule of a source and a target."""
    layers_only: bool = False
    """Whether it speaks of layers alone, and so can be joined to a baseline about widths."""

    def __call__(self, source: Model, target: Model) -> Rule:
        return self.rule(source, target)


class Moments(Protocol):
    """Statistics of a source, as ``fit.Statistics`` has them."""

    @property
    def tokens(self) -> int: ...

    @property
    def similarity(self) -> npt.NDArray[np.float64]: ...

    def moment(self, name: str, layer: int = 0) -> npt.NDArray[np.float64]: ...

    def mean(self, name: str, layer: int = 0) -> npt.NDArray[np.float64]: ...


class Batch(Protocol):
    """Training examples, as ``train.objectives.Examples`` has them."""

    @property
    def inputs(self) -> Mapping[str, torch.Tensor]: ...

    @property
    def n_labels(self) -> int: ...

    def __len__(self) -> int: ...

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Summed over all labels."""


def changed(source: Model, target: Model) -> dict[str, tuple[int, int]]:
    """Axes whose size changes: before and after."""
    return {axis: (n, target.sizes[axis]) for axis, n in source.sizes.items() if target.sizes[axis] != n}


def only_grows(what: str, source: Model, target: Model) -> None:
    """Raise PlanError where an axis shrinks."""
    for axis, (before, after) in changed(source, target).items():
        if after < before:
            raise PlanError(f"axis '{axis}' ({before} → {after}): {what} only grows; leave it out")


def only_shrinks(what: str, source: Model, target: Model) -> None:
    """Raise PlanError where an axis grows."""
    for axis, (before, after) in changed(source, target).items():
        if after > before:
            raise PlanError(f"axis '{axis}' ({before} → {after}): {what} only shrinks; leave it out")


def refuse_axes(what: str, source: Model, target: Model, *axes: str) -> None:
    """Raise PlanError where one of these changes its size."""
    for axis, (before, after) in changed(source, target).items():
        if axis in axes:
            raise PlanError(f"axis '{axis}' ({before} → {after}): {what} says nothing of it; keep its size")
