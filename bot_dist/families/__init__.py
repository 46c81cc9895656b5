"""What the weights of each model family are: names to named axes. A new family is one file here and one line below."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.errors import FamilyError, nearest
from bot_dist.families.family import Family, Model, Weight
from bot_dist.families.gpt2 import GPT2
from bot_dist.families.llama import LLAMA

FAMILIES: dict[str, Family] = {"gpt2": GPT2, "llama": LLAMA}


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a ``transformers`` configuration.

    Raises FamilyError when its ``model_type`` belongs to no known family.
    """
    model_type = config.get("model_type")
    for family in FAMILIES.values():
        if model_type in family.model_types:
            return family
    known = [t for f in FAMILIES.values() for t in f.model_types]
    raise FamilyError(
        f"config.json: unknown architecture {model_type!r}; {nearest(str(model_type), known)}"
        if model_type
        else f"config.json has no 'model_type'; known: {', '.join(sorted(known))}"
    )


def model_of(config: Mapping[str, Any]) -> Model:
    """The model that a ``transformers`` configuration describes."""
    return Model(family=family_of(config), config=dict(config))


__all__ = ["FAMILIES", "Family", "Model", "Weight", "family_of", "model_of"]
