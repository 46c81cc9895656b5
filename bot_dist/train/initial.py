"""The family's own initialisation as a source, so that training from scratch reads weights like any other run."""

from __future__ import annotations

import math
from typing import Any

import torch
import xxhash

from bot_dist.axes import Parameter
from bot_dist.errors import SourceError
from bot_dist.families import Model, Weight
from bot_dist.sharding import Box, box_shape

BLOCK = 2**16
"""Flat elements drawn from one generator. Part of the values: another block size gives other weights."""


class InitialSource:
    """Untrained weights of ``model``: normal, scaled-down normal before the residual stream, ones or zeros.

    Every element depends on (seed, parameter name, flat position) alone, however it is read and by whom.
    """

    def __init__(self, model: Model, seed: int) -> None:
        self.url = f"initial:{model.family.name}?seed={seed}"
        self.config: dict[str, Any] = model.config
        self._seed = seed
        self._weights: dict[str, Weight] = {p.name: weight for weight, _, p in model.parameters()}
        self._sizes = {p.name: p.sizes for _, _, p in model.parameters()}
        std = model.config.get(model.family.init_std)
        self._std = 0.02 if std is None else float(std)
        self._residual = 1 / math.sqrt(2 * model.sizes["layer"])

    whole_rows = False

    def check(self, model: Model) -> None:
        """Raise SourceError unless the parameters of ``model`` are those of this source."""
        wanted = {p.name: p.sizes for _, _, p in model.parameters()}
        for name in wanted.keys() | self._sizes.keys():
            if wanted.get(name) != self._sizes.get(name):
                raise SourceError(
                    f"{self.url}: parameter '{name}' has sizes {self._sizes.get(name)}, wanted {wanted.get(name)}; "
                    f"initialise from the configuration of the model that is filled"
                )

    def dtype(self, parameter: Parameter) -> torch.dtype:
        return torch.float32

    def storage_bytes(self, parameter: Parameter) -> int:
        """None are stored: everything is computed."""
        return 0

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        """The box as float32. Draws the flat range from its first element to its last, so thin boxes across a large
        tensor cost as much as the tensor; flat ranges (what ZeRO reads) cost what they hold."""
        weight = self._weights[parameter.name]
        shape = box_shape(box)
        if 0 in shape:
            return torch.empty(shape)
        if weight.init in ("ones", "zeros"):
            return torch.full(shape, 1.0 if weight.init == "ones" else 0.0)
        strides = [math.prod(parameter.sizes[i + 1 :]) for i in range(len(box))]
        first = sum(start * stride for (start, _), stride in zip(box, strides, strict=True))
        last = sum((stop - 1) * stride for (_, stop), stride in zip(box, strides, strict=True))
        std = self._std * (self._residual if weight.init == "residual" else 1.0)
        return self._normal(parameter.name, first, last + 1).mul_(std).as_strided(shape, strides).contiguous()

    def _normal(self, name: str, start: int, stop: int) -> torch.Tensor:
        """Standard normal values of the flat range ``[start, stop)`` of a parameter."""
        values = torch.empty(stop - start)
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            seed = xxhash.xxh3_64_intdigest(f"{self._seed}/{name}/{block}".encode())
            generator = torch.Generator().manual_seed(seed >> 1)
            drawn = torch.randn(BLOCK, generator=generator)
            low, high = max(start, block * BLOCK), min(stop, (block + 1) * BLOCK)
            values[low - start : high - start] = drawn[low - block * BLOCK : high - block * BLOCK]
        return values

    def provenance(self) -> dict[str, Any]:
        return {"url": self.url, "format": "initial", "files": []}
