"""Which actor owns which step: one of the tensor-parallel rank that the tile lies in, or the one with least to do."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from bot_dist.tensors import Mesh

SLACK = 1.03
"""How far over its fair share an actor may get for the sake of owning what lies in its rank."""


def balanced(costs: Sequence[int], ranks: Sequence[int | None], mesh: Mesh) -> npt.NDArray[np.int64]:
    """An owner for every step, the costliest first. ``ranks``: the tensor-parallel rank of its tile, if it has one.

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
