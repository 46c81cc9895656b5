"""Seeded damage: to plain data, to text, to bytes."""

from __future__ import annotations

import copy
import json
import random
import struct
from typing import Any

HUGE = 10**19
VALUES: tuple[Any, ...] = (
    *(
        None,
        True,
        False,
        0,
        1,
        -1,
        2,
        3,
        2**31,
        2**63,
        HUGE,
        0.5,
        -0.0,
        1e308,
        float("nan"),
        float("inf"),
        "",
        "x",
        "0",
    ),
    *("\x00", "\x1b[2J", "a\nb", "../x", "/etc/passwd", "é" * 50, "\ud800", "x" * 100_000, "http://u:S3cr3t@h/x"),
    *([], {}, [[]], [None], {"a": None}, [0] * 9, ["x"] * 3, {"": {"": {}}}, [HUGE] * 300, [0] * 50_000),
)
"""In the place of others."""


def _places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of all values, but of long lists and objects a few only."""
    inner = (
        list(value.items()) if isinstance(value, dict) else list(enumerate(value)) if isinstance(value, list) else []
    )
    if len(inner) > 60:
        inner = inner[:30] + inner[-30:]
    return [path] * bool(path) + [place for key, child in inner for place in _places(child, (*path, key))]


def changed(value: Any, seed: random.Random) -> Any:
    """Plain data with one to three values changed, removed, renamed, moved or doubled."""
    value = copy.deepcopy(value)
    for _ in range(seed.choice((1, 1, 1, 2, 3))):
        places = _places(value)
        if not places:
            return seed.choice(VALUES)
        *parents, key = seed.choice(places)
        node = value
        for parent in parents:
            node = node[parent]
        how = seed.randrange(8)
        if how <= 3:
            node[key] = copy.deepcopy(seed.choice(VALUES))
        elif how == 4:
            del node[key]
        elif how == 5 and isinstance(node, dict):
            node[seed.choice(("", "x", "a\x1b[2J", "../x", "__metadata__", str(key) + "s"))] = node.pop(key)
        elif how == 6 and isinstance(node[key], int | float) and not isinstance(node[key], bool):
            node[key] = seed.choice((node[key] + 1, node[key] * 2, -node[key], node[key] * 1_000_003, float(node[key])))
        else:
            other = seed.choice(places)
            found = value
            for step in other:
                found = found[step] if isinstance(found, dict | list) and _has(found, step) else None
            node[key] = copy.deepcopy(found)
    return value


def _has(node: Any, key: Any) -> bool:
    return key in node if isinstance(node, dict) else isinstance(key, int) and key < len(node)


def damaged(data: bytes, seed: random.Random, within: int | None = None) -> bytes:
    """Bytes with some of the first ``within`` cut off, changed, doubled or overwritten."""
    found, end = bytearray(data), min(len(data), within or len(data))
    for _ in range(seed.choice((1, 1, 2, 4))):
        at = seed.randrange(max(1, end))
        match seed.randrange(7):
            case 0:
                del found[at:]
            case 1 if found:
                found[min(at, len(found) - 1)] ^= 1 << seed.randrange(8)
            case 2:
                found[at : at + 8] = struct.pack("<Q", seed.choice((0, 1, 2**31, 2**32 - 1, 2**63, 2**64 - 1)))
            case 3:
                found[at:at] = seed.randbytes(seed.choice((1, 4, 100)))
            case 4:
                found[at:at] = found[seed.randrange(max(1, len(found))) :][: seed.choice((1, 8, 200))]
            case 5:
                del found[at : at + seed.choice((1, 4, 64))]
            case _:
                found[at : at + 4] = seed.choice(
                    (b"\x00" * 4, b"\xff" * 4, b"[[[[", b'"\\u0', b"\xef\xbb\xbf{", b"99e9")
                )
    return bytes(found)


def json_text(value: Any, seed: random.Random) -> bytes:
    """JSON of a changed value; now and then it is none, or nests without end."""
    match seed.randrange(12):
        case 0:
            return damaged(json.dumps(value).encode(), seed)
        case 1:
            depth = seed.choice((100, 1_000, 100_000))
            return seed.choice((b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth))
        case 2:
            text, number = json.dumps(value), b"9" * seed.choice((50, 5_000))
            return text.encode().replace(b": ", b": " + number, 1) if seed.random() < 0.5 else number
        case _:
            return json.dumps(changed(value, seed)).encode()
