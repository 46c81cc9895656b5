"""Gemma: norms store their factor minus one, the embedding is multiplied by √width, tied head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.model import parts
from bot_dist.model.declaration import Family, Weight
from bot_dist.model.gguf import GgufArchitecture, grouped_query_metadata, wanted
from bot_dist.model.parts import (
    FROM_WIDTH,
    HEADS_IN,
    HEADS_OUT,
    INTO_WIDTH,
    KV_OUT,
    UNITS_IN,
    UNITS_OUT,
    bias,
    matrix,
    rms_norm,
)
from bot_dist.tensors.axes import fixed

BLOCK = "model.layers.{layer}."
ATTENTION, FFN = BLOCK + "self_attn.", BLOCK + "mlp."


def norm(name: str, hf: str, **options: Any) -> Weight:
    return rms_norm(name, hf, offset=1.0, **options)


EMBED = Weight(
    name="embed",
    hf="model.embed_tokens.weight",
    dims=((fixed("vocab"),), INTO_WIDTH),
    kind="table",
    root_width=True,
)
NORM = norm("norm", "model.norm")
HEAD = matrix("head", "lm_head", (fixed("vocab"),), FROM_WIDTH)


def attention(into_residual: bool) -> tuple[Weight, ...]:
    return (
        norm("attn.norm", BLOCK + "input_layernorm"),
        matrix("attn.q", ATTENTION + "q_proj", HEADS_OUT, FROM_WIDTH),
        matrix("attn.k", ATTENTION + "k_proj", KV_OUT, FROM_WIDTH),
        matrix("attn.v", ATTENTION + "v_proj", KV_OUT, FROM_WIDTH),
        matrix("attn.out", ATTENTION + "o_proj", INTO_WIDTH, HEADS_IN, into_residual=into_residual),
        bias("attn.q", ATTENTION + "q_proj", HEADS_OUT, feature="attention_bias"),
        bias("attn.k", ATTENTION + "k_proj", KV_OUT, feature="attention_bias"),
        bias("attn.v", ATTENTION + "v_proj", KV_OUT, feature="attention_bias"),
        bias("attn.out", ATTENTION + "o_proj", INTO_WIDTH, into_residual=into_residual, feature="attention_bias"),
    )


def ffn(into_residual: bool) -> tuple[Weight, ...]:
    return (
        matrix("mlp.gate", FFN + "gate_proj", UNITS_OUT, FROM_WIDTH),
        matrix("mlp.up", FFN + "up_proj", UNITS_OUT, FROM_WIDTH),
        matrix("mlp.down", FFN + "down_proj", INTO_WIDTH, UNITS_IN, into_residual=into_residual),
    )


def sizes(config: Mapping[str, Any], family: str = "gemma") -> dict[str, int]:
    parts.refuse(config, family, use_bidirectional_attention=False)
    return parts.grouped_query_sizes(config, family, head_dim=256)


def resize(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    return parts.grouped_query_resize(config, target, sizes(config))


def features(config: Mapping[str, Any]) -> frozenset[str]:
    present = {"qk_norm"} if config["model_type"] == "gemma3_text" else set()
    return frozenset(present | {"attention_bias"} if config.get("attention_bias") else present)


def tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", True))


def gguf_metadata(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    wanted(config, attention_bias=False)
    return grouped_query_metadata(config, sizes, "gelu_pytorch_tanh")


FAMILY = Family(
    name="gemma",
    model_types=("gemma",),
    weights=(
        EMBED,
        *attention(into_residual=True),
        norm("mlp.norm", BLOCK + "post_attention_layernorm"),
        *ffn(into_residual=True),
        NORM,
    ),
    head=HEAD,
    before_head=("norm",),
    tensor_axes=("kv_heads", "mlp", "vocab"),
    resizable=parts.GROUPED_QUERY_RESIZABLE,
    fixed=parts.ROTARY,
    sizes=sizes,
    resize=resize,
    tied=tied,
    architecture=lambda config: "GemmaForCausalLM",
    features=features,
    gguf={"gemma": GgufArchitecture(name="gemma", metadata=gguf_metadata, head="tied")},
    optional_prefix="model.",
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
