"""The declaration of a family, and the model that a declaration and a configuration make."""

from __future__ import annotations

import itertools
import math
import pickle
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

from bot_dist.errors import FamilyError, nearest
from bot_dist.model.gguf import GgufArchitecture
from bot_dist.tensors.axes import AxisUse, Parameter

Kind = Literal["matrix", "table", "vector"]
"""Kind of a weight: a linear map, a lookup table, or a norm weight or bias (which keep their scale under every
gain)."""

Init = Literal["normal", "residual", "ones", "zeros"]
"""The family's own initialisation; ``residual`` is normal divided by √(2 · layers), as in GPT-2."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """One weight of a family: its names, and its axes with the role of each."""

    name: str
    """Name of the module: this function's weights over all layers, e.g. ``attn.q``."""
    hf: str
    """Name in files of ``transformers``, with ``{layer}`` when there is one per layer."""
    dims: tuple[tuple[AxisUse, ...], ...]
    """The axes that each dimension of the tensor in ``transformers`` is made of, outermost first."""
    kind: Kind = "matrix"
    init: Init = "normal"
    into_residual: bool = False
    """Whether the weight's output is added to the residual stream."""
    speaks: Literal["every", "first", "last"] | None = None
    """The blocks that keep this weight where identity depth makes several blocks of one; in the others it is
    ``silent``. None stands for the first if the weight writes ``into_residual``, else for every."""
    query: bool = False
    """Whether the weight's output (on a ``qkv`` axis, that of slot 0) is compared with keys under a softmax scale of
    1/√head_dim. It matters only where head_dim can change."""
    root_width: bool = False
    """Whether the model multiplies the weight's output by √embed, as Gemma does with its embedding."""
    offset: float = 0.0
    """Number that the model adds to the stored values before it uses them: 1 in Gemma's norms."""
    pooled: bool = False
    """Whether the weight is applied once to a whole sequence and not to every token, as poolers and classifiers are."""
    feature: str | None = None
    """The feature of a configuration (``Family.features``) that the weight comes with; None where it is always
    there."""
    inside: str | None = None
    """Name of the parameter inside the ``transformers`` model, with ``{layer}``, where files (``hf``) have another."""

    @property
    def layered(self) -> bool:
        return "{layer}" in self.hf

    @property
    def speaking(self) -> Literal["every", "first", "last"]:
        """The blocks that keep this weight under identity depth."""
        return self.speaks or ("first" if self.into_residual else "every")

    @property
    def neutral(self) -> float:
        """Value of new units along a width that grows lazily: 1 for norm weights, and 0 for all others."""
        return 1.0 if self.init == "ones" else 0.0

    @property
    def silent(self) -> float:
        """Value of the weight in an inserted block that is to change nothing. A weight that writes into the residual
        stream puts out nothing; any other has the neutral value."""
        return 0.0 - self.offset if self.into_residual else self.neutral

    @property
    def uses(self) -> tuple[AxisUse, ...]:
        """The axes in order, unfused; the layer axis is not among them."""
        return tuple(use for dim in self.dims for use in dim)


