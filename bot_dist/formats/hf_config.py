"""A model's configuration as ``transformers`` has it; and as it is written, so that its versions 4 and 5 load it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from bot_dist.formats.configuration import CODE, transformers_config
from bot_dist.model import Model

_SAID_OTHERWISE = ("rope_scaling", "rope_theta", "rope_local_base_freq", "rotary_pct", "rotary_emb_base", "num_labels")
"""Fields that transformers 5 reads, and writes under other names."""


def huggingface_config(model: Model) -> dict[str, Any]:
    """The model's configuration as ``transformers`` writes it, with every default."""
    config = transformers_config(model.config, architectures=[model.family.architecture(model.config)])
    plain: dict[str, Any] = config.to_dict()
    return plain


def written_config(model: Model, dtype: torch.dtype) -> dict[str, Any]:
    """``config.json`` of an export: what transformers 5 says, what 4 reads instead, and the source's own fields that
    neither knows."""
    config = huggingface_config(model)
    theirs = {*config, *CODE, *_SAID_OTHERWISE, "transformers_version"}
    own = {key: value for key, value in model.config.items() if key not in theirs and not key.startswith("_")}
    name = str(dtype).removeprefix("torch.")
    return {**own, **config, **_rope_of_4(config), "dtype": name, "torch_dtype": name}


def _rope_of_4(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields by which transformers 4 knows ``rope_parameters``; without them it takes its defaults in silence."""
    rope = config.get("rope_parameters")
    if not rope:
        return {}
    if config["model_type"] == "gpt_neox":
        return {
            "rotary_pct": rope["partial_rotary_factor"],
            "rotary_emb_base": rope["rope_theta"],
            "rope_scaling": _scaling(rope),
        }
    if "full_attention" in rope:  # apart for blocks with a window (Gemma 3)
        of_all, of_windows = rope["full_attention"], rope["sliding_attention"]
        return {
            "rope_theta": of_all["rope_theta"],
            "rope_local_base_freq": of_windows["rope_theta"],
            "rope_scaling": _scaling(of_all),
        }
    return {"rope_theta": rope["rope_theta"], "rope_scaling": _scaling(rope)}


def _scaling(rope: Mapping[str, Any]) -> dict[str, Any] | None:
    if rope.get("rope_type", "default") == "default":
        return None
    return {key: value for key, value in rope.items() if key not in ("rope_theta", "partial_rotary_factor")}
