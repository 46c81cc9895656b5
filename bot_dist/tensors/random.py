"""Random numbers that depend on a key and a position alone, so that any sharding draws the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bot_dist.tensors.boxes import Box, box_shape, runs

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

BLOCK = 2**10
"""Elements that are drawn at once, in row-major order. Another number gives other values."""


def normal(key: str, sizes: Sequence[int], box: Box) -> npt.NDArray[np.float32]:
    """Standard normal values of a box of a row-major tensor of ``sizes``, float32 of the box's shape."""
    import numpy as np

    return _drawn(key, sizes, box, lambda generator: generator.standard_normal(BLOCK, dtype=np.float32))


def uniform(key: str, sizes: Sequence[int], box: Box) -> npt.NDArray[np.float32]:
    """Values from [0, 1) of a box of a row-major tensor of ``sizes``, float32 of the box's shape."""
    import numpy as np

    return _drawn(key, sizes, box, lambda generator: generator.random(BLOCK, dtype=np.float32))


def _drawn(
    key: str, sizes: Sequence[int], box: Box, draw: Callable[[np.random.Generator], npt.NDArray[np.float32]]
) -> npt.NDArray[np.float32]:
    """Block ``b`` of the flat tensor is what ``draw`` takes from numpy's counter-based Philox with the key's hash and
    counter ``b``."""
    import numpy as np
    import xxhash

    philox = np.random.Philox(key=xxhash.xxh3_128_intdigest(key.encode()))
    generator = np.random.Generator(philox)
    initial = philox.state

    def block(number: int) -> npt.NDArray[np.float32]:
        initial["state"]["counter"][:] = (0, number, 0, 0)
        philox.state = initial
        return draw(generator)

    values = np.empty(box_shape(box), dtype=np.float32)
    flat, done = values.reshape(-1), 0
    last, drawn = -1, np.empty(0, dtype=np.float32)
    for start, stop in runs(sizes, box):
        while start < stop:
            number, offset = divmod(start, BLOCK)
            if number != last:
                last, drawn = number, block(number)
            take = min(BLOCK - offset, stop - start)
            flat[done : done + take] = drawn[offset : offset + take]
            start, done = start + take, done + take
    return values
