"""Gemma: norms store their factor minus one, the embedding is multiplied by √width, tied head.

Gemma 2 and 3 (text) have norms after the sublayers too. Those are what writes into the residual stream: a block whose
closing norms have factor zero does nothing.
"""

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


GEMMA = Family(
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


def sizes_2(config: Mapping[str, Any]) -> dict[str, int]:
    return sizes(config, "gemma2")


def resize_2(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes_2(config)
    resized = parts.grouped_query_resize(config, target, now)
    parts.check_divisible_by_heads(resized, config["model_type"])
    return {**resized, "layer_types": layer_types(config, now["layer"])}


def layer_types(config: Mapping[str, Any], layers: int) -> list[str]:
    """The kind of attention of every block. Without ``layer_types`` in the configuration every other block looks at a
    window only, in Gemma 3 five of six."""
    if config.get("layer_types"):
        return list(config["layer_types"])
    period = config.get("sliding_window_pattern", config.get("_sliding_window_pattern", 6))
    if config["model_type"] == "gemma2":
        period = 2
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)]


NO_CAP = 2.0**20
"""A soft cap that changes no logit that is seen: llama.cpp takes one where none is written."""


def gguf_metadata_2(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """GGUF's metadata of Gemma 2. llama.cpp takes every other block for sliding, from the first on, and knows one
    softmax scale: that of a head's width, but at 46 blocks that of the residual width over the heads."""
    scale = sizes["embed"] // (sizes["kv_heads"] * sizes["group"]) if sizes["layer"] == 46 else sizes["head_dim"]
    windows = ["full_attention" if i % 2 else "sliding_attention" for i in range(sizes["layer"])]
    wanted(config, query_pre_attn_scalar=scale, layer_types=windows)
    return {
        **gguf_metadata(config, sizes),
        "context_length": config["max_position_embeddings"],
        "attention.sliding_window": config["sliding_window"] or config["max_position_embeddings"],
        "attn_logit_softcapping": float(config["attn_logit_softcapping"] or NO_CAP),
        "final_logit_softcapping": float(config["final_logit_softcapping"] or NO_CAP),
    }


GEMMA2 = Family(
    name="gemma2",
    model_types=("gemma2", "gemma3_text"),
    weights=(
        EMBED,
        *attention(into_residual=False),
        norm("attn.q.norm", ATTENTION + "q_norm", axis=fixed("head_dim"), feature="qk_norm"),
        norm("attn.k.norm", ATTENTION + "k_norm", axis=fixed("head_dim"), feature="qk_norm"),
        norm("attn.out.norm", BLOCK + "post_attention_layernorm", into_residual=True),
        norm("mlp.norm", BLOCK + "pre_feedforward_layernorm"),
        *ffn(into_residual=False),
        norm("mlp.down.norm", BLOCK + "post_feedforward_layernorm", into_residual=True),
        NORM,
    ),
    head=HEAD,
    before_head=("norm",),
    tensor_axes=("kv_heads", "mlp", "vocab"),
    resizable=parts.GROUPED_QUERY_RESIZABLE,
    fixed=parts.ROTARY,
    sizes=sizes_2,
    resize=resize_2,
    tied=tied,
    architecture=lambda config: {"gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}[
        config["model_type"]
    ],
    features=features,
    half_steps=False,
    gguf={"gemma2": GgufArchitecture(name="gemma2", metadata=gguf_metadata_2, head="tied")},
    optional_prefix="model.",
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
