"""What a family declares, and the model that a declaration and a configuration make."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from bot_dist.axes import AxisUse, Parameter
from bot_dist.errors import FamilyError, nearest

Kind = Literal["matrix", "table", "vector"]
"""A linear map, a lookup table, or a norm weight or bias (which keep their scale under every gain)."""

Init = Literal["normal", "residual", "ones", "zeros"]
"""The family's own initialisation; ``residual`` is normal divided by √(2 · layers), as in GPT-2."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One weight of a family: its names elsewhere, and its axes with what it does along each."""

    name: str
    """Name of the module: this function's weights over all layers, e.g. ``attn.q``."""
    hf: str
    """Name in ``transformers``, with ``{layer}`` when there is one per layer."""
    dims: tuple[tuple[AxisUse, ...], ...]
    """Per dimension of the tensor in ``transformers``, the axes it is made of."""
    kind: Kind = "matrix"
    init: Init = "normal"
    into_residual: bool = False
    """Whether what it puts out is added to the residual stream."""
    gguf: str | None = None
    """Name in GGUF files, with ``{layer}``; None where GGUF has no such family."""
    gguf_rotary_permuted: bool = False
    """GGUF stores the rows of each head as ``(2, head_dim/2)`` where ``transformers`` has ``(head_dim/2, 2)``."""

    @property
    def layered(self) -> bool:
        return "{layer}" in self.hf

    @property
    def uses(self) -> tuple[AxisUse, ...]:
        """The axes in order, unfused; the layer axis is not among them."""
        return tuple(use for dim in self.dims for use in dim)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A declaration of one model family."""

    name: str
    model_types: tuple[str, ...]
    """The ``model_type`` values of ``transformers`` configurations that it covers."""
    weights: tuple[Weight, ...]
    head: Weight
    """The output head; present as a tensor only where it is not tied."""
    before_head: tuple[str, ...]
    """Modules just before the head: they take the factor that a tied table can't have."""
    tensor_axes: tuple[str, ...]
    """Axes that tensor parallelism cuts; the first of them that a weight has is cut."""
    resizable: Mapping[str, str]
    """Target options that a user may set, and what each means."""
    sizes: Callable[[Mapping[str, Any]], dict[str, int]]
    """Sizes of all axes of a configuration. Raises FamilyError on one the family can't express."""
    resize: Callable[[Mapping[str, Any], Mapping[str, int]], dict[str, Any]]
    """The configuration with the given target options. Raises FamilyError on impossible ones."""
    tied: Callable[[Mapping[str, Any]], bool]
    gguf_config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    """``transformers`` configuration from GGUF metadata (keys without the architecture's prefix)."""
    optional_prefix: str = ""
    """Prefix of names that some published checkpoints leave out."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of tensors in published checkpoints that are no parameters."""
    context_field: str = "max_position_embeddings"
    init_std: str = "initializer_range"


@dataclass(frozen=True)
class Model:
    """A family and a configuration: which parameters there are, of which sizes."""

    family: Family
    config: dict[str, Any] = field(hash=False)

    @cached_property
    def sizes(self) -> dict[str, int]:
        return self.family.sizes(self.config)

    @property
    def tied(self) -> bool:
        return self.family.tied(self.config)

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        return self.family.weights if self.tied else (*self.family.weights, self.family.head)

    def weight_layers(self, weight: Weight) -> int:
        """How many parameters the module of this weight stacks."""
        return self.sizes["layer"] if weight.layered else 1

    def parameter(self, weight: Weight, layer: int = 0) -> Parameter:
        return Parameter(
            name=weight.hf.format(layer=layer),
            axes=tuple(use.axis for use in weight.uses),
            sizes=tuple(self.sizes[use.axis] for use in weight.uses),
            dims=tuple(len(dim) for dim in weight.dims),
        )

    def parameters(self) -> Iterator[tuple[Weight, int, Parameter]]:
        """Every parameter with its weight and layer; modules in order, layers ascending."""
        for weight in self.weights:
            for layer in range(self.weight_layers(weight)):
                yield weight, layer, self.parameter(weight, layer)

    @cached_property
    def n_parameters(self) -> int:
        return sum(self.weight_layers(w) * self.parameter(w).size for w in self.weights)

    def flops_per_token(self, context: int) -> int:
        """Forward FLOPs per token: two per multiply-add of every matrix, of the head, and of the attention's scores and
        sums over ``context`` tokens; training costs three times as much."""
        matrices = sum(self.weight_layers(w) * self.parameter(w).size for w in self.weights if w.kind == "matrix")
        if self.tied:
            matrices += self.sizes["vocab"] * self.sizes["embed"]
        heads = self.sizes["head_dim"]
        for axis in ("heads", "kv_heads", "group"):
            heads *= self.sizes.get(axis, 1)
        return 2 * (matrices + 2 * self.sizes["layer"] * heads * context)

    def resized(self, target: Mapping[str, int]) -> Model:
        """The model of the same family with the given target options; the others are kept."""
        for option, size in target.items():
            if option not in self.family.resizable:
                raise FamilyError(
                    f"target option {option!r} does not exist in family '{self.family.name}'; "
                    f"{nearest(option, self.family.resizable)}"
                )
            if size < 1:
                raise FamilyError(f"target {option} is {size}; give at least 1")
        model = Model(self.family, self.family.resize(self.config, target))
        model.family.sizes(model.config)
        return model


def size_field(config: Mapping[str, Any], key: str, family: str, default: int | None = None) -> int:
    """A size from a configuration. Raises FamilyError, naming the field, when it is missing or no positive integer."""
    value = default if config.get(key) is None else config[key]
    if value is None:
        raise FamilyError(f"config.json: family '{family}' needs the field {key!r}, which is missing")
    if not isinstance(value, int) or value < 1:
        raise FamilyError(f"config.json: {key}={value!r}; family '{family}' needs a positive integer")
    return value
