"""A model that is never whole in memory: its blocks get their weights from the source one after the other.

The ``transformers`` model is built without weights. Around its blocks, every module reads its weights when it is
first called. Which masks and positions each block is given is seen once, by stand-ins for the blocks; the hidden states
before the first block are what reaches the first of them, and a stand-in that returns the last hidden states is all
that norm and head need.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from bot_dist.fit.standing_in import first_call, standing_in
from bot_dist.formats.configuration import BUILDING, RUN, transformers_config
from bot_dist.formats.source import Source
from bot_dist.model import Model
from bot_dist.tensors import whole
from bot_dist.tensors.axes import Parameter

LAYER = "{layer}"


class StreamedModel:
    """Every method takes one sample, so that results depend neither on how many there are nor on who runs which."""

    def __init__(self, source: Source, model: Model) -> None:
        self.module = _without_weights(model)
        blocks: Any = self.module.get_submodule(path_in(model, blocks_of(model)))
        self.blocks: list[torch.nn.Module] = [*blocks]
        self._source = source
        self._parameters: dict[torch.Tensor, Parameter] = {
            self.module.get_parameter(path_in(model, model.inside[p.name])): p for _, _, p in model.parameters()
        }
        """Parameters by the one without values that stands for each in the module."""
        assert self._parameters.keys() == {*self.module.parameters()}, "the family does not declare all weights"
        self._placed: list[tuple[torch.nn.Module, str, torch.nn.Parameter]] = []
        self._values: dict[torch.Tensor, torch.nn.Parameter] = {}
        self._calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self._takes = "pixel_values" if model.family.objective == "image" else "input_ids"
        self._image: torch.Tensor | None = None
        """An image, any one: a model of images computes nothing without."""
        inside_blocks = {m for block in self.blocks for m in block.modules()}
        for module in self.module.modules():
            if module not in inside_blocks:
                module.register_forward_pre_hook(lambda called, _: self._fill(called))

    def before_blocks(self, sample: torch.Tensor) -> torch.Tensor:
        """Hidden states ``(positions, embed)`` that reach the first block, of tokens ``(positions,)`` or pixels
        ``(channels, height, width)``.

        All samples must have one shape: what the blocks are given besides is remembered from the first.
        """
        calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

        def record(hidden: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
            calls.append((args, kwargs))
            return hidden

        if self._takes == "pixel_values":
            self._image = sample
        *others, last = self.blocks
        with standing_in(dict.fromkeys(others, record)), torch.no_grad():
            (hidden, *args), kwargs = first_call(last, lambda: self.module(**{self._takes: sample[None]}))
        self._calls = self._calls or [*calls, ((*args,), kwargs)]
        result: torch.Tensor = hidden[0]
        return result

    def block(self, layer: int, hidden: torch.Tensor) -> torch.Tensor:
        """One block's hidden states ``(positions, embed)``, of those before it. ``load_block`` comes first."""
        args, kwargs = self._calls[layer]
        with torch.no_grad():
            result: torch.Tensor = self.blocks[layer](hidden[None], *args, **kwargs)
        return result[0]

    def after_blocks(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """Logits, ``(context, vocab)`` or ``(1, classes)``, of the hidden states ``(positions, embed)`` after the last
        block; None of a model without a head."""
        given = {"inputs_embeds": hidden[None]} if self._image is None else {"pixel_values": self._image[None]}
        with standing_in(dict.fromkeys(self.blocks, lambda *_, **__: hidden[None])), torch.no_grad():
            outputs = self.module(**given)
        logits: torch.Tensor | None = outputs.get("logits", outputs.get("prediction_logits"))
        return None if logits is None else logits.reshape(-1, logits.shape[-1])

    @contextmanager
    def reading(self, held: int) -> Iterator[torch.nn.Module]:
        """The module, to be called as it is: every block reads its weights when it is first called, and all but the
        first ``held`` let go of them at once."""
        hooks: list[Any] = []
        for layer, block in enumerate(self.blocks):
            hooks.append(block.register_forward_pre_hook(lambda *_, layer=layer: self.load_block(layer)))
            if layer >= held:
                hooks.append(block.register_forward_hook(lambda *_, layer=layer: self._free_block(layer)))
        try:
            with torch.no_grad():
                yield self.module
        finally:
            for hook in hooks:
                hook.remove()

    def load_block(self, layer: int) -> None:
        """Read the weights of a block, as float32."""
        for module in self.blocks[layer].modules():
            self._fill(module)

    def free(self) -> None:
        """Let go of all weights."""
        for module, name, empty in self._placed:
            module._parameters[name] = empty
        self._placed.clear()
        self._values.clear()

    def _free_block(self, layer: int) -> None:
        inside = {*self.blocks[layer].modules()}
        for module, name, empty in self._placed:
            if module in inside:
                module._parameters[name] = empty
                self._values.pop(empty, None)
        self._placed = [placed for placed in self._placed if placed[0] not in inside]

    def _fill(self, module: torch.nn.Module) -> None:
        """Read the weights of a module itself, not of the modules inside it, unless it has them."""
        for name, empty in [*module.named_parameters(recurse=False)]:
            if not empty.is_meta:
                continue
            if empty not in self._values:  # tied ones are read once
                parameter = self._parameters[empty]
                values = self._source.read(parameter, whole(parameter.sizes)).reshape(parameter.shape).float()
                self._values[empty] = torch.nn.Parameter(values, requires_grad=False)
            module._parameters[name] = self._values[empty]  # not registered: another thread may be building a model
            self._placed.append((module, name, empty))


def blocks_of(model: Model) -> str:
    """Name, as in files, of the list of blocks."""
    (prefix,) = {(w.inside or w.hf).partition(LAYER)[0] for w in model.weights if w.layered}
    return prefix.removesuffix(".")


def path_in(model: Model, name: str) -> str:
    """The name in the ``transformers`` model of what files call ``name``: the bare encoder leaves out a prefix."""
    bare = model.head is None and not model.classifies
    return name.removeprefix(model.family.optional_prefix) if bare else name


def _without_weights(model: Model) -> torch.nn.Module:
    """The ``transformers`` model: parameters on the meta device, buffers (rotary frequencies, …) with their values."""
    import transformers
    from accelerate import init_empty_weights  # type: ignore[import-untyped]
    from transformers.initialization import no_init_weights

    config = transformers_config(model.config, **RUN)
    architecture: Any = getattr(transformers, model.family.architecture(model.config))
    with BUILDING:
        with no_init_weights(), init_empty_weights(include_buffers=False):
            module: torch.nn.Module = architecture._from_config(config, dtype=torch.float32)
        module.tie_weights()  # type: ignore[operator]  # no_init_weights has skipped it
    return module.eval().requires_grad_(False)
