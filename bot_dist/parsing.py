"""JSON and YAML from strangers: read within bounds of size, nesting and digits, so that whatever is read can be copied,
compared, written and shown."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from bot_dist.errors import SourceError

MOST_DEPTH = 64
"""Most lists and objects inside each other."""
MOST_DIGITS = 40
"""Most digits of a whole number: ``transformers`` itself writes lengths of 1e30."""
JSON_BYTES = 100_000_000
"""Most bytes of a JSON text: as many as the reference implementation of safetensors takes as a header."""
YAML_BYTES = 2**18
"""Most characters of a YAML text."""
YAML_NODES = 20_000
"""Most values of a YAML text, those behind aliases counted wherever they are named."""


def parse_json(
    data: bytes | str,
    where: str,
    as_error: type[Exception] = SourceError,
    most_bytes: int = JSON_BYTES,
    largest: int = 10**MOST_DIGITS,
) -> Any:
    """Read JSON of at most ``most_bytes`` bytes, without duplicate keys and without larger whole numbers than
    ``largest``. Raises an ``as_error`` for anything else, with ``where`` as its name."""

    def whole(digits: str) -> int:
        if len(digits) > MOST_DIGITS:
            raise ValueError(f"a number of {len(digits):,} digits")
        if (number := int(digits)) > largest:
            raise ValueError(f"the number {number:,}, over {largest:,}")
        return number

    if len(data) > most_bytes:
        raise as_error(f"{where}: {len(data):,} bytes of JSON, wanted at most {most_bytes:,}; the file is damaged")
    try:
        parsed = json.loads(data, object_pairs_hook=_unique, parse_int=whole)
        _check_depth(parsed)
        if "\\u" in data if isinstance(data, str) else b"\\u" in data:
            json.dumps(parsed, ensure_ascii=False).encode()  # half a character can be neither written nor shown
    except (ValueError, RecursionError) as error:
        raise as_error(f"{where} is no valid JSON: {_reason(error)}; it is damaged, get it again") from None
    return parsed


def parse_object(
    data: bytes | str,
    where: str,
    as_error: type[Exception] = SourceError,
    most_bytes: int = JSON_BYTES,
    largest: int = 10**MOST_DIGITS,
) -> dict[str, Any]:
    """Read a JSON object, within the bounds of ``parse_json``. Raises an ``as_error`` for anything else, with ``where``
    as its name."""
    parsed = parse_json(data, where, as_error, most_bytes, largest)
    if not isinstance(parsed, dict):
        raise as_error(f"{where} is a JSON {type(parsed).__name__}, wanted an object")
    return parsed


def parse_yaml(text: str, where: str, as_error: type[Exception]) -> Any:
    """Read a YAML document of bounded size in which no key is given twice; None for an empty one. Raises an
    ``as_error`` for anything else, with ``where`` as its name."""
    import yaml

    if len(text) > YAML_BYTES:
        raise as_error(f"{where}: {len(text):,} characters of YAML, wanted at most {YAML_BYTES:,}")
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _count(node, {}, 0)
        return loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        place = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise as_error(f"{where} is no YAML: {error.problem}{place}") from None
    except Exception as error:  # PyYAML lets through what its constructors of dates, numbers and truths raise
        raise as_error(f"{where} is no YAML: {_reason(error)}") from None


def _unique(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    result: dict[str, Any] = {}
    for key, value in pairs:
        if key in result:
            raise ValueError(f"key {key!r} appears twice")
        result[key] = value
    return result


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(MOST_DEPTH):
        inner = [v.values() if isinstance(v, Mapping) else v for v in level if isinstance(v, dict | list)]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return
    raise RecursionError


def _count(node: Any, known: dict[int, tuple[int, int]], depth: int) -> tuple[int, int]:
    """The number of values under a node, those behind aliases counted each time, and of levels of them. Raises
    ValueError where there are too many values, and as ``_children`` does; RecursionError where there are too many
    levels."""
    if depth > MOST_DEPTH:  # also where an alias names what it is a part of
        raise RecursionError
    if id(node) not in known:
        children, levels, number = _children(node), 0, 1
        for child in children:
            inner, below = _count(child, known, depth + 1)
            number, levels = number + inner, max(levels, below + 1)
        known[id(node)] = number, levels
    number, levels = known[id(node)]
    if depth + levels > MOST_DEPTH:
        raise RecursionError
    if number > YAML_NODES:
        raise ValueError(f"more than {YAML_NODES:,} values, those behind aliases counted each time")
    return number, levels


def _children(node: Any) -> list[Any]:
    """The values in a list or a mapping; none in any other node. Raises ValueError on a whole number of too many
    digits, on a key that is no text, and on one that is given twice."""
    if isinstance(node.value, str):
        if node.tag.endswith(":int") and len(node.value) > MOST_DIGITS:
            raise ValueError(f"a number of {len(node.value):,} digits")
        return []
    if not node.value or not isinstance(node.value[0], tuple):
        return [*node.value]
    seen = set()
    for key, _ in node.value:
        where = f"line {key.start_mark.line + 1}"
        if not isinstance(key.value, str):
            raise ValueError(f"{where}: a key that is no text")
        if key.value in seen:
            raise ValueError(f"key '{key.value}' is given twice ({where})")
        seen.add(key.value)
    return [value for _, value in node.value]


def _reason(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return f"more than {MOST_DEPTH} levels"
    return " ".join(str(error).split()) or type(error).__name__
