"""The plan of one axis of a module: how it is resampled, and how its target is cut into tiles."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from bot_dist.operators import Operator, OperatorSpec, build_operator, spec_to_json
from bot_dist.plan.rules import Fill
from bot_dist.tensors import Cut
from bot_dist.tensors.axes import Range

Copies = Literal["", "apart", "alike"]
"""How noise treats copies along an axis; empty where there is none on them."""


@dataclass(frozen=True, kw_only=True)
class AxisPlan:
    """One axis of one module: how it is resampled, and how its target is cut into tiles."""

    axis: str
    n_source: int
    n_target: int
    spec: OperatorSpec | None
    """The operator along the axis; None where that of an axis before takes this one along (as one composite axis, such
    as ``heads × head_dim``)."""
    tile: int
    """Target indices per step: a multiple of those per shard, or all."""
    cut: Cut | None = None
    """How tensor parallelism cuts this axis, and with it the shards; None where it does not."""
    spans: int = 1
    """How many axes the operator acts on together, from this one on."""
    copies: Copies = ""
    """How noise treats the copies that the axis grows by. Those that the weight reads get different noise, so that they
    are told apart; those that it writes into the residual stream get the same, so that they stay the same to the last
    bit."""
    fill: Fill = "neutral"
    """The content of target indices that take nothing from the source."""
    centred: bool = False
    """Whether the mean over the source indices is subtracted before the operator is applied."""

    @property
    def changes(self) -> bool:
        """Whether an operator is applied along the axis."""
        return self.spec is not None and not self.spec.is_identity

    @property
    def alone(self) -> bool:
        """Whether the operator is applied by itself, since it is a fitted one or acts on several axes together: before
        all others are applied in one pass, or after them where it undoes another."""
        return self.spec is not None and (self.spec.fitted or self.spans > 1)

    @property
    def restores(self) -> bool:
        """Whether the operator undoes one that has shrunk the axis."""
        return self.spec is not None and self.spec.restores

    @property
    def constant(self) -> bool:
        """Whether the operator takes nothing from the source."""
        return self.spec is not None and self.spec.takes_nothing

    @property
    def shard(self) -> int:
        """Target indices per shard."""
        return self.cut.tile if self.cut is not None else self.tile

    def owner(self, start: int) -> int | None:
        """The tensor-parallel rank that the tile from target index ``start`` on belongs to; None where it belongs to
        none."""
        return self.cut.owner(start) if self.cut is not None and self.cut.tile == self.tile else None

    def tiles(self) -> list[Range]:
        n = self.n_target
        return [(start, min(n, start + self.tile)) for start in range(0, n, self.tile)]

    def operator(self) -> Operator:
        assert self.spec is not None, self
        return build_operator(self.spec)

    def needed(self, target: Range) -> tuple[Range, ...]:
        """Source ranges to read for a target range: the operator's support, and the part of the source that the
        target range stands for (so that the steps' energies add up to the source's)."""
        if self.spec is None or self.centred or self.alone:
            return ((0, self.n_source),)
        if self.spec.is_identity:
            return (target,)
        ranges = sorted((*self.operator().support(target), self.core(target)))
        merged: list[Range] = []
        for start, stop in ranges:
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
            elif stop > start:
                merged.append((start, stop))
        return tuple(merged)

    def core(self, target: Range) -> Range:
        """The source range that a target range stands for; over all tiles, a partition of the source."""
        return target[0] * self.n_source // self.n_target, target[1] * self.n_source // self.n_target

    def to_json(self) -> dict[str, Any]:
        """All about the axis that decides what is written, as plain data."""
        return {**vars(self), "spec": self.spec and spec_to_json(self.spec), "cut": self.cut and vars(self.cut)}
