"""The mesh of shard actors, and how one axis is cut over its ``tensor`` dimension."""

from __future__ import annotations

from dataclasses import dataclass

from bot_dist.errors import PlanError

MOST_ACTORS = 2**16
"""Largest mesh that can be asked for."""


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """``tensor × data`` actors. ``tensor`` cuts axes (as tensor parallelism does); ``data`` shares out what is left."""

    tensor: int = 1
    data: int = 1

    def __post_init__(self) -> None:
        for name in ("tensor", "data"):
            if getattr(self, name) < 1:
                raise PlanError(f"mesh axis '{name}' is {getattr(self, name)}; give at least 1")
        if self.size > MOST_ACTORS:
            raise PlanError(f"mesh of {self.tensor:,} × {self.data:,} actors; give at most {MOST_ACTORS:,}")

    @property
    def size(self) -> int:
        """The number of actors."""
        return self.tensor * self.data

    def rank(self, tensor: int, data: int) -> int:
        """The number of an actor, from its places along both axes of the mesh."""
        return data * self.tensor + tensor


@dataclass(frozen=True, kw_only=True)
class Cut:
    """An axis of ``size`` cut over ``degree`` owners, each owning ``tiles`` whole tiles of ``tile`` indices.

    Storage wants a regular grid and one writer per cell, so the cut is regular too: owners have ``tile · tiles``
    indices until the axis ends. The last that has any may have fewer, and on a short axis owners after it have none.
    """

    size: int
    degree: int
    tiles: int = 1

    @property
    def tile(self) -> int:
        """Indices per tile: rounded up to a power of two that divides well, where that leaves no owner empty."""
        parts = self.degree * self.tiles
        exact = -(-self.size // parts)
        for granule in (64, 32, 16, 8, 4, 2):
            rounded = -(-exact // granule) * granule
            if exact >= 4 * granule and (parts - 1) * rounded < self.size:
                return rounded
        return exact

    def owner(self, start: int) -> int:
        """The owner of the tile that begins at ``start``."""
        return start // (self.tile * self.tiles)
