"""A store with details, read as the tensors of the original shape that its bands make side by side."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bot_dist.model import Model, Weight
from bot_dist.plan import DETAILS, Details, Shrunk
from bot_dist.store.reader import CheckpointReader
from bot_dist.tensors import Box, box_shape, box_size, flat_boxes
from bot_dist.tensors.axes import Parameter, Range

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class _Part:
    """A part of one band, along the axes of one operator."""

    letters: str
    """Letters of the part's band, one per axis."""
    box: Box
    """Box of the part within the band."""
    place: tuple[slice, ...]
    """Place of the part in the box that is asked for."""


class MallatSource:
    """The bands of a store in Mallat's layout: along every restored axis first the approximation, then the detail.

    Axes that one operator changed together are laid out flat along the first of them, all others being 1. ``model`` has
    the original sizes along the restored axes and the stored ones elsewhere. Implements the ``Source``
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
        wanted = iter(box)
        sides = [[*self._parts(shrunk, [next(wanted) for _ in shrunk.axes])] for shrunk in undone.operators]
        for parts in itertools.product(*sides):
            band = "".join(part.letters for part in parts)
            within = tuple(r for part in parts for r in part.box)
            place = into[tuple(s for part in parts for s in part.place)]
            self._band(weight, band, within, place.view(box_shape(within)))
            scale = math.prod(f for axis, f in undone.factors.items() if band[axes.index(axis)] == "a")
            if scale != 1:
                shift = 0.0 if "d" in band else weight.offset * (scale - 1)
                place.copy_((place.float() - shift) / scale)

    def provenance(self) -> dict[str, Any]:
        return self.reader.provenance()

    def _parts(self, shrunk: Shrunk, wanted: Sequence[Range]) -> Iterator[_Part]:
        """The approximation's and the detail's part of the ranges along an operator's axes."""
        if shrunk.spec is None:
            yield _Part(letters="a" * len(wanted), box=tuple(wanted), place=tuple(_from(r, r[0]) for r in wanted))
            return
        (first, last), *ones = wanted
        sizes = [self._stored.sizes[axis] for axis in shrunk.axes]
        n = 0 if shrunk.constant else math.prod(sizes)
        more = tuple(slice(None) for _ in ones)
        offset = first
        for box in flat_boxes(sizes, first, min(last, n)):
            stop = offset + box_size(box)
            yield _Part(letters="a" * len(wanted), box=box, place=(_from((offset, stop), first), *more))
            offset = stop
        if (start := max(first, n)) < last:
            detail = ((start - n, last - n), *ones)
            yield _Part(letters="d" * len(wanted), box=detail, place=(_from((start, last), first), *more))

    def _band(self, weight: Weight, band: str, box: Box, into: torch.Tensor) -> None:
        if "d" in band:
            self.reader.read_into(self.reader.parameter(f"{DETAILS}{weight.name}/{band}"), box, into)
        elif weight.layered:
            (layer, _), *within = box
            self.reader.read_into(self._stored.parameter(weight, layer), tuple(within), into[0])
        else:
            self.reader.read_into(self._stored.parameter(weight), box, into)


def _from(part: Range, origin: int) -> slice:
    return slice(part[0] - origin, part[1] - origin)
