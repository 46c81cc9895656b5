"""GPT-2: LayerNorm with biases, learned positions, fused QKV stored ``(in, out)`` by Conv1D, tied head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.errors import FamilyError
from bot_dist.model import parts
from bot_dist.model.declaration import Family, Weight, size_field
from bot_dist.model.gguf import GgufArchitecture, wanted
from bot_dist.model.parts import FROM_WIDTH, INTO_WIDTH, layer_norm, linear, matrix
from bot_dist.tensors.axes import fixed, pointwise, read, write

HEADS_OUT = (fixed("qkv"), write("heads"), write("head_dim"))
HEADS_IN = (read("heads"), read("head_dim"))
BLOCK = "transformer.h.{layer}."
WRITER: dict[str, Any] = {"into_residual": True, "init": "residual", "conv1d": True}

WEIGHTS = (
    Weight(name="embed", hf="transformer.wte.weight", dims=((fixed("vocab"),), INTO_WIDTH), kind="table"),
    Weight(name="position", hf="transformer.wpe.weight", dims=((pointwise("position"),), INTO_WIDTH), kind="table"),
    *layer_norm("attn.norm", BLOCK + "ln_1"),
    *linear("attn.qkv", BLOCK + "attn.c_attn", HEADS_OUT, FROM_WIDTH, conv1d=True, query=True),
    *linear("attn.out", BLOCK + "attn.c_proj", INTO_WIDTH, HEADS_IN, **WRITER),
    *layer_norm("mlp.norm", BLOCK + "ln_2"),
    *linear("mlp.up", BLOCK + "mlp.c_fc", (write("mlp"),), FROM_WIDTH, conv1d=True),
    *linear("mlp.down", BLOCK + "mlp.c_proj", INTO_WIDTH, (read("mlp"),), **WRITER),
    *layer_norm("norm", "transformer.ln_f"),
)

HEAD = matrix("head", "lm_head", (fixed("vocab"),), FROM_WIDTH)

RESIZABLE = {
    "layers": "number of blocks",
    "embed": "width of the residual stream; always heads × head_dim in GPT-2",
    "mlp": "FFN units",
    "heads": "attention heads",
    "head_dim": "width of a head",
    "context": "positions",
}


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    parts.refuse(config, "gpt2", add_cross_attention=False)
    embed, heads, head_dim = parts.heads_of_width(config, "gpt2", "n_embd", "n_head")
    return {
        "layer": size_field(config, "n_layer", "gpt2"),
        "embed": embed,
        "mlp": size_field(config, "n_inner", "gpt2", default=4 * embed),
        "qkv": 3,
        "heads": heads,
        "head_dim": head_dim,
        "vocab": size_field(config, "vocab_size", "gpt2"),
        "position": size_field(config, "n_positions", "gpt2"),
    }


def resize(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes(config)
    embed, heads = parts.resize_heads_of_width(now, target, "gpt2")
    resized = {
        **config,
        "n_layer": target.get("layers", now["layer"]),
        "n_embd": embed,
        "n_head": heads,
        "n_inner": target.get("mlp", now["mlp"]),
        "n_positions": target.get("context", now["position"]),
    }
    if config.get("scale_attn_by_inverse_layer_idx") and resized["n_layer"] != now["layer"]:
        raise FamilyError(
            "config.json: with scale_attn_by_inverse_layer_idx=true a block depends on how many come before it; "
            f"keep target.layers={now['layer']}"
        )
    if config.get("scale_attn_weights") is False and embed // heads != now["head_dim"]:
        raise FamilyError(
            "config.json: with scale_attn_weights=false there is no softmax scale to follow a change of head_dim; "
            f"keep target.head_dim={now['head_dim']}"
        )
    return resized


def gguf_metadata(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    wanted(config, activation_function="gelu_new", scale_attn_weights=True, scale_attn_by_inverse_layer_idx=False)
    return {
        "block_count": sizes["layer"],
        "context_length": sizes["position"],
        "embedding_length": sizes["embed"],
        "feed_forward_length": sizes["mlp"],
        "attention.head_count": sizes["heads"],
        "attention.layer_norm_epsilon": float(config["layer_norm_epsilon"]),
        "vocab_size": sizes["vocab"],
    }


FAMILY = Family(
    name="gpt2",
    model_types=("gpt2",),
    weights=WEIGHTS,
    head=HEAD,
    before_head=("norm.weight", "norm.bias"),
    tensor_axes=("heads", "mlp", "vocab"),
    resizable=RESIZABLE,
    fixed={"vocab": parts.VOCABULARY},
    sizes=sizes,
    resize=resize,
    tied=lambda config: bool(config.get("tie_word_embeddings", True)),
    architecture=lambda config: "GPT2LMHeadModel",
    norm="layer",
    gguf={"gpt2": GgufArchitecture(name="gpt2", metadata=gguf_metadata)},
    optional_prefix="transformer.",
    ignored=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
    context_field="n_positions",
)
