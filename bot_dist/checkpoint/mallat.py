"""A store with details, read as the tensors of the original shape that its bands make side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from bot_dist.axes import Parameter, Range
from bot_dist.checkpoint.reader import CheckpointReader
from bot_dist.families import Model, Weight
from bot_dist.plan import DETAILS, Details
from bot_dist.sharding import Box, box_shape

if TYPE_CHECKING:
    import torch


class MallatSource:
    """The bands of a store in Mallat's layout: along every restored axis first the approximation, then the detail.

    ``model`` has the original sizes along the restored axes and the stored ones elsewhere. Implements the ``Source``
    protocol; what the approximation was multiplied by for the sake of a restored axis is taken back here.
    """

    whole_rows = False

    def __init__(self, reader: CheckpointReader, details: Details, model: Model) -> None:
        self.reader, self.details, self.model = reader, details, model
        self.url, self.config = reader.url, model.config
        self._stored = Model(model.family, reader.config)
        self._weights: dict[str, tuple[Weight, int]] = {p.name: (w, layer) for w, layer, p in model.parameters()}

    def check(self, model: Model) -> None:
        self.reader.check(self._stored)

    def dtype(self, parameter: Parameter) -> torch.dtype:
        return self.reader.dtype(self._stored.parameter(self._weights[parameter.name][0]))

    def storage_bytes(self, parameter: Parameter) -> int:
        return parameter.size * self.dtype(parameter).itemsize

    def learning_rate_factor(self, parameter: Parameter) -> float:
        return self.reader.learning_rate_factor(self._stored.parameter(self._weights[parameter.name][0]))

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        import torch

        result = torch.empty(box_shape(box), dtype=self.dtype(parameter))
        self.read_into(parameter, box, result)
        return result

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        weight, layer = self._weights[parameter.name]
        axes = tuple(use.axis for use in weight.uses)
        box = ((layer, layer + 1), *box) if weight.layered else box
        axes = ("layer", *axes) if weight.layered else axes
        into = into[None] if weight.layered else into
        undone = self.details.modules[weight.name]
        restored = [spec is not None and spec.policy != "diagonal" for _, spec in undone.operators]
        sides = [list(self._parts(*side)) for side in zip(axes, restored, box, strict=True)]
        for parts in itertools.product(*sides):
            band = "".join(letter for letter, _, _ in parts)
            place = into[tuple(place for _, _, place in parts)]
            self._band(weight, band, tuple(r for _, r, _ in parts), place)
            scale = math.prod(f for axis, f in undone.factors.items() if band[axes.index(axis)] == "a")
            if scale != 1:
                shift = 0.0 if "d" in band else weight.offset * (scale - 1)
                place.copy_((place.float() - shift) / scale)

    def provenance(self) -> dict[str, Any]:
        return self.reader.provenance()

    def _parts(self, axis: str, restored: bool, wanted: Range) -> Iterator[tuple[str, Range, slice]]:
        """The approximation's and the detail's part of a range: indices within the band, and where they are put."""
        n = self._stored.sizes[axis] if restored else self.model.sizes[axis]
        for letter, origin, (start, stop) in (
            ("a", 0, (wanted[0], min(wanted[1], n))),
            ("d", n, (max(wanted[0], n), wanted[1])),
        ):
            if start < stop:
                yield letter, (start - origin, stop - origin), slice(start - wanted[0], stop - wanted[0])

    def _band(self, weight: Weight, band: str, box: Box, into: torch.Tensor) -> None:
        if "d" in band:
            self.reader.read_into(self.reader.parameter(f"{DETAILS}{weight.name}/{band}"), box, into)
        elif weight.layered:
            (layer, _), *within = box
            self.reader.read_into(self._stored.parameter(weight, layer), tuple(within), into[0])
        else:
            self.reader.read_into(self._stored.parameter(weight), box, into)
