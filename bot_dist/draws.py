"""Random numbers that depend on a key and a position alone, so that any sharding draws the same ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bot_dist.axes import Range

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BLOCK = 2**10
"""Flat elements drawn at once. Part of the values: another block size gives others."""


def normal(key: str, sizes: Sequence[int], box: Sequence[Range]) -> npt.NDArray[np.float32]:
    """Standard normal values of a box of a row-major tensor of ``sizes``, float32 of the box's shape.

    Block ``b`` of the flat tensor is what numpy's counter-based Philox draws from the key's hash and counter ``b``.
    """
    import numpy as np
    import xxhash

    philox = np.random.Philox(key=xxhash.xxh3_128_intdigest(key.encode()))
    generator = np.random.Generator(philox)
    initial = philox.state

    def block(number: int) -> npt.NDArray[np.float32]:
        initial["state"]["counter"][:] = (0, number, 0, 0)
        philox.state = initial
        return generator.standard_normal(BLOCK, dtype=np.float32)

    shape = [stop - start for start, stop in box]
    run = next((i for i in reversed(range(len(box))) if shape[i] != sizes[i]), 0)  # axes after it are whole
    inner = math.prod(sizes[run + 1 :])
    values = np.empty((math.prod(shape[:run]), shape[run] * inner if shape else 1), dtype=np.float32)
    last, drawn = -1, np.empty(0, dtype=np.float32)
    for row, outer in enumerate(itertools.product(*(range(*r) for r in box[:run]))):
        first = 0
        for index, size in zip(outer, sizes[:run], strict=True):
            first = first * size + index
        first = (first * sizes[run] + box[run][0]) * inner if shape else 0
        done = 0
        while done < values.shape[1]:
            number, offset = divmod(first + done, BLOCK)
            if number != last:
                last, drawn = number, block(number)
            take = min(BLOCK - offset, values.shape[1] - done)
            values[row, done : done + take] = drawn[offset : offset + take]
            done += take
    return values.reshape(shape)
