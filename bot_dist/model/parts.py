"""Parts that several families have in common: norms, maps with biases, and how sizes hang together."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.errors import FamilyError
from bot_dist.model.declaration import Init, Weight, size_field
from bot_dist.tensors.axes import AxisUse, fixed, pointwise, read, write

Uses = tuple[AxisUse, ...]

WIDTH = pointwise("embed")
INTO_WIDTH: Uses = (write("embed"),)
FROM_WIDTH: Uses = (read("embed"),)
UNITS_OUT: Uses = (write("mlp"),)
UNITS_IN: Uses = (read("mlp"),)
HEADS_OUT: Uses = (write("kv_heads"), write("group"), fixed("head_dim"))
HEADS_IN: Uses = (read("kv_heads"), read("group"), fixed("head_dim"))
KV_OUT: Uses = (write("kv_heads"), fixed("head_dim"))
"""Axes of what keys and values put out in grouped-query attention with rotary positions."""

VOCABULARY = "the vocabulary belongs to the tokenizer"
ROTARY = {
    "vocab": VOCABULARY,
    "head_dim": "rotary positions turn its coordinates in pairs, each pair by its own angle; change heads instead",
    "context": "rotary positions need no table; set max_position_embeddings in config.json",
}
"""Target options that families with rotary positions can't change, each with the reason."""


def matrix(name: str, hf: str, out: Uses, into: Uses, **options: Any) -> Weight:
    """A linear map without bias, stored ``(out, in)`` as by ``torch.nn.Linear``."""
    return Weight(name=name, hf=f"{hf}.weight", dims=(out, into), **options)


def bias(name: str, hf: str, out: Uses, **options: Any) -> Weight:
    """The bias of a linear map, which begins as zeros."""
    return Weight(name=f"{name}.bias", hf=f"{hf}.bias", dims=(out,), kind="vector", init="zeros", **options)


def linear(
    name: str,
    hf: str,
    out: Uses,
    into: Uses,
    *,
    init: Init = "normal",
    conv1d: bool = False,
    inside: str | None = None,
    bias_feature: str | None = None,
    feature: str | None = None,
    **options: Any,
) -> tuple[Weight, Weight]:
    """A linear map and its bias; ``conv1d``: stored ``(in, out)`` as by GPT-2's Conv1D."""
    weight = Weight(
        name=f"{name}.weight",
        hf=f"{hf}.weight",
        dims=(into, out) if conv1d else (out, into),
        init=init,
        inside=inside and f"{inside}.weight",
        feature=feature,
        **options,
    )
    return weight, bias(name, hf, out, inside=inside and f"{inside}.bias", feature=bias_feature or feature, **options)


def rms_norm(name: str, hf: str, *, axis: AxisUse = WIDTH, offset: float = 0.0, **options: Any) -> Weight:
    """An RMSNorm's weight. ``offset`` is a number that the model adds to it; its own initialisation is then zero."""
    init: Init = "zeros" if offset else "ones"
    return Weight(name=name, hf=f"{hf}.weight", dims=((axis,),), kind="vector", init=init, offset=offset, **options)


def layer_norm(name: str, hf: str, *, inside: str | None = None, **options: Any) -> tuple[Weight, Weight]:
    weight = Weight(
        name=f"{name}.weight",
        hf=f"{hf}.weight",
        dims=((WIDTH,),),
        kind="vector",
        init="ones",
        inside=inside and f"{inside}.weight",
        **options,
    )
    return weight, bias(name, hf, INTO_WIDTH, inside=inside and f"{inside}.bias", **options)


def refuse(config: Mapping[str, Any], family: str, **expressed: Any) -> None:
    """Raise FamilyError, naming the field, where one that is set is not what the family expresses."""
    for key, value in expressed.items():
        if config.get(key) not in (None, False, value):
            raise FamilyError(
                f"config.json: family '{family}' does not express {key}={_json(config[key])}; "
                f"use a model with {key}={_json(value)}"
            )


def _json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else repr(value)


