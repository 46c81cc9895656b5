"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU, head tied or not (also SmolLM, Mistral, Qwen 2
and 3)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from bot_dist.errors import FamilyError
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

WEIGHTS = (
    Weight(
        name="embed",
        hf="model.embed_tokens.weight",
        dims=((fixed("vocab"),), INTO_WIDTH),
        kind="table",
    ),
    rms_norm("attn.norm", BLOCK + "input_layernorm"),
    matrix("attn.q", ATTENTION + "q_proj", HEADS_OUT, FROM_WIDTH),
    matrix("attn.k", ATTENTION + "k_proj", KV_OUT, FROM_WIDTH),
    matrix("attn.v", ATTENTION + "v_proj", KV_OUT, FROM_WIDTH),
    bias("attn.q", ATTENTION + "q_proj", HEADS_OUT, feature="qkv_bias"),
    bias("attn.k", ATTENTION + "k_proj", KV_OUT, feature="qkv_bias"),
    bias("attn.v", ATTENTION + "v_proj", KV_OUT, feature="qkv_bias"),
    rms_norm("attn.q.norm", ATTENTION + "q_norm", axis=fixed("head_dim"), feature="qk_norm"),
    rms_norm("attn.k.norm", ATTENTION + "k_norm", axis=fixed("head_dim"), feature="qk_norm"),
    matrix("attn.out", ATTENTION + "o_proj", INTO_WIDTH, HEADS_IN, into_residual=True),
    bias("attn.out", ATTENTION + "o_proj", INTO_WIDTH, into_residual=True, feature="out_bias"),
    rms_norm("mlp.norm", BLOCK + "post_attention_layernorm"),
    matrix("mlp.gate", FFN + "gate_proj", UNITS_OUT, FROM_WIDTH),
    matrix("mlp.up", FFN + "up_proj", UNITS_OUT, FROM_WIDTH),
    matrix("mlp.down", FFN + "down_proj", INTO_WIDTH, UNITS_IN, into_residual=True),
    bias("mlp.gate", FFN + "gate_proj", UNITS_OUT, feature="mlp_bias"),
    bias("mlp.up", FFN + "up_proj", UNITS_OUT, feature="mlp_bias"),
    bias("mlp.down", FFN + "down_proj", INTO_WIDTH, into_residual=True, feature="mlp_bias"),
    rms_norm("norm", "model.norm"),
)

HEAD = matrix("head", "lm_head", (fixed("vocab"),), FROM_WIDTH)

CLASSES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}


def features(config: Mapping[str, Any]) -> frozenset[str]:
    model_type, present = config["model_type"], set()
    if model_type == "qwen2":
        present.add("qkv_bias")
    if model_type == "qwen3":
        present.add("qk_norm")
    if model_type in ("llama", "qwen3") and config.get("attention_bias"):
        present |= {"qkv_bias", "out_bias"}
    if model_type == "llama" and config.get("mlp_bias"):
        present.add("mlp_bias")
    return frozenset(present)


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    return parts.grouped_query_sizes(config, "llama", head_dim=128 if config["model_type"] == "qwen3" else None)


def resize(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes(config)
    resized = parts.grouped_query_resize(config, target, now)
    if config["model_type"] == "llama":
        parts.check_divisible_by_heads(resized, "llama")
    if config.get("use_sliding_window") and not config.get("layer_types"):
        full = config.get("max_window_layers", 28)
        windows = ["full_attention" if i < full else "sliding_attention" for i in range(now["layer"])]
        resized["layer_types"] = windows
    return resized


def gguf_config(meta: Mapping[str, Any], model_type: str) -> dict[str, Any]:
    heads = meta["attention.head_count"]
    return {
        "architectures": [CLASSES[model_type]],
        "model_type": model_type,
        "hidden_act": "silu",
        "num_hidden_layers": meta["block_count"],
        "hidden_size": meta["embedding_length"],
        "intermediate_size": meta["feed_forward_length"],
        "num_attention_heads": heads,
        "num_key_value_heads": meta.get("attention.head_count_kv", heads),
        "head_dim": meta.get("attention.key_length", meta["embedding_length"] // heads),
        "max_position_embeddings": meta["context_length"],
        "rms_norm_eps": meta["attention.layer_norm_rms_epsilon"],
        "rope_theta": meta.get("rope.freq_base", 10000.0),
        "vocab_size": meta["vocab_size"],
        "attention_bias": False,
        "mlp_bias": False,
        "initializer_range": 0.02,
    }


def gguf_metadata(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    metadata = grouped_query_metadata(config, sizes, "silu")
    width = sizes["kv_heads"] * sizes["group"] * sizes["head_dim"]
    if config["model_type"] == "qwen2" and width != sizes["embed"]:
        raise FamilyError(
            f"config.json: heads × head_dim = {width}, and llama.cpp takes a qwen2 of that width only, not of "
            f"{sizes['embed']}; export safetensors"
        )
    if config["model_type"] == "qwen3":
        wanted(config, attention_bias=False)
    return metadata


def gguf_architecture(name: str, model_type: str, *, rotary_permuted: bool = False) -> GgufArchitecture:
    return GgufArchitecture(
        name=name,
        metadata=gguf_metadata,
        config=partial(gguf_config, model_type=model_type),
        rotary_permuted=rotary_permuted,
    )


AS_LLAMA = gguf_architecture("llama", "llama", rotary_permuted=True)

FAMILY = Family(
    name="llama",
    model_types=tuple(CLASSES),
    weights=WEIGHTS,
    head=HEAD,
    before_head=("norm",),
    tensor_axes=("kv_heads", "mlp", "vocab"),
    resizable=parts.GROUPED_QUERY_RESIZABLE,
    fixed=parts.ROTARY,
    sizes=sizes,
    resize=resize,
    tied=lambda config: bool(config.get("tie_word_embeddings", False)),
    architecture=lambda config: CLASSES[config["model_type"]],
    features=features,
    gguf={
        "llama": AS_LLAMA,
        "mistral": AS_LLAMA,
        "qwen2": gguf_architecture("qwen2", "qwen2"),
        "qwen3": gguf_architecture("qwen3", "qwen3"),
    },
    optional_prefix="model.",
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
