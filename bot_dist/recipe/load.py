"""Recipes made of YAML files and overrides, and the members of a family."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin

import pydantic

from bot_dist.errors import RecipeError, nearest
from bot_dist.parsing import parse_yaml
from bot_dist.recipe.recipe import Recipe
from bot_dist.recipe.transfer import PRESETS
from bot_dist.recipe.values import Config

LARGEST = 2**53
"""Whole number in a recipe: what every program holds exactly."""
_UNWRITABLE = re.compile(r"[\x00-\x1f\x7f\ud800-\udfff]")
"""Control characters, and bytes that are no UTF-8."""

ConfigModel = TypeVar("ConfigModel", bound=Config)


def refuse_family(recipe: Recipe) -> Recipe:
    """The recipe, which has to be of one run. Raises RecipeError."""
    if recipe.family:
        raise RecipeError(
            f"this recipe holds a family ({', '.join(recipe.family)}): name one of it, as in RECIPE.yaml:"
            f"{next(iter(recipe.family))}; run and plan take all of it"
        )
    return recipe


def split_member(path: str | Path) -> tuple[str, str]:
    """The file of a recipe, and the member that ``RECIPE.yaml:NAME`` names, empty where it names none."""
    match = re.fullmatch(r"(.*\.ya?ml):([^/]*)", str(path))
    return (match[1], match[2]) if match else (str(path), "")


def load_recipe(path: str | Path, overrides: Iterable[str] | Mapping[str, Any] = ()) -> Recipe:
    """Read a YAML recipe and apply overrides (``"train.steps=0"`` strings, or a mapping of dotted keys). Of a family,
    ``RECIPE.yaml:NAME`` is the recipe of one member.

    Raises RecipeError when the file can't be read, a key or value is wrong, or there is no such member.
    """
    path, member = split_member(path)
    data = read_yaml(path)
    if "methods" in data:
        raise RecipeError(f"{path} is the recipe of a comparison; write: bot_dist compare {path}")
    recipe = make_recipe(data, overrides, where=path)
    return member_of(recipe, member, path) if member else recipe


def read_yaml(path: str | Path) -> dict[str, Any]:
    """The keys of a YAML file. Raises RecipeError where there are none to be read."""
    try:
        text = Path(path).read_text()
    except OSError as error:
        raise RecipeError(f"recipe {path}: {error.strerror}; give the path of a YAML file") from None
    except ValueError as error:
        raise RecipeError(f"recipe {path} is no YAML: {error}") from None
    data = parse_yaml(text, f"recipe {path}", RecipeError)
    if not isinstance(data, dict):
        raise RecipeError(f"recipe {path} holds a {type(data).__name__}; wanted keys such as 'source' and 'target'")
    return data


def members_of(recipe: Recipe, where: str = "recipe") -> dict[str, Recipe]:
    """The recipes of a family's members. They share statistics and tokens. Raises RecipeError."""
    shared = recipe.model_dump(exclude_unset=True, exclude={"family"})
    if recipe.import_to is None and re.match(r"(?!file:|package:)\w+://", recipe.source):
        shared["import_to"] = f"{recipe.output}/source.zarr"
    members = {}
    for name, member in recipe.family.items():
        preset = PRESETS.get(str(member.transfer.get("preset")), {})  # wins over what all have in common
        own = {
            "target": {**recipe.target, **member.target},
            "transfer": {**shared.get("transfer", {}), **preset, **member.transfer},
            "train": {"token_cache": f"{recipe.output}/tokens", **shared.get("train", {}), **member.train},
            "calibrate": {"folder": f"{recipe.output}/calibration", **shared.get("calibrate", {})},
            "output": f"{recipe.output}/{name}",
            **({"target_url": f"{recipe.target_url}/{name}"} if recipe.target_url else {}),
        }
        members[name] = make_recipe({**shared, **own}, where=f"{where}: family.{name}")
    return members


def member_of(recipe: Recipe, name: str, where: str = "recipe") -> Recipe:
    """The recipe of one member. Raises RecipeError when there is none of this name."""
    if name not in recipe.family:
        raise RecipeError(
            f"{where} has no member {name!r}; "
            + (nearest(name, recipe.family) if recipe.family else "it holds no family: leave the name out")
        )
    return members_of(recipe, where)[name]


def make_recipe(
    data: Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any] = (), where: str = "recipe"
) -> Recipe:
    """A validated recipe from plain data. Raises RecipeError."""
    recipe = validated(Recipe, data, overrides, where)
    members_of(recipe, where)  # whatever is wrong with one of them is said now
    return recipe


