"""Model families: what each weight is called and which axes it has. A new family is one file in ``families``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.errors import FamilyError, nearest
from bot_dist.model.declaration import Family, Model, Weight
from bot_dist.model.families import FAMILIES

NOT_EXPRESSED = {
    "mixtral": "every expert is a tensor of its own, and names have no index for experts",
    "gemma3": "it has a vision tower; save its language model by itself (model_type 'gemma3_text')",
}
"""Architectures that resemble a known one but are not supported, each with the reason."""


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a ``transformers`` configuration.

    Raises FamilyError when its ``model_type`` belongs to no known family, or when its weights are quantised.
    """
    if quantised := config.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, Mapping) else None
        raise FamilyError(
            f"config.json: quantization_config (quant_method={method!r}) says that the weights are quantised; "
            f"dequantise them first (in transformers: model.dequantize(), then save_pretrained)"
        )
    model_type = config.get("model_type")
    for family in FAMILIES.values():
        if model_type in family.model_types:
            _check_class(family, config)
            return family
    known = [t for f in FAMILIES.values() for t in f.model_types]
    if isinstance(model_type, str) and model_type in NOT_EXPRESSED:
        raise FamilyError(f"config.json: architecture {model_type!r} is not known: {NOT_EXPRESSED[model_type]}")
    raise FamilyError(
        f"config.json: unknown architecture {model_type!r}; {nearest(str(model_type), known)}"
        if model_type
        else f"config.json has no 'model_type'; known: {', '.join(sorted(known))}"
    )


def _check_class(family: Family, config: Mapping[str, Any]) -> None:
    """Raise FamilyError where a configuration is for another class than the family knows: one that computes otherwise,
    or has other weights."""
    known = family.architecture(config)
    classes, code = config.get("architectures"), config.get("auto_map")
    named = [("architectures", classes[0])] if isinstance(classes, list) and classes else []
    for kind, path in code.items() if isinstance(code, Mapping) else ():
        if kind.startswith("AutoModelFor"):
            named.append((f"auto_map.{kind}", str(path).rpartition(".")[2]))
    for key, name in named:
        if name != known:
            raise FamilyError(
                f"config.json: {key} is {name!r}, which may compute something else than {known}, the class that family "
                f"'{family.name}' knows for it; if it is the same, load it as {known} and save it again"
            )


def model_of(config: Mapping[str, Any]) -> Model:
    """The model that a ``transformers`` configuration describes."""
    return Model(family=family_of(config), config=dict(config))


__all__ = ["FAMILIES", "Family", "Model", "Weight", "family_of", "model_of"]
