"""Applying operators to torch tensors.

Products and sums are separate, element by element and in the order of the taps, so that a value does not depend on the
tile that it is computed in: any sharding gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from bot_dist.axes import Range
from bot_dist.wavelets.operators import Operator


def apply_operator(
    x: torch.Tensor, operator: Operator, along: int, target: Range, source: Sequence[Range]
) -> torch.Tensor:
    """Rows ``target`` of the operator, applied along dimension ``along`` of a float32 tensor that holds the
    concatenation of the ``source`` ranges there."""
    indices, taps = operator.restricted(target, tuple(source))
    index = torch.from_numpy(np.ascontiguousarray(indices.T)).to(x.device)
    tap = torch.from_numpy(np.ascontiguousarray(taps.T.astype(np.float32))).to(x.device)
    shape = [1] * x.dim()
    shape[along] = -1
    total = x.index_select(along, index[0]).mul_(tap[0].view(shape))
    for row, weight in zip(index[1:], tap[1:], strict=True):
        total.add_(x.index_select(along, row).mul_(weight.view(shape)))
    return total
