"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU, head tied or not (also SmolLM, Mistral, Qwen 2
and 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.axes import fixed
from bot_dist.families import parts
from bot_dist.families.family import Family, Weight
from bot_dist.families.parts import (
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

BLOCK = "model.layers.{layer}."
ATTENTION, FFN = BLOCK + "self_attn.", BLOCK + "mlp."
GGUF = "blk.{layer}."

WEIGHTS = (
    Weight(
        name="embed",
        hf="model.embed_tokens.weight",
        gguf="token_embd.weight",
        dims=((fixed("vocab"),), INTO_WIDTH),
        kind="table",
    ),
    rms_norm("attn.norm", BLOCK + "input_layernorm", gguf=GGUF + "attn_norm.weight"),
    matrix(
        "attn.q", ATTENTION + "q_proj", HEADS_OUT, FROM_WIDTH, gguf=GGUF + "attn_q.weight", gguf_rotary_permuted=True
    ),
    matrix("attn.k", ATTENTION + "k_proj", KV_OUT, FROM_WIDTH, gguf=GGUF + "attn_k.weight", gguf_rotary_permuted=True),
    matrix("attn.v", ATTENTION + "v_proj", KV_OUT, FROM_WIDTH, gguf=GGUF + "attn_v.weight"),
    bias("attn.q", ATTENTION + "q_proj", HEADS_OUT, feature="qkv_bias"),
    bias("attn.k", ATTENTION + "k_proj", KV_OUT, feature="qkv_bias"),
    bias("attn.v", ATTENTION + "v_proj", KV_OUT, feature="qkv_bias"),
    rms_norm("attn.q.norm", ATTENTION + "q_norm", axis=fixed("head_dim"), feature="qk_norm"),
    rms_norm("attn.k.norm", ATTENTION + "k_norm", axis=fixed("head_dim"), feature="qk_norm"),
    matrix(
        "attn.out", ATTENTION + "o_proj", INTO_WIDTH, HEADS_IN, into_residual=True, gguf=GGUF + "attn_output.weight"
    ),
    bias("attn.out", ATTENTION + "o_proj", INTO_WIDTH, into_residual=True, feature="out_bias"),
    rms_norm("mlp.norm", BLOCK + "post_attention_layernorm", gguf=GGUF + "ffn_norm.weight"),
    matrix("mlp.gate", FFN + "gate_proj", UNITS_OUT, FROM_WIDTH, gguf=GGUF + "ffn_gate.weight"),
    matrix("mlp.up", FFN + "up_proj", UNITS_OUT, FROM_WIDTH, gguf=GGUF + "ffn_up.weight"),
    matrix("mlp.down", FFN + "down_proj", INTO_WIDTH, UNITS_IN, into_residual=True, gguf=GGUF + "ffn_down.weight"),
    bias("mlp.gate", FFN + "gate_proj", UNITS_OUT, feature="mlp_bias"),
    bias("mlp.up", FFN + "up_proj", UNITS_OUT, feature="mlp_bias"),
    bias("mlp.down", FFN + "down_proj", INTO_WIDTH, into_residual=True, feature="mlp_bias"),
    rms_norm("norm", "model.norm", gguf="output_norm.weight"),
)

HEAD = matrix("head", "lm_head", (fixed("vocab"),), FROM_WIDTH, gguf="output.weight")

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
    if config.get("use_sliding_window") and not config.get("layer_types"):
        full = config.get("max_window_layers", 28)
        windows = ["full_attention" if i < full else "sliding_attention" for i in range(now["layer"])]
        resized["layer_types"] = windows
    return resized


def gguf_config(meta: Mapping[str, Any]) -> dict[str, Any]:
    heads = meta["attention.head_count"]
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
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


LLAMA = Family(
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
    gguf_config=gguf_config,
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
