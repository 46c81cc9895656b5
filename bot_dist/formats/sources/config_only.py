"""A model's configuration in place of a checkpoint: enough to plan with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

from bot_dist.errors import InputError
from bot_dist.formats.sources import SourceFormat
from bot_dist.formats.sources.safetensors import read_config
from bot_dist.tensors import Box
from bot_dist.tensors.axes import ITEMSIZE, Parameter
from bot_dist.urls import label

if TYPE_CHECKING:
    import torch

    from bot_dist.model import Model


class Shapes:
    """A ``Source`` whose tensors can't be read: the sizes of ``config.json``, all in its dtype (else float32)."""

    whole_rows = True

    def __init__(self, url: str) -> None:
        self.url = url
        self.config: dict[str, Any] = read_config(url.removesuffix("config.json").rstrip("/") or ".", url)
        self._dtype = str(self.config.get("dtype") or self.config.get("torch_dtype") or "float32")
        if self._dtype not in ITEMSIZE:
            raise InputError(f"{label(url)}: dtype {self._dtype!r}, wanted one of {', '.join(ITEMSIZE)}")

    def check(self, model: Model) -> None:
        """Nothing is there that could be wrong."""

    def dtype(self, parameter: Parameter) -> torch.dtype:
        import torch

        return cast("torch.dtype", getattr(torch, self._dtype))

    def storage_bytes(self, parameter: Parameter) -> int:
        return parameter.size * ITEMSIZE[self._dtype]

    def learning_rate_factor(self, parameter: Parameter) -> float:
        return 1.0

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        raise InputError(f"{label(self.url)}: holds no weights; give the checkpoint itself")

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        self.read(parameter, box)

    def provenance(self) -> dict[str, Any]:
        return {"url": label(self.url), "format": "configuration"}


SOURCE = SourceFormat(open=Shapes, ends=("config.json",))
