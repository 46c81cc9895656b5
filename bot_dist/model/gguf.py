"""How llama.cpp's file format (GGUF) writes a family: its name there, its metadata, and what it can't express.

Format, keys and names: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Maps are stored ``(out, in)`` there,
a fused ``qkv`` axis comes first, and norms hold the whole factor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from bot_dist.errors import FamilyError

if TYPE_CHECKING:
    from bot_dist.model.declaration import Weight

NAMES = {
    "embed": "token_embd",
    "position": "position_embd",
    "attn.norm": "blk.{layer}.attn_norm",
    "attn.q": "blk.{layer}.attn_q",
    "attn.k": "blk.{layer}.attn_k",
    "attn.v": "blk.{layer}.attn_v",
    "attn.qkv": "blk.{layer}.attn_qkv",
    "attn.q.norm": "blk.{layer}.attn_q_norm",
    "attn.k.norm": "blk.{layer}.attn_k_norm",
    "attn.out": "blk.{layer}.attn_output",
    "attn.out.norm": "blk.{layer}.post_attention_norm",
    "mlp.norm": "blk.{layer}.ffn_norm",
    "mlp.gate": "blk.{layer}.ffn_gate",
    "mlp.up": "blk.{layer}.ffn_up",
    "mlp.down": "blk.{layer}.ffn_down",
    "mlp.down.norm": "blk.{layer}.post_ffw_norm",
    "norm": "output_norm",
    "head": "output",
}
"""Names of GGUF's tensors by the names of modules, without ``.weight`` or ``.bias``."""

ROTARY = ("attn.q", "attn.k")
"""Modules whose output is turned by rotary positions."""

Metadata = dict[str, Any]
"""Values by key, without the architecture's prefix: integers are written as uint32, floats as float32."""


@dataclass(frozen=True, kw_only=True)
class GgufArchitecture:
    """GGUF's form of one ``model_type``."""

    name: str
    """Value of the key ``general.architecture``."""
    metadata: Callable[[Mapping[str, Any], Mapping[str, int]], Metadata]
    """Makes the metadata from a ``transformers`` configuration with all its defaults, and the sizes of axes. Raises
    FamilyError on a configuration that llama.cpp's architecture does not compute."""
    config: Callable[[Mapping[str, Any]], dict[str, Any]] | None = None
    """Makes a ``transformers`` configuration from that metadata; None where such files are written only."""
    rotary_permuted: bool = False
    """Whether the rows of each head of ``ROTARY`` modules are stored as ``(head_dim/2, 2)`` where ``transformers`` has
    ``(2, head_dim/2)``."""
    head: Literal["tied", "own", "either"] = "either"
    """Whether the output head has to be the embedding, a tensor of its own, or may be both."""


def module_of(name: str) -> str:
    """The module that ``attn.q.weight``, ``attn.q.bias`` and plain ``attn.q`` are of."""
    return name.removesuffix(".weight").removesuffix(".bias")


def gguf_name(weight: Weight) -> str | None:
    """Name of a weight's tensors in GGUF, with ``{layer}``; None where GGUF has no name for it."""
    name = NAMES.get(module_of(weight.name))
    return name and f"{name}.{weight.hf.rpartition('.')[2]}"


def grouped_query_metadata(config: Mapping[str, Any], sizes: Mapping[str, int], activation: str) -> Metadata:
    """The metadata of Llama and its like. A window on attention is not written: instead the context ends where the
    window would begin to matter."""
    wanted(config, **{"hidden_activation" if "hidden_activation" in config else "hidden_act": activation})
    rope = config["rope_parameters"]
    return {
        "block_count": sizes["layer"],
        "context_length": min(config["max_position_embeddings"], window(config) or math.inf),
        "embedding_length": sizes["embed"],
        "feed_forward_length": sizes["mlp"],
        "attention.head_count": sizes["kv_heads"] * sizes["group"],
        "attention.head_count_kv": sizes["kv_heads"],
        "attention.key_length": sizes["head_dim"],
        "attention.value_length": sizes["head_dim"],
        "attention.layer_norm_rms_epsilon": float(config["rms_norm_eps"]),
        "rope.dimension_count": sizes["head_dim"],
        "rope.freq_base": float(rope["rope_theta"]),
        "vocab_size": sizes["vocab"],
        **rope_scaling(rope),
    }


