"""How one parameter lies on storage: shards (what one writer writes) and inner chunks (what is checked and read)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bot_dist.errors import CheckpointError
from bot_dist.tensors import Box, chunk_shape, grid, whole
from bot_dist.tensors.axes import ITEMSIZE, Parameter

SHARD_BYTES = 2**26
"""Default size of a shard, in bytes."""
_PADDED = 2**12
"""Largest shard, in elements, that may be far larger than its parameter; any other is less than twice as long along
each axis."""


@dataclass(frozen=True, kw_only=True)
class StoredParameter:
    """A parameter with its dtype and its regular grids of shards and inner chunks, over the unfused axes."""

    parameter: Parameter
    dtype: str
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    learning_rate_factor: float = 1.0
    """Factor of Adam's learning rate for this parameter, and divisor of its weight decay, which its change of size asks
    for."""

    def __post_init__(self) -> None:
        assert self.dtype in ITEMSIZE, self.dtype
        assert all(s % c == 0 for s, c in zip(self.shard, self.chunk, strict=True)), self

    @property
    def nbytes(self) -> int:
        """Bytes of the parameter's values, without padding."""
        return self.parameter.size * ITEMSIZE[self.dtype]

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one inner chunk; a chunk that the parameter ends in is padded to it."""
        return math.prod(self.chunk) * ITEMSIZE[self.dtype]

    @property
    def grid_shape(self) -> tuple[int, ...]:
        """The number of inner chunks along each axis."""
        return tuple(-(-n // c) for n, c in zip(self.parameter.sizes, self.chunk, strict=True))

    def shards(self) -> Iterator[Box]:
        """The shards, in row-major order, clipped to the parameter."""
        return grid(whole(self.parameter.sizes), self.shard)

    def chunks(self, box: Box | None = None) -> Iterator[Box]:
        """Inner chunks that meet ``box`` (all, by default), clipped to the parameter but not to the box."""
        return grid(self.expand(box) if box is not None else whole(self.parameter.sizes), self.chunk)

    def expand(self, box: Box) -> Box:
        """The smallest box of whole inner chunks around ``box``."""
        return tuple(
            (start // c * c, min(n, -(-stop // c) * c))
            for (start, stop), c, n in zip(box, self.chunk, self.parameter.sizes, strict=True)
        )

    def shards_of(self, box: Box) -> Iterator[Box]:
        """The shards that meet ``box``, clipped to the parameter but not to the box."""
        for part in grid(box, self.shard):
            yield tuple(
                (start // s * s, min(n, start // s * s + s))
                for (start, _), s, n in zip(part, self.shard, self.parameter.sizes, strict=True)
            )

    def chunk_index(self, chunk: Box) -> tuple[int, ...]:
        """The place of an inner chunk in the grid of all inner chunks."""
        return tuple(start // c for (start, _), c in zip(chunk, self.chunk, strict=True))

    def chunk_key(self, chunk: Box) -> str:
        """Name of an inner chunk: its grid index, ``"0.3.0"``."""
        return ".".join(map(str, self.chunk_index(chunk)))

    def shard_key(self, shard: Box) -> str:
        """Name of a shard in the folder of its array, such as ``"c.0.3.0"``. There are no folders in between, because
        making them takes longer than writing the shards."""
        return ".".join(["c", *(str(start // s) for (start, _), s in zip(shard, self.shard, strict=True))])

    def to_json(self) -> dict[str, Any]:
        p = self.parameter
        return {
            "axes": p.axes,
            "sizes": p.sizes,
            "dims": p.dims,
            "dtype": self.dtype,
            "shard": self.shard,
            "chunk": self.chunk,
            "learning_rate_factor": self.learning_rate_factor,
        }

    @staticmethod
    def from_json(name: str, data: Mapping[str, Any]) -> StoredParameter:
        try:
            axes, sizes, dims = tuple(data["axes"]), tuple(data["sizes"]), tuple(data["dims"])
            shard, chunk, factor = tuple(data["shard"]), tuple(data["chunk"]), data["learning_rate_factor"]
            if not all(type(axis) is str for axis in axes):
                raise ValueError("axes that are no names")
            if not all(type(n) is int and n > 0 for n in (*sizes, *shard, *chunk)):
                raise ValueError("sizes that are no whole numbers above 0")
            if not all(type(n) is int and n >= 0 for n in dims):
                raise ValueError("dimensions that are made of no whole number of axes")
            if math.prod(shard) > max(_PADDED, 2 ** len(sizes) * math.prod(sizes)):
                raise ValueError("a shard that is far larger than the parameter")
            if type(factor) not in (int, float) or not 0 < factor < math.inf:
                raise ValueError("a factor that is no number above 0")
            return StoredParameter(
                parameter=Parameter(name=name, axes=axes, sizes=sizes, dims=dims),
                dtype=data["dtype"],
                shard=shard,
                chunk=chunk,
                learning_rate_factor=factor,
            )
        except (KeyError, TypeError, ValueError, AssertionError) as error:
            raise CheckpointError(f"manifest: the entry of {name} is malformed ({error!r})") from None


def array_layout(name: str, sizes: Sequence[int], axes: Sequence[str], dtype: str) -> StoredParameter:
    """An array that is no parameter of a model. Along a first axis ``layer`` each shard has one index at most, so that
    layers can be written one by one."""

    def parameter(sizes: Sequence[int]) -> Parameter:
        return Parameter(name=name, axes=tuple(axes), sizes=tuple(sizes), dims=(1,) * len(axes))

    one = [1, *sizes[1:]] if len(axes) > 1 and axes[0] == "layer" else sizes
    return dataclasses.replace(store_layout(parameter(one), dtype=dtype), parameter=parameter(sizes))


def store_layout(parameter: Parameter, learning_rate_factor: float = 1.0, *, dtype: str = "float32") -> StoredParameter:
    """Shards and chunks for a parameter that no plan lays out: shards of about 64 MiB, cut along the first axes."""
    shard = list(parameter.sizes)
    for i, n in enumerate(shard):
        parts = -(-math.prod(shard) * ITEMSIZE[dtype] // SHARD_BYTES)
        if parts <= 1:
            break
        exact = -(-n // min(parts, n))
        shard[i] = min(n, -(-exact // 64) * 64 if exact >= 64 else exact)
    return StoredParameter(
        parameter=parameter,
        dtype=dtype,
        shard=tuple(shard),
        chunk=chunk_shape(shard, ITEMSIZE[dtype]),
        learning_rate_factor=learning_rate_factor,
    )
