"""The memory that the compiled pass works on: the two tensors, and what a thread needs beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bot_dist.kernels.simd import LANES

SLACK = 8 * LANES
"""Elements of room behind every buffer, because kernels compute whole vectors."""


class Memory(NamedTuple):
    """A tensor in memory, of float32 or, if ``half``, of bfloat16."""

    address: int
    half: bool
    past_cache: bool
    """Whether a target is written past the cache: it is aligned to 64 bytes, and larger than the cache."""


class Scratch(NamedTuple):
    """The buffers that one thread works in, as addresses, and their sizes."""

    here: int
    there: int
    row: int
    phases: int
    turned: int
    offsets: int
    taps: int
    phase_offsets: int
    phase_taps: int
    starts: int
    pitch: int
    """Elements from one phase to the next in ``phases``."""
    batch: int
    """Number of rows that are transposed at a time."""


@dataclass(frozen=True)
class ScratchSizes:
    """The number of elements of each buffer of a Scratch."""

    here: int
    there: int
    row: int
    phases: int
    turned: int
    width: int
    phase_taps: int
    starts: int
    pitch: int
    batch: int

    def allocate(self) -> tuple[Scratch, npt.NDArray[np.float32]]:
        """Make the buffers. The array that is returned beside them holds their memory, and has to live as long as
        they."""
        floats = [self.here, self.there, self.row, self.phases, self.turned]
        small = [2 * self.width, self.width, 2 * self.phase_taps, self.phase_taps, 2 * self.starts]
        sizes = [-(-(n + SLACK) // LANES) * LANES for n in floats + small]
        memory = np.zeros(sum(sizes) + LANES, np.float32)
        start = -(-memory.ctypes.data // 64) * 64
        addresses = [start + 4 * sum(sizes[:i]) for i in range(len(sizes))]
        return Scratch._make([*addresses, self.pitch, self.batch]), memory
