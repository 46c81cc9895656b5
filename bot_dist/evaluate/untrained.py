"""The configuration of a model that is trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.errors import RecipeError, nearest
from bot_dist.families import FAMILIES, model_of


def untrained_config(
    model_type: str, sizes: Mapping[str, int], fields: Mapping[str, Any], tokenizer: Any
) -> dict[str, Any]:
    """What ``transformers`` has by default for ``model_type``, with the given fields and the tokenizer's vocabulary,
    and of the given sizes.

    Raises RecipeError for a type or field that is not known, FamilyError for sizes that the family can't have.
    """
    from transformers import AutoConfig

    known = [name for family in FAMILIES.values() for name in family.model_types]
    if model_type not in known:
        raise RecipeError(f"pretrain.model_type: unknown {model_type!r}; {nearest(model_type, known)}")
    config = AutoConfig.for_model(model_type).to_dict()
    for name in fields:
        if name not in config:
            raise RecipeError(f"pretrain.fields: {model_type} has no field {name!r}; {nearest(name, config)}")
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model = model_of({**config, "vocab_size": len(tokenizer), **ids, **fields}).resized(sizes)
    return {**model.config, "architectures": [model.family.architecture(model.config)]}
