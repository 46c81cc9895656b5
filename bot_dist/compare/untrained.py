"""The configuration of a model that is trained from scratch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from bot_dist.errors import RecipeError, nearest
from bot_dist.model import FAMILIES, Family, model_of


def family_of(model_type: str) -> Family:
    """Raises RecipeError for a type that is not known."""
    known = {name: family for family in FAMILIES.values() for name in family.model_types}
    if model_type not in known:
        raise RecipeError(f"pretrain.model_type: unknown {model_type!r}; {nearest(model_type, known)}")
    return known[model_type]


def vocabulary(tokenizer: Any) -> dict[str, Any]:
    """The fields of a language model's configuration that its tokenizer decides."""
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("bos", "eos", "pad")}
    return {"vocab_size": len(tokenizer), **ids}


def labels(classes: Sequence[str]) -> dict[str, Any]:
    """The fields of an image classifier's configuration that its classes decide."""
    return {"id2label": dict(enumerate(classes)), "label2id": {name: i for i, name in enumerate(classes)}}


def untrained_config(
    model_type: str, sizes: Mapping[str, int], fields: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, Any]:
    """The default configuration of ``transformers`` for ``model_type``, with the given fields and sizes, and the fields
    that the ``data`` decides (``vocabulary``, ``labels``).

    Raises RecipeError for a type or field that is not known, FamilyError for sizes that the family can't have.
    """
    from transformers import AutoConfig

    family_of(model_type)
    config = AutoConfig.for_model(model_type).to_dict()
    for name in fields:
        if name not in config:
            raise RecipeError(f"pretrain.fields: {model_type} has no field {name!r}; {nearest(name, config)}")
    model = model_of({**config, **data, **fields}).resized(sizes)
    return {**model.config, "architectures": [model.family.architecture(model.config)]}