MOST_LAYERS = 10_000
"""Largest number of blocks that is believed; a configuration with more is damaged, or made to take all memory."""
LARGEST_AXIS = 2**22
"""Largest size of any other axis that is believed."""
MOST_PARAMETERS = 2**42
"""Largest number of parameters that is believed."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """A declaration of one model family."""

    name: str
    model_types: tuple[str, ...]
    """The ``model_type`` values of ``transformers`` configurations that it covers."""
    weights: tuple[Weight, ...]
    head: Weight | None
    """The output head that may be tied to the embedding; present as a tensor only where it is not."""
    before_head: tuple[str, ...]
    """Modules just before the head: they take the factor that a tied table can't have."""
    tensor_axes: tuple[str, ...]
    """Axes that tensor parallelism cuts; the first of them that a weight has is cut."""
    resizable: Mapping[str, str]
    """Target options that a user may set, each with its meaning."""
    fixed: Mapping[str, str]
    """Target options that can't be set, each with the reason."""
    sizes: Callable[[Mapping[str, Any]], dict[str, int]]
    """Sizes of all axes of a configuration. Raises FamilyError on one the family can't express."""
    resize: Callable[[Mapping[str, Any], Mapping[str, int]], dict[str, Any]]
    """The configuration with the given target options. Raises FamilyError on impossible ones."""
    tied: Callable[[Mapping[str, Any]], bool]
    """Whether the head is the embedding; asked only where there is a head."""
    architecture: Callable[[Mapping[str, Any]], str]
    """Name of the ``transformers`` class that a configuration is for."""
    objective: Literal["causal", "masked", "image"] = "causal"
    """Objective that models of the family are pretrained on."""
    features: Callable[[Mapping[str, Any]], frozenset[str]] = lambda config: frozenset()
    """Features of a configuration, which name its optional weights (``Weight.feature``)."""
    norm: Literal["rms", "layer"] = "rms"
    """Kind of its norms: LayerNorm removes the mean of the residual stream, RMSNorm does not."""
    post_norm: bool = False
    """Whether the residual stream itself is normalised after every sublayer (BERT)."""
    half_steps: bool = True
    """Whether a shorter step of each block can be had by scaling what it writes: not where a norm comes after it."""
    parallel: Callable[[Mapping[str, Any]], bool] = lambda config: False
    """Whether attention and FFN of a block read the same residual stream, instead of one what the other has written."""
    per_layer_fields: tuple[str, ...] = ("layer_types",)
    """Fields of the configuration that are lists with one entry per layer; ``resize`` spells out defaulted ones, still
    with the entries of the source's layers."""
    gguf: Mapping[str, GgufArchitecture] = field(default_factory=dict)
    """GGUF's architecture for each ``model_type`` that it can hold."""
    optional_prefix: str = ""
    """Prefix of names that some published checkpoints leave out."""
    tied_biases: Mapping[str, str] = field(default_factory=dict)
    """Names of tensors that are the same as another where the head is the embedding, each with the name of the
    other."""
    renamed: Mapping[str, str] = field(default_factory=dict)
    """Regular expressions of parts of names in old checkpoints, and what they are called now."""
    ignored: tuple[str, ...] = ()
    """Regular expressions of tensors in published checkpoints that are no parameters."""
    context_field: str = "max_position_embeddings"
    init_std: str = "initializer_range"

    def __reduce__(self) -> tuple[Callable[[str], Family], tuple[str]]:
        """Pickle it by its name: what a process unpickles is the family that it knows by that name itself."""
        if _registered(self.name) is not self:
            raise pickle.PicklingError(f"family '{self.name}' is not the one that bot_dist.model.FAMILIES has")
        return _registered, (self.name,)

    @property
    def ties(self) -> dict[str, str]:
        """Names of tensors that are the same as another where the head is the embedding, each with the name of the
        other; the head comes first."""
        if self.head is None:
            return {}
        return {self.head.hf: next(w.hf for w in self.weights if w.name == "embed"), **self.tied_biases}

    def norm_of(self, weight: Weight) -> str | None:
        """The norm of the residual width that a weight is a part of: ``attn.norm`` of ``attn.norm.bias``."""
        name = weight.name.removesuffix(".weight").removesuffix(".bias")
        along_width = [use.axis for use in weight.uses] == ["embed"]
        return name if weight.kind == "vector" and along_width and name.split(".")[-1] == "norm" else None

    def norm_before(self, weight: Weight) -> str:
        """The norm whose output a weight reads, where norms come before sublayers: ``attn.norm`` of all that is named
        ``attn.…``; the last one, ``norm``, of what comes after the blocks."""
        name = f"{weight.name.partition('.')[0]}.norm" if weight.layered else "norm"
        assert any(self.norm_of(w) == name for w in self.weights), f"{weight.name} reads no norm that is named {name}"
        return name

    def read_with(self, weight: Weight) -> str | None:
        """The first map that reads from the residual stream what a weight reads: ``attn.q`` for all named ``attn.…``;
        outside blocks each for itself. None for what reads something else, or one place of a text only."""
        if not _reads_stream(weight):
            return None
        part = weight.name.partition(".")[0]
        if weight.layered:
            weight = next(w for w in self.weights if w.layered and _reads_stream(w) and w.name.startswith(f"{part}."))
        return weight.name.removesuffix(".weight")


