"""The words everything else is said in: named tensor axes, what a map does along each, and parameters.

An *axis* is a named dimension of a tensor (``layer``, ``embed``, ``kv_heads``, ``group``, ``head_dim``, ``mlp``,
``vocab``, ``position``, ``qkv``). A *parameter* is one named tensor of a checkpoint: its shape there (``(576, 576)``)
and the axes that each of its dimensions is made of (``kv_heads × group × head_dim``, ``embed``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

Role = Literal["write", "read", "pointwise", "fixed", "layer"]
"""The role of an axis in a weight. ``write``: the axis indexes what the weight puts out. ``read``: the weight sums over
it. ``pointwise``: every index has a value that is used by itself (norm weights, positions). ``fixed``: it is never
resampled. ``layer``: it counts the blocks."""

Range = tuple[int, int]
"""Half-open index range ``(start, stop)`` along an axis."""

ITEMSIZE = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes per element of every dtype that a parameter may have."""


@dataclass(frozen=True)
class AxisUse:
    """One axis of a weight, with the role that it has there."""

    axis: str
    role: Role


def write(axis: str) -> AxisUse:
    """The axis indexes what the weight puts out."""
    return AxisUse(axis, "write")


def read(axis: str) -> AxisUse:
    """The weight sums over the axis."""
    return AxisUse(axis, "read")


def pointwise(axis: str) -> AxisUse:
    """Every index of the axis has a value of its own."""
    return AxisUse(axis, "pointwise")


def fixed(axis: str) -> AxisUse:
    """The axis is never resampled."""
    return AxisUse(axis, "fixed")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """One tensor of a checkpoint, seen along its named axes.

    ``axes`` and ``sizes`` give the *unfused* tensor, row-major; ``dims`` says how many consecutive axes make up
    each dimension of the tensor as ``transformers`` stores it, so ``shape`` is the unfused shape regrouped.
    """

    name: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    dims: tuple[int, ...]

    def __post_init__(self) -> None:
        assert len(self.axes) == len(self.sizes) == sum(self.dims), self

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the tensor as ``transformers`` stores it."""
        shape, i = [], 0
        for n in self.dims:
            shape.append(math.prod(self.sizes[i : i + n]))
            i += n
        return tuple(shape)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.sizes)
