"""FRONT: a model's weights, truncated or padded with zeros in the frequency domain (arXiv 2603.07506 compares with it).

Every tensor (the same weight of all layers, stacked) is standardised, transformed by an orthonormal DCT-II along each
axis, truncated or padded there to the target's size, transformed back, and given its mean and deviation again. Heads
and their widths are one axis; queries, keys and values are tensors of their own, also where a file has them fused.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from bot_dist.baselines.rule import Baseline, Given, Made, Rule
from bot_dist.model import Model, Weight

HEADS = ("kv_heads", "group", "heads", "head_dim")


def front(source: Model, target: Model) -> Rule:
    return Rule(name="FRONT (DCT)", make=_make, made=target)


def dct(n: int) -> np.ndarray:
    """The orthonormal DCT-II, ``(n, n)``: frequencies by samples."""
    frequency, sample = np.arange(n)[:, None], np.arange(n)
    matrix: np.ndarray = math.sqrt(2 / n) * np.cos(np.pi * (sample + 0.5) * frequency / n)
    matrix[0] /= math.sqrt(2)
    return matrix


def resized(values: torch.Tensor, sizes: tuple[int, ...]) -> torch.Tensor:
    """A tensor in the frequency domain truncated or padded to ``sizes``, with the mean and deviation that it had."""
    mean, deviation = values.mean(), values.std(correction=0)
    if deviation == 0 or values.shape == sizes:
        return mean.expand(sizes) if deviation == 0 else values
    result = (values - mean).double()
    for dim, (before, after) in enumerate(zip(values.shape, sizes, strict=True)):
        if before != after:
            kept = min(before, after)
            matrix = torch.from_numpy(dct(after)[:kept].T @ dct(before)[:kept])
            result = torch.tensordot(result, matrix, dims=([dim], [1])).movedim(-1, dim)
    result = (result - result.mean()) / result.std(correction=0)
    return (result * deviation + mean).float()


def _make(given: Given) -> Made:
    return Made(weights=given.named({weight: _resized(given, weight) for weight in given.target.weights}))


def _resized(given: Given, weight: Weight) -> torch.Tensor:
    """``(layers or 1, *sizes)``, by way of ``(slots, layers or 1, joined heads, *others)``."""
    names = [use.axis for use in weight.uses]
    order = sorted(range(len(names)), key=lambda i: (names[i] != "qkv", names[i] not in HEADS, i))
    axes = [names[i] for i in order]
    slots = given.target.sizes["qkv"] if "qkv" in names else 1
    within = axes["qkv" in names :]
    joined = sum(name in HEADS for name in within)

    def sizes(model: Model) -> tuple[int, ...]:
        all_of = [model.sizes[name] for name in within]
        heads = [math.prod(all_of[:joined])] if joined else []
        return (model.weight_layers(weight), *heads, *all_of[joined:])

    values = given.values(weight).permute(0, *(i + 1 for i in order))
    if "qkv" in names:
        values = values.movedim(1, 0)
    parts = values.reshape(slots, *sizes(given.model))
    stacked = torch.stack([resized(part, sizes(given.target)) for part in parts])
    target = given.target
    stacked = stacked.reshape(slots, target.weight_layers(weight), *(target.sizes[name] for name in within))
    stacked = stacked.movedim(0, 1) if "qkv" in names else stacked[0]
    return stacked.permute(0, *(order.index(i) + 1 for i in range(len(names))))


BASELINE = Baseline(rule=front)
