"""The matrices that ``plan.fitted`` names, made from statistics.

Each fit belongs to one axis, gives its matrices one layer at a time, and remembers what a user wants to know of them.
Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast

import numpy as np
import numpy.typing as npt

from bot_dist.fit.statistics import Statistics
from bot_dist.fit.weight_only import WeightStatistics, weight_values
from bot_dist.formats.source import Source
from bot_dist.model import Model, Weight
from bot_dist.operators import klt as bases
from bot_dist.operators import lifting
from bot_dist.plan.fitted import norm_bias
from bot_dist.plan.fitted_names import FittedName, owner_of

Array = npt.NDArray[np.float64]


class AxisFit(Protocol):
    """The operators along one axis."""

    def matrix(self, name: FittedName, layer: int) -> Array:
        """A matrix ``(n_target, n_source)``, or the ``(n_target,)`` source indices that are kept."""

    def facts(self) -> dict[str, Any]:
        """Facts about the fit, as plain data for events and reports."""


class Apart(AbstractContextManager[None]):
    """Fits of several axes, each on its own."""

    def __init__(self, fits: Mapping[str, AxisFit]) -> None:
        self._fits = fits

    def run(self) -> None:
        """Do nothing: each fit is made from statistics that are there already."""

    def matrix(self, name: FittedName, layer: int) -> Array:
        return self._fits[name.axis].matrix(name, layer)

    def facts(self) -> dict[str, Any]:
        return {axis: fit.facts() for axis, fit in self._fits.items()}

    def __exit__(self, *_: object) -> None:
        pass


@dataclass(frozen=True, kw_only=True)
class Given:
    """The inputs that fits are made from."""

    source: Source
    """The source of the weights: that of the model which the statistics are of."""
    model: Model
    statistics: Statistics | WeightStatistics
    ridge: float
    """Ridge of least squares, over the mean square of what is kept."""
    predicts: bool = True
    """Whether what is dropped is predicted from what is kept."""
    averaged: bool = False
    """Whether the target's blocks are averages of blocks that differ."""

    def weight(self, weight: Weight, layer: int = 0) -> Array:
        """One layer of a weight, unfused, in float64."""
        return weight_values(self.source, self.model, weight, layer)

    def predictor(self, moment: Array, kept: lifting.Indices, dropped: lifting.Indices) -> Array:
        """The matrix ``(n_dropped, n_kept)`` that predicts the dropped coordinates of a signal with this moment
        ``(n, n)``."""
        if not self.predicts:
            return np.zeros((len(dropped), len(kept)))
        return lifting.predictor(moment, kept, dropped, self.ridge)

    def with_norm(self, read: Array, norm: str, layer: int) -> Array:
        """The operator ``read`` ``(n_target, n)`` followed by a norm: by its weight over ``gain``, and by its bias,
        which is constant in the target while the mean of what reads it is what the bias would have given."""
        parts = {
            w.name.endswith(".bias"): self.weight(w, layer) + w.offset
            for w in self.model.weights
            if self.model.family.norm_of(w) == norm
        }
        bias = parts.get(True, 0.0) / (norm_bias(len(read)) * len(read))
        return read * (parts[False] / self.gain(norm, layer)) + bias

    def gain(self, norm: str, layer: int) -> float:
        """The factor of a norm in the target, the same in all coordinates: the root mean square of the source's weight
        (where blocks are averaged, that of all of them), as the nearest power of two from 2⁻⁸ to 2⁸. No dtype rounds
        these, nor them less 1; it is 1 where there is no size to keep."""
        weight = self._weight_of(norm)
        layers = range(self.model.weight_layers(weight)) if self.averaged else [layer]
        size = math.sqrt(np.mean([np.mean(np.square(self.weight(weight, i) + weight.offset)) for i in layers]))
        return 2.0 ** max(-8, min(8, round(math.log2(size)))) if 0 < size < math.inf else 1.0

    def stored_gain(self, norm: str, layer: int) -> Array:
        """The number, a scalar, by which the norm's weight holds ``gain``."""
        return np.array(self.gain(norm, layer) - self._weight_of(norm).offset)

    def _weight_of(self, norm: str) -> Weight:
        parts = (w for w in self.model.weights if self.model.family.norm_of(w) == norm)
        return next(w for w in parts if not w.name.endswith(".bias"))

    def reading(self, weight: Weight, layer: int) -> Array:
        """The output of a map that reads units or heads, of each of their coordinates: ``(n, out)``."""
        along = [i for i, use in enumerate(weight.uses) if use.role == "read" or use.axis == "head_dim"]
        values = np.moveaxis(self.weight(weight, layer), along, range(len(along)))
        n = math.prod(values.shape[: len(along)])
        return cast(Array, values.reshape(n, -1))


