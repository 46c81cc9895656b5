"""What it takes to fit a transfer to its source: memory, storage and time, before anything is read."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from bot_dist.calibrate.moments import default_wanted, sites
from bot_dist.calibrate.share import ROWS
from bot_dist.families import Model

FLOAT32, FLOAT64 = 4, 8

SQUARES = 4
"""Matrices of the size of a moment that a fit holds at its worst moment, beside what it works on."""
EIGEN, FACTOR, DROP = 9.0, 7 / 3, 2.0
"""FLOPs over n³: eigenvalues and vectors of a symmetric matrix; its Cholesky factor and a solution for n columns; and
dropping all of n units one after the other."""
PROBE = 1024
"""Size of the products that measure this machine."""


@dataclass(frozen=True, kw_only=True)
class CalibrationCost:
    """Of one calibration."""

    passes: int
    """Over the text, through the source."""
    tokens: int
    shares: int
    """Processes that share out the text."""
    share_bytes: int
    """Of tensors that one of them holds at its worst moment: a block (or what is around the blocks) in float32, the
    moments of a step, and one window's activations."""
    fit_bytes: int
    """Of matrices that the fitting process holds, one fit after the other."""
    scratch_bytes: int
    """On the calibration folder while it lasts: activations of all windows."""
    pass_flops: float
    """Of all passes together."""
    fit_flops: float

    def seconds(self, flops: float) -> float:
        """At ``flops`` per second and process."""
        return self.pass_flops / (self.shares * flops) + self.fit_flops / flops


def calibration_cost(
    model: Model,
    target: Mapping[str, int],
    axes: Sequence[str],
    *,
    tokens: int,
    held_out: int,
    context: int,
    shares: int,
    sequential: bool,
) -> CalibrationCost:
    """Of fitting ``axes`` of ``model`` to a target of the given sizes (as of ``Model.sizes``)."""
    sizes = model.sizes
    shares = max(1, min(shares, -(-tokens // context)))
    widths = {site.name: (site.size, site.layers) for site in sites(model, default_wanted(model))}
    by_block = [n for n, layers in widths.values() if layers > 1]
    embed, mlp, heads = sizes["embed"], sizes.get("mlp", 0), model.attention_width
    block = sum(model.parameter(w).size for w in model.weights if w.layered)
    around = max((model.parameter(w).size for w in model.weights if not w.layered), default=0)
    if sequential:
        moments = max(max(by_block) ** 2, embed**2 + embed * target["embed"])
        streams = 4 * embed + 2 * target["embed"] + mlp + heads
    else:
        moments, streams = sum(n * n for n in by_block), embed
    window = context * (6 * embed + 3 * mlp + 4 * heads + model.attention_width // sizes.get("head_dim", 1) * context)
    logits = context * sizes.get("vocab", 0) + 2 * ROWS * sizes.get("vocab", 0) if model.head is not None else 0
    share = FLOAT32 * max(block + window, around + logits) + FLOAT64 * moments
    fits = {axis: {"embed": embed, "mlp": mlp, "heads": heads}.get(axis, 0) for axis in axes}
    largest = max([*fits.values(), embed if sequential else 0])
    passes = (2 if sequential else 1) if axes else 0
    per_token = 2 * block * sizes["layer"] + sum(n * n * layers for n, layers in widths.values())
    flops = passes * per_token * tokens * (2 if sequential else 1) + 2 * block * sizes["layer"] * held_out * 2
    return CalibrationCost(
        passes=passes + 2 * (held_out > 0),
        tokens=tokens,
        shares=shares,
        share_bytes=share,
        fit_bytes=FLOAT64 * (SQUARES * largest**2 + 3 * largest * embed),
        scratch_bytes=FLOAT32 * tokens * streams + FLOAT64 * moments * shares,
        pass_flops=float(flops),
        fit_flops=_fit_flops(fits, embed, sizes["layer"], len(widths), sequential),
    )


def _fit_flops(fits: Mapping[str, int], embed: int, layers: int, n_sites: int, sequential: bool) -> float:
    found = 0.0
    if "embed" in fits:
        found += EIGEN * embed**3 + FACTOR * embed**3 * 2 * layers
    if sequential:
        found += FACTOR * embed**3 * 2 * layers
    for axis in {"mlp", "heads"} & fits.keys():
        n = fits[axis]
        found += layers * (DROP * n**3 + DROP * n**2 * embed + FACTOR * n**3)
    return found


def measured_flops() -> float:
    """FLOPs per second of this process, in float64 (which fits take; passes take float32, and less)."""
    values = torch.rand(PROBE, PROBE, dtype=torch.float64)
    values @ values  # once, to wake threads up
    begun = time.perf_counter()
    values @ values
    return float(2 * math.pow(PROBE, 3) / (time.perf_counter() - begun))
