"""The terminal: what may be shown there, and how much of it."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from bot_dist.errors import presentable

PIPE_WIDTH = 120
"""Columns where the output is no terminal."""
WIDE = 110
"""Columns from which on tables have all their columns; in narrower terminals what matters least is left out."""


class _Terminal(Console):
    """Escapes what is not printable in names and texts out of files, which could move the cursor or worse."""

    verbose = False
    """Whether every event is shown."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.isprintable() or text.strip("\n").isprintable():
                yield segment
            else:
                yield Segment("\n".join(presentable(line) for line in text.split("\n")), style)

    @property
    def wide(self) -> bool:
        """Whether tables have room for all their columns."""
        return self.width >= WIDE


console = _Terminal(highlight=False, soft_wrap=True, emoji=False, markup=False)
if not console.is_terminal:
    console = _Terminal(highlight=False, soft_wrap=True, emoji=False, markup=False, width=PIPE_WIDTH)

_errors = _Terminal(highlight=False, soft_wrap=True, emoji=False, markup=False, stderr=True)


def warn(text: str) -> None:
    """Show what the user has to know; on standard error where all else is silenced."""
    (_errors if console.quiet else console).print(text, style="yellow")