def heads_of_width(config: Mapping[str, Any], family: str, width: str, heads: str) -> tuple[int, int, int]:
    """Width, heads and head_dim of a configuration that has no head_dim of its own: width = heads × head_dim.

    ``width`` and ``heads`` are the names of the fields.
    """
    embed, n_heads = size_field(config, width, family), size_field(config, heads, family)
    if embed % n_heads:
        raise FamilyError(f"config.json: {width}={embed} is not divisible by {heads}={n_heads}")
    head_dim = config.get("head_dim")
    if head_dim not in (None, embed // n_heads):
        raise FamilyError(
            f"config.json: head_dim={head_dim}, but family '{family}' has {width} / {heads} = {embed // n_heads}"
        )
    return embed, n_heads, embed // n_heads


def check_divisible_by_heads(resized: Mapping[str, Any], model_type: str) -> None:
    """Raise FamilyError where ``transformers`` refuses the width, with the nearest that work."""
    embed, heads = resized["hidden_size"], resized["num_attention_heads"]
    if embed % heads:
        fits = [n * heads for n in (embed // heads, embed // heads + 1) if n]
        raise FamilyError(
            f"target embed={embed} is not divisible by heads={heads}, which transformers wants of hidden_size in "
            f"{model_type}; set target.embed={' or '.join(map(str, fits))}"
        )


def resize_heads_of_width(now: Mapping[str, int], target: Mapping[str, int], family: str) -> tuple[int, int]:
    """Width and heads of a target where width = heads × head_dim. Raises FamilyError with the nearest that work."""
    head_dim = target.get("head_dim", now["head_dim"])
    embed, heads = target.get("embed", now["embed"]), target.get("heads", now["heads"])
    if embed == heads * head_dim:
        return embed, heads
    low = max(1, embed // head_dim)
    fits = [low] if embed % head_dim == 0 else [low, low + 1]
    ways = [
        f"target.heads={n}" if n * head_dim == embed else f"target.embed={n * head_dim} target.heads={n}" for n in fits
    ]
    raise FamilyError(
        f"target embed={embed} is not heads × head_dim = {heads} × {head_dim}, which family '{family}' requires; "
        f"set {' or '.join([f'target.embed={heads * head_dim}', *ways])}"
    )


def grouped_query_sizes(config: Mapping[str, Any], family: str, head_dim: int | None = None) -> dict[str, int]:
    """Sizes under the names that Llama gave them; ``head_dim`` is what a configuration without one has (None: its width
    over its heads)."""
    embed = size_field(config, "hidden_size", family)
    heads = size_field(config, "num_attention_heads", family)
    kv_heads = size_field(config, "num_key_value_heads", family, default=heads)
    if heads % kv_heads:
        raise FamilyError(
            f"config.json: num_attention_heads={heads} is not divisible by num_key_value_heads={kv_heads}; "
            f"every key/value head serves the same number of query heads"
        )
    if not config.get("head_dim") and head_dim is None and embed % heads:
        raise FamilyError(f"config.json: no head_dim, and hidden_size={embed} is not divisible by {heads} heads")
    return {
        "layer": size_field(config, "num_hidden_layers", family),
        "embed": embed,
        "mlp": size_field(config, "intermediate_size", family),
        "kv_heads": kv_heads,
        "group": heads // kv_heads,
        "head_dim": size_field(config, "head_dim", family, default=head_dim or embed // heads),
        "vocab": size_field(config, "vocab_size", family),
    }


GROUPED_QUERY_RESIZABLE = {
    "layers": "number of blocks",
    "embed": "width of the residual stream",
    "mlp": "FFN units",
    "heads": "query heads",
    "kv_heads": "key/value heads",
}


def grouped_query_resize(
    config: Mapping[str, Any], target: Mapping[str, int], now: Mapping[str, int]
) -> dict[str, Any]:
    heads = target.get("heads", now["kv_heads"] * now["group"])
    kv_heads = target.get("kv_heads", now["kv_heads"])
    if heads % kv_heads:
        group = now["group"]
        ways = [f"target.heads={kv_heads * group}"]
        if heads % group == 0:
            ways.append(f"target.heads={heads} target.kv_heads={heads // group}")
        raise FamilyError(
            f"target heads={heads} is not divisible by kv_heads={kv_heads}; set {' or '.join(ways)}, which keep "
            f"{group} query heads per key/value head"
        )
    return {
        **config,
        "num_hidden_layers": target.get("layers", now["layer"]),
        "hidden_size": target.get("embed", now["embed"]),
        "intermediate_size": target.get("mlp", now["mlp"]),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": now["head_dim"],
    }


def named_class(config: Mapping[str, Any], known: Mapping[str, Any], family: str) -> str:
    """The class that a configuration names in ``architectures``; where it names none, the first of ``known``."""
    names = config.get("architectures") or [next(iter(known))]
    if names[0] not in known:
        raise FamilyError(
            f"config.json: family '{family}' does not express architectures={list(names)}; load the model as one of "
            f"{', '.join(known)} and save it again"
        )
    return str(names[0])