@dataclass(frozen=True, kw_only=True)
class Rotation:
    """The residual width in its Karhunen–Loève basis.

    The ``n_target`` leading coordinates are kept, and each norm's readers see the others as the kept ones predict them
    there: ``√(n_s/n_t) · A_read · diag(g)``, with ``A_read`` of ``lifting.reading`` and g the norm's weight over
    its gain.
    """

    given: Given
    n_target: int
    errors: dict[str, list[float]] = field(default_factory=dict)
    """Share of the energy that stays unexplained, by norm and layer."""

    @cached_property
    def _pooled(self) -> Array:
        """Second moment of what norms see, ``(n, n)``, the mean over all of them."""
        norms = _norms(self.given.model)
        total = self.given.statistics.moment(*norms[0])
        for norm in norms[1:]:
            total = total + self.given.statistics.moment(*norm)
        return total / len(norms)

    @cached_property
    def _basis(self) -> bases.Basis:
        return bases.klt(self._pooled)

    @cached_property
    def isometry(self) -> Array:
        """The isometry ``(n_target, n)`` onto the kept coordinates of the stream."""
        if self.given.model.family.norm == "layer":
            return bases.isometry_centred(self._pooled, self.n_target)
        return bases.isometry(self._basis, self.n_target)

    def matrix(self, name: FittedName, layer: int) -> Array:
        if name.part == "write":
            return self.isometry
        norm = name.owner
        moment = self.given.statistics.moment(norm, layer)
        read = lifting.reading(moment, self.isometry, self.given.ridge)
        self.errors.setdefault(norm, []).append(_unexplained(moment, self.isometry, read))
        return self.given.with_norm(math.sqrt(len(moment) / self.n_target) * read, norm, layer)

    def facts(self) -> dict[str, Any]:
        return {**_spectrum(self._basis.energies, self.n_target), "errors": self.errors}


@dataclass(frozen=True, kw_only=True)
class Coordinates:
    """The coordinates of the residual width that have the most energy, and the others as these predict them in what
    each map reads."""

    given: Given
    n_target: int
    errors: dict[str, list[float]] = field(default_factory=dict)
    """Share of the energy that stays unexplained, by map and layer."""

    @cached_property
    def isometry(self) -> Array:
        """The isometry ``(n_target, n)`` onto the kept coordinates of the stream."""
        return np.eye(len(self._energies))[self._split[0]]

    @cached_property
    def _energies(self) -> Array:
        return energies(self.given)

    @cached_property
    def _split(self) -> tuple[lifting.Indices, lifting.Indices]:
        return lifting.split(self._energies, self.n_target)

    def matrix(self, name: FittedName, layer: int) -> Array:
        kept, dropped = self._split
        if name.part == "kept":
            return kept.astype(np.float64)
        reader = name.owner
        moment = self.given.statistics.moment(reader, layer)
        read = lifting.lifted(len(moment), kept, dropped, self.given.predictor(moment, kept, dropped))[1]
        self.errors.setdefault(reader, []).append(_unexplained(moment, self.isometry, read))
        return read

    def facts(self) -> dict[str, Any]:
        return {**_spectrum(np.sort(self._energies)[::-1], self.n_target), "errors": self.errors}


def energies(given: Given) -> Array:
    """The energy of each coordinate of the residual stream, as the norms see it, ``(n,)``."""
    norms = [norm for norm in _norms(given.model) if norm[0] in given.statistics.names]
    return cast(Array, sum(np.diag(given.statistics.moment(*norm)) for norm in norms))


def _norms(model: Model) -> list[tuple[str, int]]:
    """The norms of the residual stream, with their layers."""
    names = {name: w for w in model.weights if (name := model.family.norm_of(w)) and not w.into_residual}
    return [(name, layer) for name, w in names.items() for layer in range(model.weight_layers(w))]


def _unexplained(moment: Array, isometry: Array, read: Array) -> float:
    """The share of a signal's energy that is lost where ``readᵀ · isometry · x`` stands for it."""
    cross, total = isometry @ moment, np.trace(moment)
    left = total - 2 * np.sum(read * cross) + np.sum((cross @ isometry.T @ read) * read)
    return max(0.0, float(left / total))


def _spectrum(energies: Array, kept: int) -> dict[str, Any]:
    """Energies in descending order as shares of all."""
    shares = energies / energies.sum()
    return {"spectrum": shares.tolist(), "kept": kept, "energy_kept": float(shares[:kept].sum())}


