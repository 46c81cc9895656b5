"""A configuration as people and editors want it: YAML with the documentation of every key, and a JSON schema."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Mapping
from typing import Any

import yaml

from bot_dist.recipe.load import section_of
from bot_dist.recipe.values import Config

_WIDTH = 100


def commented(model: type[Config], data: Mapping[str, Any]) -> str:
    """YAML of a configuration's plain data, each key under what it does."""
    return "\n".join(_lines(model, data, "")) + "\n"


def _lines(model: type[Config], data: Mapping[str, Any], indent: str) -> Iterator[str]:
    for name, value in data.items():
        field = model.model_fields[name]
        section = section_of(field.annotation)
        about = field.description or (section.__doc__ if section else None) or ""
        for line in textwrap.wrap(" ".join(about.replace("``", "`").split()), _WIDTH - len(indent)):
            yield f"{indent}# {line}"
        if section is not None and isinstance(value, Mapping) and value and value.keys() <= section.model_fields.keys():
            yield f"{indent}{name}:"
            yield from _lines(section, value, f"{indent}  ")
        else:
            text = yaml.safe_dump({name: value}, sort_keys=False, allow_unicode=True).rstrip("\n")
            yield textwrap.indent(text, indent)


def schema(model: type[Config]) -> dict[str, Any]:
    """The JSON schema of a recipe's YAML, with the documentation of every key."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **model.model_json_schema()}