def validated(
    model: type[ConfigModel], data: Mapping[str, Any], overrides: Iterable[str] | Mapping[str, Any], where: str
) -> ConfigModel:
    """The configuration of plain data with overrides. Raises RecipeError."""
    merged: dict[str, Any] = copy.deepcopy(dict(data))
    items = overrides.items() if isinstance(overrides, Mapping) else map(_split_override, overrides)
    for dotted, value in items:
        *parents, key = dotted.split(".")
        node = merged
        for parent in parents:
            node = node.setdefault(parent, {})
            if not isinstance(node, dict):
                raise RecipeError(f"override {dotted}: '{parent}' is no section")
        node[key] = value
        if len(parents) == 1 and parents[0] != "family":
            _take_from_members(merged, parents[0], key)
    _reject_unknown_keys(model, merged, where)
    _reject_odd_values(merged, where)
    try:
        return model.model_validate(merged)
    except pydantic.ValidationError as error:
        errors = [(_keys(merged, dict(e)), dict(e)) for e in error.errors()]
        raise RecipeError(*(_told(where, keys, e) for keys, e in errors if not _not_meant(keys, e, errors))) from None


def _keys(data: Any, error: dict[str, Any]) -> list[str]:
    """Those that lead to one of pydantic's errors; it puts the kinds of value that it has tried among them."""
    keys = []
    for part in error["loc"]:
        is_key = part in data if isinstance(data, Mapping) else isinstance(data, list | tuple) and isinstance(part, int)
        if is_key or error["type"] == "missing":
            keys.append(str(part))
            data = data[part] if is_key else None
    return keys


def _not_meant(keys: list[str], error: dict[str, Any], errors: list[tuple[list[str], dict[str, Any]]]) -> bool:
    """Whether an error is about a kind of value that was not meant, because another is about the one that was: a
    mapping where a name is given, or a name where a mapping is."""
    deeper = any(len(others) > len(keys) and others[: len(keys)] == keys for others, _ in errors)
    same = any(others == keys and other["type"] != "dict_type" for others, other in errors)
    return deeper or (error["type"] == "dict_type" and same)


def _told(where: str, keys: list[str], error: dict[str, Any]) -> str:
    """One of pydantic's errors, on one line."""
    place = ": ".join(filter(None, [where, ".".join(keys)]))
    given, message = error["input"], error["msg"].removeprefix("Value error, ")
    if error["type"] == "tuple_type":
        return f"{place}: wanted a list, found {given!r}; write [{given}]"
    if error["type"] == "model_type":
        return f"{place}: wanted a section of keys, found {given!r}"
    if error["type"] == "missing" or (isinstance(given, dict) and error["type"] == "value_error"):
        return f"{place}: {message}"  # of a section as a whole
    return f"{place}: {message}" + ("" if repr(given) in message else f" (found {given!r})")


def _take_from_members(data: Mapping[str, Any], section: str, key: str) -> None:
    """An override holds for every member: none keeps a value of its own."""
    members = data.get("family")
    for member in members.values() if isinstance(members, dict) else ():
        if isinstance(member, dict) and isinstance(member.get(section), dict):
            member[section].pop(key, None)


def _split_override(text: str) -> tuple[str, Any]:
    key, sign, value = text.partition("=")
    if not sign:
        raise RecipeError(f"override {text!r} has no '='; write for example train.steps=0")
    return key, parse_yaml(value, f"override {text!r}: the value", RecipeError)


def _reject_unknown_keys(model: type[Config], data: Mapping[str, Any], where: str, path: str = "") -> None:
    for key, value in data.items():
        if key not in model.model_fields:
            raise RecipeError(f"{where}: unknown key '{path}{key}'; {nearest(str(key), model.model_fields)}")
        annotation = model.model_fields[key].annotation
        section = section_of(annotation)
        named = value.items() if get_origin(annotation) is dict and isinstance(value, Mapping) else [("", value)]
        for name, inner in named:
            if section is not None and isinstance(inner, Mapping):
                inside = f"{path}{key}.{name}." if name else f"{path}{key}."
                _reject_unknown_keys(section, inner, where, inside)


def _reject_odd_values(value: Any, where: str, path: str = "") -> None:
    """No key holds what no path can, or a number that arithmetic would choke on."""
    if isinstance(value, Mapping | list | tuple):
        for key, inner in value.items() if isinstance(value, Mapping) else enumerate(value):
            _reject_odd_values(inner, where, f"{path}.{key}" if path else str(key))
    elif isinstance(value, int) and abs(value) > LARGEST:
        raise RecipeError(f"{where}: {path} is {value}, wanted a number of at most {LARGEST:,}")
    elif isinstance(value, str) and (odd := _UNWRITABLE.search(value)):
        raise RecipeError(f"{where}: {path} holds the character {odd[0]!r}, which is in no path and no name")


def section_of(annotation: Any) -> type[Config] | None:
    """The configuration model that a key's value is, or holds; None for a plain value."""
    for kind in (annotation, *get_args(annotation)):
        if isinstance(kind, type) and issubclass(kind, Config):
            return kind
    return None