@dataclass(frozen=True)
class Model:
    """A model without its weights: a family and a configuration, which tell the parameters and their sizes."""

    family: Family
    config: dict[str, Any] = field(hash=False)

    @cached_property
    def sizes(self) -> dict[str, int]:
        """The size of every axis. Raises FamilyError for sizes that no model has."""
        sizes = self.family.sizes(self.config)
        for axis, size in sizes.items():
            if size > (most := MOST_LAYERS if axis == "layer" else LARGEST_AXIS):
                raise FamilyError(f"config.json: {axis} is {size:,}, wanted at most {most:,}")
        weights = (*self.family.weights, *([self.family.head] if self.family.head else ()))
        wanted = sum(
            math.prod(sizes.get(use.axis, 0) for use in w.uses) * (sizes["layer"] if w.layered else 1) for w in weights
        )
        if wanted > MOST_PARAMETERS:
            raise FamilyError(f"config.json: some {wanted:,} parameters, wanted at most {MOST_PARAMETERS:,}")
        return sizes

    @property
    def tied(self) -> bool:
        """Whether there is a head that is the embedding."""
        return self.head is not None and self.family.tied(self.config)

    @cached_property
    def features(self) -> frozenset[str | None]:
        """The features that weights of this model may come with."""
        return frozenset({None, *self.family.features(self.config)})

    @property
    def head(self) -> Weight | None:
        """The output head, tied or not; None where the model has none."""
        head = self.family.head
        return head if head is not None and head.feature in self.features else None

    @cached_property
    def weights(self) -> tuple[Weight, ...]:
        untied = () if self.tied or self.head is None else (self.head,)
        return tuple(w for w in (*self.family.weights, *untied) if w.feature in self.features)

    def weight_layers(self, weight: Weight) -> int:
        """The number of parameters that the module of this weight stacks: one per block, or one."""
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
    def inside(self) -> dict[str, str]:
        """Name of each parameter inside the ``transformers`` model (with its head), by its name in files."""
        return {p.name: (weight.inside or weight.hf).format(layer=layer) for weight, layer, p in self.parameters()}

    @cached_property
    def n_parameters(self) -> int:
        return sum(self.weight_layers(w) * self.parameter(w).size for w in self.weights)

    def readers(self, *axes: str) -> tuple[Weight, ...]:
        """The maps in every block that read one of some axes."""
        return tuple(
            w
            for w in self.weights
            if w.layered and w.kind == "matrix" and any(use.axis in axes and use.role == "read" for use in w.uses)
        )

    def reader_of(self, weight: Weight, *axes: str) -> Weight:
        """The map that reads what ``weight`` puts out along one of some axes, or ``weight`` if it reads there: of
        several the one whose name is most like its own (``experts.1.down`` of ``experts.1.up``).

        Raises FamilyError, naming them, where there is no such one.
        """

        def alike(reader: Weight) -> int:
            pairs = zip(reader.name.split("."), weight.name.split("."), strict=False)
            return len([*itertools.takewhile(lambda parts: parts[0] == parts[1], pairs)])

        readers = self.readers(*axes)
        nearest_readers = [w for w in readers if alike(w) == max(map(alike, readers))]
        if len(nearest_readers) == 1:
            return nearest_readers[0]
        known = ", ".join(w.name for w in nearest_readers) or "no map"
        raise FamilyError(
            f"family '{self.family.name}': what {weight.name} puts out along {' or '.join(axes)} is read by {known}, "
            f"and one map alone can tell what is kept of it; name each map as those that write for it"
        )

    @property
    def classifies(self) -> bool:
        """Whether the model has a head for classes."""
        return any(use.axis == "class" for weight in self.weights for use in weight.uses)

    @property
    def attention_width(self) -> int:
        """Coordinates of all query heads together."""
        return math.prod(self.sizes.get(axis, 1) for axis in ("kv_heads", "group", "heads", "head_dim"))

    def init_std(self, weight: Weight) -> float:
        """Standard deviation of the family's own initialisation of a matrix or table."""
        std = self.config.get(self.family.init_std)
        std = 0.02 if std is None else float(std)
        return std / math.sqrt(2 * self.sizes["layer"]) if weight.init == "residual" else std

    def tokens_per_sample(self, context: int) -> int:
        """Positions that are computed for one sample: of a text ``context``, of an image its patches and the tokens
        before them."""
        return self.sizes["position"] if self.family.objective == "image" else context

    def flops_per_token(self, context: int) -> int:
        """Forward FLOPs per token: two per multiply-add of every matrix, of the head, and of the attention's scores and
        sums over ``context`` tokens."""
        matrices = [w for w in self.weights if w.kind == "matrix"]
        if self.tied and self.head is not None:
            matrices.append(self.head)
        sizes = {w: self.weight_layers(w) * self.parameter(w).size for w in matrices}
        every_token = sum(size for w, size in sizes.items() if not w.pooled)
        once = sum(size for w, size in sizes.items() if w.pooled)
        attention = 2 * self.sizes["layer"] * self.attention_width * context
        return 2 * (every_token + once // context + attention)

    def training_flops_per_token(self, context: int) -> int:
        """FLOPs per token of a training step: the backward pass costs two forward passes. What is computed again under
        activation checkpointing does not count."""
        return 3 * self.flops_per_token(context)

    def resized(self, target: Mapping[str, int], depth: str = "auto", layers: Sequence[int] = ()) -> Model:
        """The model of the same family with the given target options; the others are kept.

        Per-layer fields of the configuration follow the layers: the source's ``layers``, where these are given; else
        source layer ``i mod n`` with depth ``stack``, and ``floor(i · n / n_target)`` with others.
        """
        for option, size in target.items():
            if option in self.family.fixed:
                raise FamilyError(
                    f"target {option}={size}: family '{self.family.name}' keeps it: {self.family.fixed[option]}"
                )
            if option not in self.family.resizable:
                raise FamilyError(
                    f"target option {option!r} does not exist in family '{self.family.name}'; "
                    f"{nearest(option, self.family.resizable)}"
                )
            if size < 1:
                raise FamilyError(f"target {option} is {size}; give at least 1")
            if size > (most := MOST_LAYERS if option == "layers" else LARGEST_AXIS):
                raise FamilyError(f"target {option} is {size:,}; give at most {most:,}")
        model = Model(self.family, self.family.resize(self.config, target))
        n_source, n_target = self.sizes["layer"], model.sizes["layer"]
        origin = layers or [i % n_source if depth == "stack" else i * n_source // n_target for i in range(n_target)]
        for key in self.family.per_layer_fields:
            if isinstance(model.config.get(key), list):
                model.config[key] = [model.config[key][i] for i in origin]
        return model


def _registered(name: str) -> Family:
    from bot_dist.model import FAMILIES

    return FAMILIES[name]


def _reads_stream(weight: Weight) -> bool:
    reads = any(use.axis == "embed" and use.role == "read" for use in weight.uses)
    return weight.kind == "matrix" and reads and not weight.pooled


def size_field(config: Mapping[str, Any], key: str, family: str, default: int | None = None) -> int:
    """A size from a configuration. Raises FamilyError, naming the field, when it is missing or no positive integer."""
    value = default if config.get(key) is None else config[key]
    if value is None:
        raise FamilyError(f"config.json: family '{family}' needs the field {key!r}, which is missing")
    if not isinstance(value, int) or value < 1:
        raise FamilyError(f"config.json: {key}={value!r}; family '{family}' needs a positive integer")
    return value
