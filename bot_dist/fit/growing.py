"""Growing by fitted operators: units, heads or coordinates that are copied, and a rotation before new coordinates."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from bot_dist.fit.axis_fits import Array, Given, Rotation, energies
from bot_dist.model import Weight
from bot_dist.operators import lifting
from bot_dist.operators.origins import spread
from bot_dist.plan.fitted_names import FittedName, owner_of


@dataclass(frozen=True, kw_only=True)
class Lengthened:
    """The residual width in its Karhunen–Loève basis, with new coordinates at the end of least energy, which nothing is
    written to."""

    given: Given
    n_target: int

    @cached_property
    def _rotation(self) -> Rotation:
        return Rotation(given=self.given, n_target=self.given.model.sizes["embed"])

    def matrix(self, name: FittedName, layer: int) -> Array:
        """The matrix ``(n_target, n)``: rows of zeros after those of the rotation, which predicts nothing."""
        rotation, n = self._rotation, self._rotation.n_target
        matrix = rotation.isometry
        if name.part == "read":
            matrix = self.given.with_norm(np.sqrt(n / self.n_target) * matrix, name.owner, layer)
        return np.concatenate([matrix, np.zeros((self.n_target - n, n))])

    def facts(self) -> dict[str, Any]:
        return {**self._rotation.facts(), "kept": self.n_target}


@dataclass(frozen=True, kw_only=True)
class SpreadCoordinates:
    """Coordinates of the residual width, those of most energy copied most often."""

    given: Given
    n_target: int

    def matrix(self, name: FittedName, layer: int) -> Array:
        """The coordinate ``(n_target,)`` of the source that each of the target copies."""
        return spread(energies(self.given), self.n_target).astype(np.float64)

    def facts(self) -> dict[str, Any]:
        return {"copies": _most(spread(energies(self.given), self.n_target))}


@dataclass(frozen=True, kw_only=True)
class SpreadUnits:
    """Units or heads that a map of every block reads, those that put out most copied most often; of grouped query heads
    first whole groups, then each group's own."""

    given: Given
    axis: str
    """The axis, ``mlp`` or ``heads``."""
    reader: Weight
    """The map that reads them."""
    sizes: dict[str, int]
    """Sizes of the target by axis."""
    _copies: list[int] = field(default_factory=list)

    def matrix(self, name: FittedName, layer: int) -> Array:
        """The unit or head ``(n_target,)`` of the source that each of the target copies."""
        given, before = self.given, self.given.model.sizes
        moment = given.statistics.moment(owner_of(self.reader.name), layer)
        values = given.reading(self.reader, layer)
        if self.axis == "mlp" or "kv_heads" not in before:
            inner = 1 if self.axis == "mlp" else before["head_dim"]
            axis = "mlp" if self.axis == "mlp" else "heads"
            return self._noted(spread(_amplitudes(moment, values, inner), self.sizes[axis]))
        group = before["group"]
        whole = spread(_amplitudes(moment, values, group * before["head_dim"]), self.sizes["kv_heads"])
        if name.part == "keyvalue":
            return whole.astype(np.float64)
        heads = _amplitudes(moment, values, before["head_dim"]).reshape(-1, group)
        return self._noted(np.concatenate([spread(heads[i], self.sizes["group"]) + i * group for i in whole]))

    def _noted(self, copied: lifting.Indices) -> Array:
        self._copies.append(_most(copied))
        return copied.astype(np.float64)

    def facts(self) -> dict[str, Any]:
        return {"copies": max(self._copies)}


def _amplitudes(moment: Array, values: Array, inner: int) -> Array:
    """Root mean square of what each unit puts out: of a copy that is read with 1/c it is 1/c."""
    amplitudes: Array = np.sqrt(np.maximum(lifting.loudness(moment, values.T, inner), 0.0))
    return amplitudes


def _most(indices: lifting.Indices) -> int:
    """The number of times that the most copied one is there."""
    return int(np.bincount(indices).max())
