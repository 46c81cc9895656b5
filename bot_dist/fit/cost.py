"""Cost of fitting a transfer to its source: memory, storage and time, known before anything is read."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bot_dist.fit.candidates import Candidate
from bot_dist.fit.sites import default_wanted, sites
from bot_dist.fit.statistics_share import ROWS
from bot_dist.model import Model
from bot_dist.recipe import Basis, CalibrateConfig
from bot_dist.tensors.axes import ITEMSIZE

FLOAT32, FLOAT64 = ITEMSIZE["float32"], ITEMSIZE["float64"]

SQUARES = 4
"""Matrices of the size of a moment that a fit holds at its worst moment."""
EIGEN, FACTOR, DROP = 9.0, 7 / 3, 2.0
"""FLOPs over n³: eigenvalues and vectors of a symmetric matrix; its Cholesky factor and a solution for n columns; and
dropping all of n units one after the other."""
RATE = 5e10
"""FLOPs per second of a process on a few CPU cores, to turn FLOPs into time."""


@dataclass(frozen=True, kw_only=True)
class CalibrationCost:
    """The cost of one calibration."""

    shares: int
    """Processes that share out the samples; 0 where there are none."""
    share_bytes: int
    """Bytes of tensors that one of them holds at its worst moment: a block (or what is around the blocks) in float32,
    the moments of a step, one sample's activations, all samples."""
    fit_bytes: int
    """Bytes of matrices that the process which fits holds, one thing after the other."""
    scratch_bytes: int
    """Bytes on storage while it lasts: activations of all samples, sums of a step."""
    pass_flops: float
    """FLOPs of all passes over the samples, at most: where the shrunk model follows the source, three forward ones and
    two that sum moments."""
    fit_flops: float
    """FLOPs of fitting all candidates."""
    rank_flops: float
    """FLOPs of measuring the losses that the candidates are ranked by."""
    measure_flops: float
    """FLOPs of measuring other held-out losses."""

    @property
    def seconds(self) -> float:
        """Seconds that all of it takes, at ``RATE``."""
        return ((self.pass_flops + self.rank_flops + self.measure_flops) / max(1, self.shares) + self.fit_flops) / RATE

    @property
    def flops(self) -> float:
        """FLOPs of making the start: without measuring the losses that nothing is ranked by."""
        return self.pass_flops + self.fit_flops + self.rank_flops


def calibration_cost(
    model: Model,
    target: Model,
    axes: Sequence[str],
    config: CalibrateConfig,
    *,
    basis: Basis,
    shares: int,
    stages: Sequence[Sequence[Candidate]],
) -> CalibrationCost:
    """The cost of fitting ``axes`` of ``model``, in ``shares`` processes (0: to its weights alone), by the candidates
    that are tried at each of the ``stages``."""
    tried = [candidate for stage in stages for candidate in stage]
    sequential, at_once = (any(c.sequential is kind for c in tried) for kind in (True, False))
    sizes, embed = model.sizes, model.sizes["embed"]
    widths = {"embed": embed, "mlp": sizes.get("mlp", 0), "heads": model.attention_width}
    wanted = {*default_wanted(model)}
    if "embed" in axes and target.sizes["embed"] < embed and basis == "permutation" and at_once:
        wanted |= {name for w in model.weights if (name := model.family.read_with(w))}
    seen = sites(model, wanted)
    in_block = [site.size for site in seen if site.layered]
    moments, streams = sum(n * n for n in in_block) if at_once else 0, embed
    if sequential:
        moments = max(moments, max(in_block) ** 2, embed * (embed + target.sizes["embed"]))
        streams = 4 * embed + 3 * target.sizes["embed"] + widths["mlp"] + widths["heads"]
    block = sum(model.parameter(w).size for w in model.weights if w.layered)
    around = max(model.parameter(w).size for w in model.weights if not w.layered)
    context, vocab = model.tokens_per_sample(config.context), sizes.get("vocab", 0)
    n_heads = widths["heads"] // sizes.get("head_dim", 1)
    window = context * (6 * embed + 3 * widths["mlp"] + 4 * widths["heads"] + n_heads * context)
    logits = (context + 2 * ROWS) * vocab if model.head is not None else 0
    fitted = {widths[axis] for axis in axes if axis in widths} | ({embed} if sequential else set())
    largest = max(fitted, default=0)
    forward, summed = 2 * block * sizes["layer"], sum(2 * site.size**2 * site.layers for site in seen)
    passes = 3 * forward + 2 * summed if sequential else len(stages) * (forward + summed)
    measured = forward * config.held_out if shares else 0
    ranked = sum(len(stage) for stage in stages if len(stage) > 1)
    shown = config.tokens * math.prod(sizes.get(axis, 1) for axis in ("channel", "patch_height", "patch_width"))
    return CalibrationCost(
        shares=shares,
        share_bytes=FLOAT32 * (max(block + window, around + logits) + shown) + FLOAT64 * moments if shares else 0,
        fit_bytes=FLOAT64 * (SQUARES * largest**2 + 3 * largest * embed),
        scratch_bytes=FLOAT32 * config.tokens * streams + FLOAT64 * moments * shares if shares else 0,
        pass_flops=float(passes * config.tokens) if shares else 0.0,
        fit_flops=sum(_fit_flops(widths, axes, sizes["layer"], candidate) for candidate in {*tried}),
        rank_flops=float(measured * ranked),
        measure_flops=float(measured * (1 + sum(1 for stage in stages if len(stage) == 1))),
    )


def _fit_flops(widths: Mapping[str, int], axes: Sequence[str], layers: int, candidate: Candidate) -> float:
    """FLOPs of fitting all axes, whether at once or in several stages."""
    cubes = {axis: float(n) ** 3 for axis, n in widths.items()}
    flops = 2 * layers * FACTOR * cubes["embed"] if candidate.sequential else 0.0  # what is written
    if "embed" in axes:
        flops += (EIGEN + 2 * layers * FACTOR) * cubes["embed"]
    for axis in {"mlp", "heads"} & {*axes}:
        put_out = 2.0 * widths[axis] ** 2 * widths["embed"]
        told = DROP * (cubes[axis] + widths[axis] ** 2 * widths["embed"]) + FACTOR * cubes[axis]
        flops += layers * (told if candidate.predicts else put_out)
    return flops
