"""GPT-NeoX (Pythia): LayerNorm with biases, partly rotary positions, QKV fused per head, head untied.

Attention and FFN run side by side (``use_parallel_residual``) or follow each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.model import parts
from bot_dist.model.declaration import Family, Weight, size_field
from bot_dist.model.gguf import GgufArchitecture, rope_scaling, wanted
from bot_dist.model.parts import FROM_WIDTH, INTO_WIDTH, layer_norm, linear, matrix
from bot_dist.tensors.axes import fixed, read, write

HEADS_OUT = (write("heads"), fixed("qkv"), fixed("head_dim"))
HEADS_IN = (read("heads"), fixed("head_dim"))
BLOCK = "gpt_neox.layers.{layer}."
ATTENTION, FFN = BLOCK + "attention.", BLOCK + "mlp."

WEIGHTS = (
    Weight(name="embed", hf="gpt_neox.embed_in.weight", dims=((fixed("vocab"),), INTO_WIDTH), kind="table"),
    *layer_norm("attn.norm", BLOCK + "input_layernorm"),
    *linear("attn.qkv", ATTENTION + "query_key_value", HEADS_OUT, FROM_WIDTH, bias_feature="attention_bias"),
    *linear("attn.out", ATTENTION + "dense", INTO_WIDTH, HEADS_IN, into_residual=True, bias_feature="attention_bias"),
    *layer_norm("mlp.norm", BLOCK + "post_attention_layernorm"),
    *linear("mlp.up", FFN + "dense_h_to_4h", (write("mlp"),), FROM_WIDTH),
    *linear("mlp.down", FFN + "dense_4h_to_h", INTO_WIDTH, (read("mlp"),), into_residual=True),
    *layer_norm("norm", "gpt_neox.final_layer_norm"),
)

HEAD = matrix("head", "embed_out", (fixed("vocab"),), FROM_WIDTH, inside="lm_head.weight")

RESIZABLE = {
    "layers": "number of blocks",
    "embed": "width of the residual stream; always heads × head_dim in GPT-NeoX",
    "mlp": "FFN units",
    "heads": "attention heads",
}


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    embed, heads, head_dim = parts.heads_of_width(config, "gpt_neox", "hidden_size", "num_attention_heads")
    return {
        "layer": size_field(config, "num_hidden_layers", "gpt_neox"),
        "embed": embed,
        "mlp": size_field(config, "intermediate_size", "gpt_neox"),
        "heads": heads,
        "qkv": 3,
        "head_dim": head_dim,
        "vocab": size_field(config, "vocab_size", "gpt_neox"),
    }


def resize(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes(config)
    embed, heads = parts.resize_heads_of_width(now, target, "gpt_neox")
    return {
        **config,
        "num_hidden_layers": target.get("layers", now["layer"]),
        "hidden_size": embed,
        "intermediate_size": target.get("mlp", now["mlp"]),
        "num_attention_heads": heads,
    }


def gguf_metadata(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    wanted(config, hidden_act="gelu", attention_bias=True)
    rope = config["rope_parameters"]
    return {
        "block_count": sizes["layer"],
        "context_length": config["max_position_embeddings"],
        "embedding_length": sizes["embed"],
        "feed_forward_length": sizes["mlp"],
        "use_parallel_residual": bool(config["use_parallel_residual"]),
        "attention.head_count": sizes["heads"],
        "attention.layer_norm_epsilon": float(config["layer_norm_eps"]),
        "rope.dimension_count": int(sizes["head_dim"] * rope.get("partial_rotary_factor", 1.0)),
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": sizes["vocab"],
        **rope_scaling(rope),
    }


FAMILY = Family(
    name="gpt_neox",
    model_types=("gpt_neox",),
    weights=WEIGHTS,
    head=HEAD,
    before_head=("norm.weight", "norm.bias"),
    tensor_axes=("heads", "mlp", "vocab"),
    resizable=RESIZABLE,
    fixed=parts.ROTARY,
    sizes=sizes,
    resize=resize,
    tied=lambda config: bool(config.get("tie_word_embeddings", False)),
    architecture=lambda config: "GPTNeoXForCausalLM",
    features=lambda config: frozenset({"attention_bias"} if config.get("attention_bias", True) else ()),
    norm="layer",
    parallel=lambda config: bool(config.get("use_parallel_residual", True)),
    gguf={"gpt_neox": GgufArchitecture(name="gptneox", metadata=gguf_metadata, head="own")},
    optional_prefix="gpt_neox.",
    ignored=(r".*\.attention\.bias", r".*\.attention\.masked_bias", r".*\.rotary_emb\.inv_freq"),
)
