"""The family's own initialisation as a source, so that training from scratch reads weights like any other run."""

from __future__ import annotations

from typing import Any

import torch

from bot_dist.errors import SourceError
from bot_dist.model import Model, Weight
from bot_dist.tensors import Box, box_shape
from bot_dist.tensors.axes import Parameter
from bot_dist.tensors.random import normal


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
        self._model = model

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
        """The bytes that a parameter takes on storage: 0, for everything is computed."""
        return 0

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        """The box as float32."""
        weight = self._weights[parameter.name]
        shape = box_shape(box)
        if 0 in shape:
            return torch.empty(shape)
        if weight.init in ("ones", "zeros"):
            return torch.full(shape, 1.0 if weight.init == "ones" else 0.0)
        values = normal(f"{self._seed}/{parameter.name}", parameter.sizes, box)
        return torch.from_numpy(values).mul_(self._model.init_std(weight))

    def learning_rate_factor(self, parameter: Parameter) -> float:
        return 1.0

    def provenance(self) -> dict[str, Any]:
        return {"url": self.url, "format": "initial", "files": []}