@dataclass(frozen=True, kw_only=True)
class ByReader:
    """An axis that is read by some maps of every block, each of which has a fit of its own."""

    fits: Mapping[str, AxisFit]
    """Fits of the readers, by module."""

    def matrix(self, name: FittedName, layer: int) -> Array:
        return self.fits[name.owner].matrix(name, layer)

    def facts(self) -> dict[str, Any]:
        """Facts of all readers, where each has its own; else those of the one that changes most."""
        every = [fit.facts() for fit in self.fits.values()]
        most = max(every, key=lambda facts: int(facts.get("copies", 0)))
        errors = {reader: lost for facts in every for reader, lost in facts.get("errors", {}).items()}
        return {**most, "errors": errors} if errors else most


@dataclass(frozen=True, kw_only=True)
class Lifted:
    """Units or heads that a map of every block reads, split by how much they put out: the dropped ones are predicted by
    the kept ones, and what reads them takes the prediction."""

    given: Given
    axis: str
    """The axis, ``mlp`` or ``heads``."""
    reader: Weight
    """The map that reads them."""
    n_target: int
    """Number of units that are kept; for ``heads``, the number of coordinates of all kept heads together."""
    kv_target: int = 0
    """Key/value heads that are kept, where several query heads share one."""
    errors: list[float] = field(default_factory=list)
    """The energy of what the reader puts out that is lost, over all of it, by layer."""
    _cache: dict[int, tuple[lifting.Indices, Array]] = field(default_factory=dict)

    def matrix(self, name: FittedName, layer: int) -> Array:
        if layer not in self._cache:
            self._cache.clear()  # layers are asked for one after another, each name anew
            self._cache[layer] = self.split(layer, self.given.statistics.moment(owner_of(self.reader.name), layer))
        kept, read = self._cache[layer]
        return read if name.part == "read" else self.selected(name, kept)

    def selected(self, name: FittedName, kept: lifting.Indices) -> Array:
        """The units or heads of a weight that are kept, where the reader keeps these coordinates."""
        if self.axis == "mlp":
            return kept.astype(np.float64)
        sizes = self.given.model.sizes
        heads = kept[:: sizes["head_dim"]] // sizes["head_dim"]
        if name.part == "keyvalue":
            return np.unique(heads // sizes["group"]).astype(np.float64)
        return heads.astype(np.float64)

    def split(self, layer: int, moment: Array) -> tuple[lifting.Indices, Array]:
        """The kept coordinates, and the matrix ``(n_target, n)`` of what reads them, where its input has this
        moment."""
        given, weight = self.given, self.reader
        n, values = len(moment), given.reading(weight, layer)
        kept, dropped = self._choose(moment, values)
        predictor = given.predictor(moment, kept, dropped)
        missed = values.copy()  # of what is dropped, all but what the kept ones take over
        missed[kept] = -predictor.T @ values[dropped]
        self.errors.append(lifting.energy(moment, missed.T) / lifting.energy(moment, values.T))
        return kept, lifting.lifted(n, kept, dropped, predictor)[1]

    def _choose(self, moment: Array, values: Array) -> tuple[lifting.Indices, lifting.Indices]:
        """Split coordinates into kept and dropped, by what is lost with units or heads where all others take over their
        part as far as they can; or, without prediction, where nothing takes it over."""
        sizes = self.given.model.sizes
        inner, n = (1 if self.axis == "mlp" else sizes["head_dim"]), len(moment)
        kept = np.arange(n)
        if self.kv_target:  # whole groups first
            group = sizes["group"] * inner
            kept = lifting.expanded(self._best(moment, values, self.kv_target, group, 1), group)
            moment, values = moment[np.ix_(kept, kept)], values[kept]
        units = self._best(moment, values, self.n_target // inner, inner, self.kv_target or 1)
        kept = kept[lifting.expanded(units, inner)]
        return kept, np.setdiff1d(np.arange(n), kept)

    def _best(self, moment: Array, values: Array, n_target: int, inner: int, runs: int) -> lifting.Indices:
        if self.given.predicts:
            return lifting.most_telling(moment, values.T, self.given.ridge, n_target, inner, runs)
        costs = lifting.loudness(moment, values.T, inner).reshape(runs, -1)
        best = [lifting.split(run, n_target // runs)[0] + i * len(run) for i, run in enumerate(costs)]
        return np.concatenate(best)

    def facts(self) -> dict[str, Any]:
        return {"kept": self.n_target, "errors": {owner_of(self.reader.name): self.errors}}
