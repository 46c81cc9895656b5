"""The types of values in a recipe, and what a section of it is."""

from __future__ import annotations

import os
import re
from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StrictInt, WithJsonSchema

from bot_dist.errors import nearest
from bot_dist.urls import KEYS_IN_URL

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_bytes(value: object) -> int:
    """``"512 MiB"``, ``"2GB"`` or a number of bytes, in bytes."""
    match = re.fullmatch(r"\s*(\d{1,18}(?:\.\d{1,18})?)\s*([A-Za-z]*)\s*", str(value))
    if not match or match[2].upper() not in _UNITS:
        raise ValueError(f"{value!r} is no size; write a number of bytes or for example 512 MiB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


MOST_BYTES = 2**60
_BYTES_SCHEMA = {
    "anyOf": [
        {"type": "integer", "exclusiveMinimum": 0},
        {"type": "string", "pattern": r"^\s*\d+(\.\d+)?\s*[A-Za-z]*$"},
    ]
}
Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(gt=0, le=MOST_BYTES), WithJsonSchema(_BYTES_SCHEMA)]


def _url(text: str) -> str:
    if not text:
        raise ValueError("it is empty; give a path or a URL")
    if slip := re.match(r"(file|s3a?|gs|az|abfss?|hf|https?|package)(:/(?!/)|//)", text):
        raise ValueError(f"write {slip[1]}://{text[slip.end() :]}, or ./{text} for a path")
    if re.match(r"(s3a?|gs|az|abfss?)://[^/]*:", text):
        raise ValueError(KEYS_IN_URL)
    return text


def _folder(path: str) -> str:
    if not path or "://" in path:
        raise ValueError("the output is a folder on a file system that all nodes see; only target_url may be a URL")
    return os.path.expanduser(path)


SIZES = ("layers", "embed", "mlp", "heads", "kv_heads", "head_dim", "context", "vocab")
"""Every size that some family has by a name of its own."""


def _sizes(target: dict[str, int]) -> dict[str, int]:
    for name in target:
        if name not in SIZES:
            raise ValueError(f"there is no size {name!r}; {nearest(name, SIZES)}")
    return target


Sizes = Annotated[dict[str, StrictInt], AfterValidator(_sizes)]
"""Sizes by name."""

Url = Annotated[str, AfterValidator(_url)]
"""A path or a URL."""

Folder = Annotated[str, AfterValidator(_folder)]
"""A path on a file system that all nodes see."""


class Config(BaseModel):
    """A section of a recipe: strict and frozen, every key with its docstring."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False)
