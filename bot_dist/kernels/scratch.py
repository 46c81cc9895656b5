"""The memory that the compiled pass works on: the two tensors, and what a thread needs beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from bot_dist.kernels.simd import LANES

SLACK = 8 * LANES
"""Elements behind every buffer: kernels compute whole vectors."""


class Memory(NamedTuple):
    """A tensor: float32, or bfloat16 if ``half``."""

    address: int
    half: bool
    past_cache: bool
    """As a target: whether it is aligned to 64 bytes and so large that the cache can't hold it."""


class Scratch(NamedTuple):
    """What one thread works in: addresses, and three sizes."""

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
    """Of ``phases``."""
    batch: int
    """Rows that are transposed at a time."""


@dataclass(frozen=True)
class ScratchSizes:
    """Elements of each buffer of a Scratch."""

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
        """The scratch and what has to be kept as long as it is used."""
        floats = [self.here, self.there, self.row, self.phases, self.turned]
        small = [2 * self.width, self.width, 2 * self.phase_taps, self.phase_taps, 2 * self.starts]
        sizes = [-(-(n + SLACK) // LANES) * LANES for n in floats + small]
        memory = np.zeros(sum(sizes) + LANES, np.float32)
        start = -(-memory.ctypes.data // 64) * 64
        addresses = [start + 4 * sum(sizes[:i]) for i in range(len(sizes))]
        return Scratch._make([*addresses, self.pitch, self.batch]), memory
