"""GPT-2: LayerNorm with biases, learned positions, fused QKV stored ``(in, out)`` by Conv1D, tied head."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.axes import fixed, read, write
from bot_dist.errors import FamilyError
from bot_dist.families.family import Family, Weight, size_field

HEADS_OUT = (fixed("qkv"), write("heads"), fixed("head_dim"))
HEADS_IN = (read("heads"), fixed("head_dim"))
BLOCK = "transformer.h.{layer}."


def norm(name: str, hf: str) -> tuple[Weight, Weight]:
    dims = ((write("embed"),),)
    return (
        Weight(name=f"{name}.weight", hf=f"{hf}.weight", dims=dims, kind="vector", init="ones"),
        Weight(name=f"{name}.bias", hf=f"{hf}.bias", dims=dims, kind="vector", init="zeros"),
    )


WEIGHTS = (
    Weight(name="embed", hf="transformer.wte.weight", dims=((fixed("vocab"),), (write("embed"),)), kind="table"),
    Weight(name="position", hf="transformer.wpe.weight", dims=((fixed("position"),), (write("embed"),)), kind="table"),
    *norm("attn.norm", BLOCK + "ln_1"),
    Weight(name="attn.qkv.weight", hf=BLOCK + "attn.c_attn.weight", dims=((read("embed"),), HEADS_OUT)),
    Weight(name="attn.qkv.bias", hf=BLOCK + "attn.c_attn.bias", dims=(HEADS_OUT,), kind="vector", init="zeros"),
    Weight(
        name="attn.out.weight",
        hf=BLOCK + "attn.c_proj.weight",
        dims=(HEADS_IN, (write("embed"),)),
        into_residual=True,
        init="residual",
    ),
    Weight(
        name="attn.out.bias",
        hf=BLOCK + "attn.c_proj.bias",
        dims=((write("embed"),),),
        kind="vector",
        into_residual=True,
        init="zeros",
    ),
    *norm("mlp.norm", BLOCK + "ln_2"),
    Weight(name="mlp.up.weight", hf=BLOCK + "mlp.c_fc.weight", dims=((read("embed"),), (write("mlp"),))),
    Weight(name="mlp.up.bias", hf=BLOCK + "mlp.c_fc.bias", dims=((write("mlp"),),), kind="vector", init="zeros"),
    Weight(
        name="mlp.down.weight",
        hf=BLOCK + "mlp.c_proj.weight",
        dims=((read("mlp"),), (write("embed"),)),
        into_residual=True,
        init="residual",
    ),
    Weight(
        name="mlp.down.bias",
        hf=BLOCK + "mlp.c_proj.bias",
        dims=((write("embed"),),),
        kind="vector",
        into_residual=True,
        init="zeros",
    ),
    *norm("norm", "transformer.ln_f"),
)

HEAD = Weight(name="head", hf="lm_head.weight", dims=((fixed("vocab"),), (read("embed"),)))

RESIZABLE = {
    "layers": "number of blocks",
    "embed": "width of the residual stream; always heads × head_dim in GPT-2",
    "mlp": "FFN units",
    "heads": "attention heads",
}


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    embed, heads = size_field(config, "n_embd", "gpt2"), size_field(config, "n_head", "gpt2")
    if embed % heads:
        raise FamilyError(f"config.json: n_embd={embed} is not divisible by n_head={heads}")
    if config.get("add_cross_attention"):
        raise FamilyError("config.json: family 'gpt2' does not express add_cross_attention=true; use false")
    return {
        "layer": size_field(config, "n_layer", "gpt2"),
        "embed": embed,
        "mlp": size_field(config, "n_inner", "gpt2", default=4 * embed),
        "qkv": 3,
        "heads": heads,
        "head_dim": embed // heads,
        "vocab": size_field(config, "vocab_size", "gpt2"),
        "position": size_field(config, "n_positions", "gpt2"),
    }


def resize(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes(config)
    embed, heads = target.get("embed", now["embed"]), target.get("heads", now["heads"])
    if embed != heads * now["head_dim"]:
        raise FamilyError(
            f"target embed={embed} is not heads × head_dim = {heads} × {now['head_dim']}, which GPT-2 requires; "
            f"set embed={heads * now['head_dim']}"
            + (f" or heads={embed // now['head_dim']}" if embed % now["head_dim"] == 0 else "")
        )
    return {
        **config,
        "n_layer": target.get("layers", now["layer"]),
        "n_embd": embed,
        "n_head": heads,
        "n_inner": target.get("mlp", now["mlp"]),
    }


GPT2 = Family(
    name="gpt2",
    model_types=("gpt2",),
    weights=WEIGHTS,
    head=HEAD,
    before_head=("norm.weight", "norm.bias"),
    tensor_axes=("heads", "mlp", "vocab"),
    resizable=RESIZABLE,
    sizes=sizes,
    resize=resize,
    tied=lambda config: bool(config.get("tie_word_embeddings", True)),
    optional_prefix="transformer.",
    ignored=(r".*\.attn\.bias", r".*\.attn\.masked_bias"),
    context_field="n_positions",
)