def window(config: Mapping[str, Any]) -> int | None:
    """The number of tokens that a block looks back at; None where every block looks at all of them."""
    kinds = config.get("layer_types")
    sliding = config.get("sliding_window")
    return int(sliding) if sliding and (kinds is None or "sliding_attention" in kinds) else None


def rope_scaling(rope: Mapping[str, Any]) -> Metadata:
    """The metadata of scaled rotary positions; ``llama3`` takes a tensor (``rope_factors``) and no key.

    Raises FamilyError for kinds that are not written.
    """
    kind = rope.get("rope_type", "default")
    if kind == "linear":
        return {"rope.scaling.type": "linear", "rope.scaling.factor": float(rope["factor"])}
    if kind not in ("default", "llama3"):
        raise FamilyError(
            f"config.json: rope_type {kind!r} is not written to GGUF (default, linear and llama3 are); export "
            f"safetensors and convert them with llama.cpp's own convert_hf_to_gguf.py"
        )
    return {}


def rope_factors(rope: Mapping[str, Any], head_dim: int) -> list[float] | None:
    """The divisor of each rotary frequency, for the tensor ``rope_freqs.weight``; None where all are 1.

    Llama 3.1's rule (``transformers``: ``modeling_rope_utils``): long waves are stretched by ``factor``, short ones are
    not, and those between change over smoothly.
    """
    if rope.get("rope_type") != "llama3":
        return None
    factor, low, high = (float(rope[key]) for key in ("factor", "low_freq_factor", "high_freq_factor"))
    context, factors = rope["original_max_position_embeddings"], []
    for i in range(0, head_dim, 2):
        waves = context / (2 * math.pi * rope["rope_theta"] ** (i / head_dim))
        short = min(max((waves - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - short) / factor + short))
    return factors


def rope_of_factors(factors: Sequence[float], theta: float) -> dict[str, Any] | None:
    """The inverse of ``rope_factors``: ``rope_parameters`` that give these factors; None where none do.

    The rule has one degree of freedom more than its factors show: they depend on ``context / (high - low)`` and
    ``low / (high - low)`` alone. ``low_freq_factor`` is taken to be 1, as in what is published.
    """
    head_dim, factor = 2 * len(factors), max(factors)
    waves = [1 / (2 * math.pi * theta ** (i / head_dim)) for i in range(0, head_dim, 2)]  # per token of context
    shorts = [(1 / f - 1 / factor) / (1 - 1 / factor) if factor > 1 else 1.0 for f in factors]
    between = [(w, s) for w, s in zip(waves, shorts, strict=True) if 1e-4 < s < 1 - 1e-4]
    high = 4.0  # as published, where factors do not show it
    if len(between) > 1:  # short = (context · wave - 1) / (high - 1), a line through them
        (w0, s0), (w1, s1) = between[0], between[-1]
        slope = (s0 - s1) / (w0 - w1)
        context = round(slope / (slope * w0 - s0))
    elif between:
        ((w0, s0),) = between
        context = round((s0 * (high - 1) + 1) / w0)
    else:
        context = math.ceil(high / min((w for w, s in zip(waves, shorts, strict=True) if s > 0.5), default=waves[0]))
    if between:
        high = 1 + (context * w0 - 1) / s0
    rope = {
        "rope_type": "llama3",
        "rope_theta": theta,
        "factor": _rounded(factor),
        "low_freq_factor": 1.0,
        "high_freq_factor": _rounded(high),
        "original_max_position_embeddings": context,
    }
    if context < 1 or high <= 1:
        return None
    again = rope_factors(rope, head_dim) or []
    return rope if all(abs(x - y) <= 1e-5 * y for x, y in zip(again, factors, strict=True)) else None


def _rounded(value: float) -> float:
    """The short number that float32 has made longer."""
    return round(value, 5)


def wanted(config: Mapping[str, Any], **values: Any) -> None:
    """Raise FamilyError, naming the field, where a configuration has not what llama.cpp computes."""
    for key, value in values.items():
        if config.get(key) != value:
            raise FamilyError(
                f"config.json: {key}={config.get(key)!r}, and llama.cpp computes this architecture with {value!r} "
                f"only; export safetensors"
            )
