"""What ``verify`` shows: what is damaged or missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot_dist.cli import terminal
from bot_dist.units import size
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.store.verification import Verification

MOST_FOREIGN = 10
"""Files that are no part of a store, named one by one."""


def show_verification(url: str, found: Verification) -> None:
    for damage in found.damaged:
        terminal.console.print(str(damage))
    foreign = list(found.foreign.items())
    for name, n in foreign[:MOST_FOREIGN]:
        terminal.console.print(f"note: {name} ({size(n)}) is no part of the store")
    if more := foreign[MOST_FOREIGN:]:
        terminal.console.print(f"note: so are {len(more)} more files ({size(sum(n for _, n in more))})")
    verdict = f"{len(found.damaged)} damaged or missing" if found.damaged else "intact"
    terminal.console.print(f"{label(url)}: {verdict} ({found.read})")
