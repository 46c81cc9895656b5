"""Owners of steps: an actor of the tensor-parallel rank that the tile lies in, or the one with least to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bot_dist.tensors import Mesh

SLACK = 1.03
"""The factor up to which an actor may exceed its fair share for the sake of owning what lies in its rank."""


def balanced(costs: Sequence[int], ranks: Sequence[int | None], mesh: Mesh) -> npt.NDArray[np.int64]:
    """The rank of the actor that owns each step, ``(steps,)``; the costliest steps are given away first. ``ranks``: the
    tensor-parallel rank of each step's tile, None where it has none.

    Actors of a rank share out its tiles. What would get them over the fair share (an axis may not divide evenly) goes
    to whoever has least, as does what belongs to no rank.
    """
    loads = np.zeros(mesh.size)
    by_rank = loads.reshape(mesh.data, mesh.tensor)  # a view: rank = data · tensor degree + tensor
    fair = sum(costs) / mesh.size * SLACK
    owners = np.empty(len(costs), dtype=np.int64)
    for step in np.argsort(-np.asarray(costs, dtype=np.int64), kind="stable").tolist():
        tensor, owner = ranks[step], -1
        if tensor is not None:
            owner = mesh.rank(tensor, int(by_rank[:, tensor].argmin()))
        if owner < 0 or loads[owner] + costs[step] > fair:
            owner = int(loads.argmin())
        loads[owner] += costs[step]
        owners[step] = owner
    return owners
