"""Work that is cut into shares, each of which goes through the same steps.

After each step, the results of all shares are put together; they go on meanwhile, where the next step can.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, Protocol

OnStep = Callable[[int], None]
"""Called with every step, in order, once all shares have done it."""


class Share(Protocol):
    """One share at work."""

    def run(self, step: int, keep: bool = True) -> None:
        """Do a step, the one after the last, and put its results on storage; unless ``keep``, they are there."""

    def close(self) -> None:
        """Remove what only this process needed."""


class SharedWork(Protocol):
    """A work that is to be done, as a small and picklable description."""

    @property
    def shares(self) -> int: ...

    @property
    def steps(self) -> int: ...

    @property
    def ahead(self) -> Literal[0, 1]:
        """Steps that may begin before the results of the one before are put together: 1 where one can, else 0."""

    def open(self, share: int) -> Share:
        """The share, before its first step."""
