"""Gemma 2 and 3 (text): as Gemma, with norms after the sublayers too.

Those are what writes into the residual stream: a block whose closing norms have factor zero does nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.model import parts
from bot_dist.model.declaration import Family
from bot_dist.model.families import gemma
from bot_dist.model.families.gemma import ATTENTION, BLOCK, EMBED, HEAD, NORM, attention, features, ffn, norm, tied
from bot_dist.model.gguf import GgufArchitecture, wanted
from bot_dist.tensors.axes import fixed


def sizes(config: Mapping[str, Any]) -> dict[str, int]:
    return gemma.sizes(config, "gemma2")


def resize(config: Mapping[str, Any], target: Mapping[str, int]) -> dict[str, Any]:
    now = sizes(config)
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


def gguf_metadata(config: Mapping[str, Any], sizes: Mapping[str, int]) -> dict[str, Any]:
    """GGUF's metadata of Gemma 2. llama.cpp takes every other block for sliding, from the first on, and knows one
    softmax scale: that of a head's width, but at 46 blocks that of the residual width over the heads."""
    scale = sizes["embed"] // (sizes["kv_heads"] * sizes["group"]) if sizes["layer"] == 46 else sizes["head_dim"]
    windows = ["full_attention" if i % 2 else "sliding_attention" for i in range(sizes["layer"])]
    wanted(config, query_pre_attn_scalar=scale, layer_types=windows)
    return {
        **gemma.gguf_metadata(config, sizes),
        "context_length": config["max_position_embeddings"],
        "attention.sliding_window": config["sliding_window"] or config["max_position_embeddings"],
        "attn_logit_softcapping": float(config["attn_logit_softcapping"] or NO_CAP),
        "final_logit_softcapping": float(config["final_logit_softcapping"] or NO_CAP),
    }


FAMILY = Family(
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
    sizes=sizes,
    resize=resize,
    tied=tied,
    architecture=lambda config: {"gemma2": "Gemma2ForCausalLM", "gemma3_text": "Gemma3ForCausalLM"}[
        config["model_type"]
    ],
    features=features,
    half_steps=False,
    gguf={"gemma2": GgufArchitecture(name="gemma2", metadata=gguf_metadata, head="tied")},
    optional_prefix="model.",
    ignored=(r".*\.rotary_emb\.inv_freq",),
)
