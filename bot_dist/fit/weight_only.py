"""Statistics of a model's activations as its weights alone tell them, for where there is nothing to run through it."""

from __future__ import annotations

from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt

from bot_dist.formats.source import Source
from bot_dist.model import Model, Weight
from bot_dist.plan.fitted_names import owner_of
from bot_dist.store import manifest
from bot_dist.tensors import whole

Array = npt.NDArray[np.float64]


class WeightStatistics:
    """Stands for ``Statistics``, as if every map's input were white noise.

    The residual stream then is the sum of what all maps write into it, and a unit's or a head's coordinate is as strong
    as the rows that make it; units predict nothing of each other. Blocks can't be told apart.
    """

    loss = None

    def __init__(self, source: Source, model: Model) -> None:
        self._source, self._model = source, model
        self.names = tuple(w.name.removesuffix(".weight") for w in model.weights if not w.name.endswith(".bias"))
        self._stream = lru_cache(maxsize=1)(self._of_stream)

    @property
    def digest(self) -> str:
        """Digest that identifies the source of the weights."""
        return manifest.digest(self._source.provenance())

    @property
    def similarity(self) -> Array:
        """The same of every block."""
        return np.zeros(self._model.sizes["layer"])

    def moment(self, name: str, layer: int = 0) -> Array:
        """An estimate of the mean of ``x xᵀ``, ``(n, n)``, up to a factor."""
        weight = next(w for w in self._model.weights if w.name.removesuffix(".weight") == name)
        if self._model.family.norm_of(weight):
            return self._stream()
        return np.diag(self._strengths(weight, layer))

    def _of_stream(self) -> Array:
        n = self._model.sizes["embed"]
        total = np.zeros((n, n))
        for weight in self._model.weights:
            along = [i for i, use in enumerate(weight.uses) if use.axis == "embed" and use.role == "write"]
            if not along or weight.kind == "vector":
                continue
            for layer in range(self._model.weight_layers(weight)):
                values = np.moveaxis(weight_values(self._source, self._model, weight, layer), along[0], 0).reshape(
                    n, -1
                )
                share = values.shape[1] if weight.kind == "table" else 1  # one of its rows at a time
                total += values @ values.T / share
        if self._model.family.norm == "layer":  # which subtracts the mean
            total -= total.mean(0)
            total -= total.mean(1, keepdims=True)
        return cast(Array, total * (n / np.trace(total)))

    def _strengths(self, reader: Weight, layer: int) -> Array:
        """Mean squares of a map's input coordinates: of the rows that put them out (of values, for heads)."""
        sizes = self._model.sizes
        if self._model.family.read_with(reader):
            return np.diag(self._stream())
        if any(use.axis == "mlp" for use in reader.uses):
            writers = self._writers(reader, "mlp")
            return cast(Array, np.prod([self._rows(w, layer, "mlp") for w in writers], axis=0))
        axis = "kv_heads" if "kv_heads" in sizes else "heads"
        (values,) = (w for w in self._writers(reader, axis) if owner_of(w.name).rpartition(".")[2] in ("v", "qkv"))
        names = [use.axis for use in values.uses]
        rows = weight_values(self._source, self._model, values, layer)
        if "qkv" in names:
            rows = np.moveaxis(rows, names.index("qkv"), 0)[2]
            names.remove("qkv")
        rows = np.moveaxis(rows, (names.index(axis), names.index("head_dim")), (0, 1))
        strengths = np.square(rows).reshape(*rows.shape[:2], -1).sum(2)  # (heads, head_dim)
        return cast(Array, np.repeat(strengths, sizes.get("group", 1), axis=0).reshape(-1))

    def _writers(self, reader: Weight, axis: str) -> list[Weight]:
        """The maps that put out what ``reader`` reads."""
        return [
            w
            for w in self._model.weights
            if w.layered
            and w.kind == "matrix"
            and any(u.axis == axis and u.role == "write" for u in w.uses)
            and self._model.reader_of(w, axis) == reader
        ]

    def _rows(self, weight: Weight, layer: int, axis: str) -> Array:
        along = [use.axis for use in weight.uses].index(axis)
        values = np.moveaxis(weight_values(self._source, self._model, weight, layer), along, 0)
        return cast(Array, np.square(values).reshape(len(values), -1).sum(1))


def weight_values(source: Source, model: Model, weight: Weight, layer: int) -> Array:
    """A weight of the model, unfused, in float64."""
    parameter = model.parameter(weight, layer)
    return cast(Array, source.read(parameter, whole(parameter.sizes)).double().numpy())
