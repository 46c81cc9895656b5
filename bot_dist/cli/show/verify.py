"""The output of ``verify``: every chunk that is damaged or missing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bot_dist.cli import terminal
from bot_dist.units import size
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.store.verification import Verification

MOST_FOREIGN = 10
"""Files that are no part of a store, named one by one."""


def show_verification(url: str, verification: Verification) -> None:
    for damage in verification.damaged:
        terminal.console.print(str(damage))
    foreign = list(verification.foreign.items())
    for name, n in foreign[:MOST_FOREIGN]:
        terminal.console.print(f"note: {name} ({size(n)}) is no part of the store")
    if more := foreign[MOST_FOREIGN:]:
        terminal.console.print(f"note: so are {len(more)} more files ({size(sum(n for _, n in more))})")
    verdict = f"{len(verification.damaged)} damaged or missing" if verification.damaged else "intact"
    terminal.console.print(f"{label(url)}: {verdict} ({verification.read})")
