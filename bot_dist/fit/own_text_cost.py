"""Plan of a text that a causal model writes itself, and what that costs, before anything is read."""

from __future__ import annotations

import math
from dataclasses import dataclass

from bot_dist.errors import PlanError
from bot_dist.fit.cost import RATE
from bot_dist.model import Model
from bot_dist.tensors.axes import ITEMSIZE

WINDOW = 256
"""Tokens of a sequence, at most: each takes a step of its own, in which all weights are gone through."""
GROUP = 24
"""Sequences that are written side by side, where that fits: the weights are gone through once for all of them."""
SAMPLING = 28
"""Bytes per token of the vocabulary while one is chosen: a float32 and three float64."""
MEMORY_RATE, STORAGE_RATE = 2e10, 1e9
"""Bytes per second of weights that a process goes through in memory, and that it reads from storage."""
CALL_S = 1e-3
"""Seconds that a block takes for a token of each sequence, however small it is."""


@dataclass(frozen=True, kw_only=True)
class Writing:
    """A text that is to be written, the processes that write it, and what that takes."""

    sequences: int
    window: int
    """Tokens of each sequence that are used; one more is written, so that windows can begin behind the first."""
    group: int
    """Sequences that are written side by side."""
    shares: int
    """Processes that share out the groups."""
    blocks: int
    held: int
    """Blocks whose weights stay in memory; those of the others are read for every token."""
    share_bytes: int
    """Bytes of tensors that a process holds: weights in float32, keys and values of a group."""
    read_bytes: int
    """Bytes of weights that all processes read from storage."""
    flops: float

    @property
    def seconds(self) -> float:
        """Seconds of the process that takes longest, at ``RATE``, ``MEMORY_RATE`` and ``STORAGE_RATE``."""
        steps = -(-self.sequences // (self.group * self.shares)) * self.window
        shared = self.flops / RATE + self.read_bytes / STORAGE_RATE
        return steps * (self.share_bytes / MEMORY_RATE + self.blocks * CALL_S) + shared / self.shares


def plan_writing(
    model: Model, *, sequences: int, window: int, places: int, memory_limit: int, stored_bytes: int
) -> Writing:
    """Plan the writing of so many ``sequences``, in at most ``places`` processes; the model takes ``stored_bytes`` on
    storage.

    All blocks are held where they fit ``memory_limit`` bytes with a sequence, and groups are as large as fit beside
    them; else groups are, and as many blocks as fit beside these. Neither depends on ``places``, so that the text does
    not. Raises PlanError where a block and a sequence do not fit.
    """
    layers, float32 = model.sizes["layer"], ITEMSIZE["float32"]
    block = float32 * sum(model.parameter(w).size for w in model.weights if w.layered)
    around = float32 * sum(model.parameter(w).size for w in model.weights if not w.layered)
    keys = model.sizes.get("kv_heads", model.sizes.get("heads", 1)) * model.sizes.get("head_dim", 1)
    sequence = float32 * 2 * (layers + 1) * keys * window + SAMPLING * model.sizes["vocab"]
    least, whole = around + min(layers, 1) * block, around + layers * block
    if least + sequence > memory_limit:
        raise PlanError(
            f"calibrate.memory_limit is {memory_limit:,} bytes, and a text that the model writes itself takes "
            f"{least + sequence:,} in one process at least; use calibrate.memory_limit="
            f"{-(-(least + sequence) // 2**30)}GiB, name a text in calibrate.text, or use transfer.analysis=wavelet, "
            f"which averages"
        )
    fits = (memory_limit - (whole if whole + sequence <= memory_limit else least)) // sequence
    group = min(GROUP, sequences, fits)
    room = memory_limit - around - group * sequence
    held = layers if layers * block <= room else room // block - 1  # one of the others at a time
    groups = -(-sequences // group)
    shares = min(places, groups)
    again = (layers - held) * block / whole * stored_bytes
    return Writing(
        sequences=sequences,
        window=window,
        group=group,
        shares=shares,
        blocks=layers,
        held=held,
        share_bytes=around + min(layers, held + 1) * block + group * sequence,
        read_bytes=math.ceil(shares * stored_bytes + groups * window * again),
        flops=float(sequences * window * model.flops_per_token(window)),
    )
