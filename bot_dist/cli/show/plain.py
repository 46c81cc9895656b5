"""Forms of output that several verbs share."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from bot_dist.cli import terminal


def show_json(data: Any) -> None:
    """Plain data on standard output, whatever else is silenced."""
    print(json.dumps(data, indent=1))


def show_facts(lines: Iterable[tuple[str, str]]) -> None:
    """Show facts, a line each: a heading and a text."""
    for heading, text in lines:
        terminal.console.print(f"{heading:<14} {text}")


def shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
