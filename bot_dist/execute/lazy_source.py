"""Sources that a plan makes of its source, computed where they are read: nothing is stored."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TYPE_CHECKING, Any

from bot_dist.errors import SourceError
from bot_dist.execute.executor import Reader
from bot_dist.model import Model
from bot_dist.plan import REQUESTS, ModulePlan, Step, TransferPlan
from bot_dist.tensors import Box
from bot_dist.tensors.axes import Parameter

if TYPE_CHECKING:
    import torch


class TransformedSource:
    """The target of a plan as a source: a box that is read is transformed then. Implements the ``Source`` protocol.

    It is how statistics of a model are had that is shrunk along some axes already. What is read at once should be small
    enough to be held with the part of the source that it is made of; the plan's memory limit is not looked at.
    """

    whole_rows = True

    def __init__(self, plan: TransferPlan, source: Reader) -> None:
        self.plan, self.source = plan, source
        self.url = f"plan:{plan.digest}"
        self.config: dict[str, Any] = plan.target.config

    @cached_property
    def _modules(self) -> dict[str, tuple[int, int]]:
        """Module and layer of each parameter, by its name."""
        target = self.plan.target
        return {
            target.parameter(module.weight, layer).name: (i, layer)
            for i, module in enumerate(self.plan.modules)
            if not module.derived
            for layer in range(target.weight_layers(module.weight))
        }

    def _module(self, parameter: Parameter) -> ModulePlan:
        return self.plan.modules[self._modules[parameter.name][0]]

    def check(self, model: Model) -> None:
        """Raise SourceError unless ``model`` is the plan's target."""
        if model.config != self.config:
            raise SourceError(f"{self.url} makes another model than the one that is asked for")

    def dtype(self, parameter: Parameter) -> torch.dtype:
        import torch

        dtype: torch.dtype = getattr(torch, self._module(parameter).dtype)
        return dtype

    def storage_bytes(self, parameter: Parameter) -> int:
        return parameter.size * self.dtype(parameter).itemsize

    def learning_rate_factor(self, parameter: Parameter) -> float:
        return self._module(parameter).learning_rate_factor

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        """The box, transformed; its bytes are those that a transfer by the plan writes."""
        from bot_dist.execute.device import Device
        from bot_dist.execute.reading import read_step
        from bot_dist.execute.transform import transform

        index, layer = self._modules[parameter.name]
        module = self.plan.modules[index]
        target = ((layer, layer + 1), *box) if module.layered else box
        sides = [(a.needed(t), a.core(t)) for a, t in zip(module.axes, target, strict=True)]
        step = Step(
            id="",
            module=index,
            owner=0,
            target=target,
            source=tuple(needed for needed, _ in sides),
            core=tuple(core for _, core in sides),
        )
        with ThreadPoolExecutor(REQUESTS) as requests:
            tensor = read_step(self.plan, step, self.source, Device("cpu"), requests)
        result = transform(module, step, tensor).tensor
        return result[0] if module.layered else result

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        into.copy_(self.read(parameter, box))

    def provenance(self) -> dict[str, Any]:
        return {"url": self.url, "format": "plan", "digest": self.plan.digest}
