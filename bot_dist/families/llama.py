"""Llama: RMSNorm, rotary positions, grouped-query attention, SwiGLU, head tied or not (also SmolLM, Mistral)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.axes import fixed, read, write
from bot_dist.errors import FamilyError
from bot_dist.families.family import Family, Weight, size_field

HEADS_OUT = (write("kv_heads"), write("group"), fixed("head_dim"))
HEADS_IN = (read("kv_heads"), read("group"), fixed("head_dim"))
KV_OUT = (write("kv_heads"), fixed("head_dim"))
BLOCK = "model.layers.{layer}."

WEIGHTS = (
    Weight(
        name="embed",
        hf="model.embed_tokens.weight",
        gguf="token_embd.weight",
        dims=((fixed("vocab"),), (write("embed"),)),
        kind="table",
    ),
    Weight(
        name="attn.norm",
        hf=BLOCK + "input_layernorm.weight",
        gguf="blk.{layer}.attn_norm.weight",
        dims=((write("embed"),),),
        kind="vector",
        init="ones",
    ),
    Weight(
        name="attn.q",
        hf=BLOCK + "self_attn.q_proj.weight",
        gguf="blk.{layer}.attn_q.weight",
        gguf_rotary_permuted=True,
        dims=(HEADS_OUT, (read("embed"),)),
    ),
    Weight(
        name="attn.k",
        hf=BLOCK + "self_attn.k_proj.weight",
        gguf="blk.{layer}.attn_k.weight",
        gguf_rotary_permuted=True,
        dims=(KV_OUT, (read("embed"),)),
    ),
    Weight(
        name="attn.v",
        hf=BLOCK + "self_attn.v_proj.weight",
        gguf="blk.{layer}.attn_v.weight",
        dims=(KV_OUT, (read("embed"),)),
    ),
    Weight(
        name="attn.out",
        hf=BLOCK + "self_attn.o_proj.weight",
        gguf="blk.{layer}.attn_output.weight",
        dims=((write("embed"),), HEADS_IN),
        into_residual=True,
    ),
    Weight(
        name="mlp.norm",
        hf=BLOCK + "post_attention_layernorm.weight",
        gguf="blk.{layer}.ffn_norm.weight",
        dims=((write("embed"),),),
        kind="vector",
        init="ones",
    ),
    Weight(
        name="mlp.gate",
        hf=BLOCK + "mlp.gate_proj.weight",
        gguf="blk.{layer}.ffn_gate.weight",
        dims=((write("mlp"),), (read("embed"),)),
    ),
    Weight(
        name="mlp.up",
        hf=BLOCK + "mlp.up_proj.weight",
        gguf="blk.{layer}.ffn_up.weight",
        dims=((write("mlp"),), (read("embed"),)),
    ),
    Weight(
        name="mlp.down",
        hf=BLOCK + "mlp.down_proj.weight",
        gguf="blk.{layer}.ffn_down.weight",
        dims=((write("embed"),), (read("mlp"),)),
        into_residual=True,
    ),
    Weight(
        name="norm",
        hf="model.norm.weight",
        gguf="output_norm.weight",
        dims=((write("embed"),),),
        kind="vector",
        init="ones",
    ),
)

HEAD = Weight(
    name="head",
    hf="lm_head.weight",
    gguf="output.weight",
    dims=((fixed("vocab"),), (read("embed"),)),
)

RESIZABLE = {
    "layers": "number of blocks",
    "embed": "width of the residual stream",
    "mlp": "FFN units",
    "heads": "query heads",
    "kv_heads": "key/value heads",
}


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    embed = size_field(config, "hidden_size", "llama")
    heads = size_field(config, "num_attention_heads", "llama")
    kv_heads = size_field(config, "num_key_value_heads", "llama", default=heads)
    for unsupported in ("attention_bias", "mlp_bias"):
        if config.get(unsupported):
            raise FamilyError(f"config.json: family 'llama' does not express {unsupported}=true yet; use false")
    if heads % kv_heads:
        raise FamilyError(
            f"config.json: num_attention_heads={heads} is not divisible by num_key_value_heads={kv_heads}; "
            f"every key/value head serves the same number of query heads"
        )
    if not config.get("head_dim") and embed % heads:
        raise FamilyError(f"config.json: no head_dim, and hidden_size={embed} is not divisible by {heads} heads")
    return {
        "layer": size_field(config, "num_hidden_layers", "llama"),
        "embed": embed,
        "mlp": size_field(config, "intermediate_size", "llama"),
        "kv_heads": kv_heads,
        "group": heads // kv_heads,
        "head_dim": size_field(config, "head_dim", "llama", default=embed // heads),
        "vocab": size_field(config, "vocab_size", "llama"),
    }


def resize(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes(config)
    heads = target.get("heads", now["kv_heads"] * now["group"])
    kv_heads = target.get("kv_heads", now["kv_heads"])
    if heads % kv_heads:
        raise FamilyError(
            f"target heads={heads} is not divisible by kv_heads={kv_heads}; give kv_heads that divides heads, "
            f"or heads={kv_heads * now['group']} to keep {now['group']} query heads per key/value head"
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
    model_types=("llama", "mistral"),
    weights=WEIGHTS,
    head=HEAD,
    before_head=("norm",),
    tensor_axes=("kv_heads", "mlp", "vocab"),
    resizable=RESIZABLE,
    sizes=sizes,
    resize=resize,
    tied=lambda config: bool(config.get("tie_word_embeddings", False)),
    gguf_config=gguf_config,
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
