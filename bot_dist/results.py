"""Results of the package's functions: typed, short when shown, and plain data where they are kept.

A new function returns a subclass of ``Result`` with fields of its own and ``rows`` that say in short what it measured.
"""

from __future__ import annotations

import dataclasses
import html
import textwrap
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from bot_dist.errors import CheckpointError

MOST_ROWS = 24
"""Rows of an object that are shown; how many more there are is said."""
WIDTH = 100
MOST_LINES = 3
"""Characters of a line and lines of a row that are shown as text."""

Row = tuple[str, str]
"""A heading and a text."""


class Shown(ABC):
    """Shows an object as its rows: ``repr`` as lines of text, a notebook as a table."""

    @abstractmethod
    def rows(self) -> Iterable[Row]:
        """The object in short, for people."""

    def __repr__(self) -> str:
        rows = _first(self.rows())
        margin = max((len(heading) for heading, _ in rows), default=0) + 4
        lines = [type(self).__name__]
        for heading, text in rows:
            wrapped = textwrap.wrap(text, WIDTH, max_lines=MOST_LINES, placeholder=" …", break_on_hyphens=False) or [""]
            lines.append(f"  {heading}".ljust(margin) + wrapped[0])
            lines += [" " * margin + line for line in wrapped[1:]]
        return "\n".join(line.rstrip() for line in lines)

    def _repr_html_(self) -> str:
        cells = "".join(
            f'<tr><th style="text-align: left">{html.escape(heading)}</th>'
            f'<td style="text-align: left">{html.escape(textwrap.shorten(text, WIDTH * MOST_LINES, placeholder=" …"))}'
            f"</td></tr>"
            for heading, text in _first(self.rows())
        )
        return f"<table><caption>{html.escape(type(self).__name__)}</caption>{cells}</table>"


@dataclass(frozen=True, kw_only=True, repr=False)
class Result(Shown):
    """The result of a function of the package, whose fields are plain data, or dataclasses of plain data."""

    def to_json(self) -> dict[str, Any]:
        """The fields as JSON gives them back. A field that is None by default is left out while it is None."""
        optional = {field.name for field in dataclasses.fields(self) if field.default is None}
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: _plain(value) for name, value in values.items() if value is not None or name not in optional}

    @classmethod
    def from_json(cls, data: Mapping[str, Any], where: str) -> Self:
        """The inverse of ``to_json``; keys that are no fields are passed over. Raises CheckpointError where the data,
        which ``where`` names, lack a field or have it of another type."""
        from pydantic import TypeAdapter, ValidationError

        try:
            result: Self = TypeAdapter(cls).validate_python(data)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(map(str, first["loc"]))
            raise CheckpointError(
                f"{where} does not record what this version does: {key}: {first['msg'].lower()}; make it again"
            ) from None
        return result


def _plain(value: Any) -> Any:
    if isinstance(value, Result):
        return value.to_json()
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return value


def _first(rows: Iterable[Row]) -> list[Row]:
    """The rows that fit on a screen, and how many more there are."""
    every = [*rows]
    return every if len(every) <= MOST_ROWS else [*every[:MOST_ROWS], ("…", f"{len(every) - MOST_ROWS} more")]
