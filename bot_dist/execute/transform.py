"""Transforming a step's tile, between reading and writing: operators, then what a plan draws, fills or scales."""

from __future__ import annotations

import math

import numpy as np
import torch

from bot_dist.kernels import Applied, Stage, apply_operators
from bot_dist.operators import Operator, OperatorSpec, counts, origins
from bot_dist.plan import AxisPlan, ModulePlan, Step, operator_rows
from bot_dist.store import read_columns, read_constant, read_rows
from bot_dist.tensors import Box
from bot_dist.tensors.axes import Range
from bot_dist.tensors.random import normal


def transform(module: ModulePlan, step: Step, tensor: torch.Tensor) -> Applied:
    """The target tile, in the target's dtype on the tensor's device, of the source box of a step.

    Its bytes do not depend on how the target is cut into tiles.
    """
    dtype = getattr(torch, module.dtype)
    alone = [i for i in module.order if module.axes[i].alone]
    undoing = [i for i in alone if module.axes[i].restores]
    for i in alone:
        if i not in undoing:
            tensor = _apply_alone(module.axes, i, step, tensor)
    for i, a in enumerate(module.axes):
        if a.centred:
            tensor = _centred(tensor, i)
    stages = [
        _stage(module.axes[i].operator(), i, step.target[i], step.source[i]) for i in module.order if i not in alone
    ]
    if not (undoing or module.random or module.scale != 1 or module.shift or _untouched(module, step)):
        return apply_operators(tensor, stages, dtype)
    values = apply_operators(tensor, stages, torch.float32).tensor if stages or not undoing else tensor
    for i in undoing:
        values = _apply_alone(module.axes, i, step, values)
    if not module.blank_is_zero:
        _fill(module, step, values)
    if module.noise:
        _add_noise(module, step, values)
    if module.scale != 1:
        values.mul_(module.scale)
    if module.shift:
        values.add_(module.shift)
    return apply_operators(values, [], dtype)


def _stage(operator: Operator, along: int, target: Range, source: tuple[Range, ...]) -> Stage:
    return Stage(along, *operator.restricted(target, source))


def _centred(tensor: torch.Tensor, along: int) -> torch.Tensor:
    """The tensor less its mean along a dimension, in float32."""
    n = tensor.shape[along]
    mean = Stage(along, np.arange(n)[None], np.full((1, n), 1 / n))
    return tensor.float() - apply_operators(tensor, [mean], torch.float32).tensor


def _apply_alone(axes: tuple[AxisPlan, ...], i: int, step: Step, tensor: torch.Tensor) -> torch.Tensor:
    """An operator that is applied by itself: a fitted one, a block of its matrix at a time, or what undoes one, or a
    fitted constant, in float32. It may act on several axes together and differ per layer; of all its axes, source and
    (but for the first) target are whole."""
    a = axes[i]
    assert a.spec is not None
    spec, of_weights = a.spec, a.spec.of_weights
    inner = [b.n_target for b in axes[i + 1 : i + a.spans]]
    start, stop = (end * math.prod(inner) for end in step.target[i])
    shape = [*tensor.shape]
    joined = tensor.reshape(*shape[:i], spec.n_source, *shape[i + a.spans :])
    result = joined.new_empty((*shape[:i], stop - start, *shape[i + a.spans :]), dtype=torch.float32)
    if of_weights.per_layer:
        layers = [layer for r in ([step.target[0]] if a.restores else step.source[0]) for layer in range(*r)]
        parts = [*zip(layers, joined, result, strict=True)]
    else:
        parts = [(0, joined, result)]
    along = i - of_weights.per_layer
    for layer, part, into in parts:
        if a.constant:
            into.fill_(read_constant(spec, layer))
        elif spec.by_columns:
            _apply_columns(spec, layer, part, into, along, (start, stop))
        else:
            _apply_rows(spec, layer, part, into, along, (start, stop))
    return result.reshape(*shape[:i], step.target[i][1] - step.target[i][0], *inner, *shape[i + a.spans :])


def _apply_rows(
    spec: OperatorSpec, layer: int, part: torch.Tensor, into: torch.Tensor, along: int, target: Range
) -> None:
    """The rows of ``target``, a block of them after the other."""
    n_rows = operator_rows(spec)
    for first in range(*target, n_rows):
        stage = Stage(along, *read_rows(spec, (first, min(first + n_rows, target[1])), layer))
        made = apply_operators(part, [stage], torch.float32).tensor
        into.narrow(along, first - target[0], len(stage.taps)).copy_(made)


def _apply_columns(
    spec: OperatorSpec, layer: int, part: torch.Tensor, into: torch.Tensor, along: int, target: Range
) -> None:
    """The parts that blocks of the columns have in ``target``, one added after the other. Where the blocks are cut does
    not depend on the tile."""
    n, n_rows = spec.n_source, operator_rows(spec)
    into.zero_()
    for first in range(0, n, n_rows):
        columns = read_columns(spec, (first, min(first + n_rows, n)), layer)
        taps = np.ascontiguousarray(columns[:, slice(*target)].T)
        indices = np.broadcast_to(np.arange(first, first + len(columns)), taps.shape)
        into.add_(apply_operators(part, [Stage(along, indices, taps)], torch.float32).tensor)


def _untaken(a: AxisPlan, target: Range) -> np.ndarray:
    """The target indices that take nothing from the source, as rows of the operator without a tap: booleans over the
    range. Fitted operators always have something to put there, but for new units."""
    if a.spec is not None and a.spec.padded:
        return np.arange(*target) >= a.n_source
    if not a.changes or a.alone:
        return np.zeros(target[1] - target[0], dtype=bool)
    return np.asarray(~a.operator().taps[target[0] : target[1]].any(axis=1))


def _untouched(module: ModulePlan, step: Step) -> bool:
    """Whether the tile has indices that take nothing from the source and are not to be zero."""
    return not module.blank_is_zero and any(
        any(_blank(module, a)) and _untaken(a, target).any() for a, target in zip(module.axes, step.target, strict=True)
    )


def _blank(module: ModulePlan, a: AxisPlan) -> tuple[float, float]:
    """The values of an axis's indices that take nothing from the source, where nothing is drawn for them: of those that
    the source has, too, and of those beyond."""
    value = module.weight.silent if a.axis == "layer" else module.weight.neutral
    return (value if a.spec is None else a.spec.held(value)), value


def _fill(module: ModulePlan, step: Step, values: torch.Tensor) -> None:
    """Give what takes nothing from the source its value: that of a block that does nothing, along the layers; else the
    neutral one; or the family's initialisation where that is asked for along some axis, and silence along none."""
    untaken = []
    for i, (a, target) in enumerate(zip(module.axes, step.target, strict=True)):
        shape = [1] * values.dim()
        shape[i] = -1
        untaken.append((a, torch.from_numpy(_untaken(a, target)).view(shape).to(values.device)))
    drawn = [mask for a, mask in untaken if a.fill == "init" and module.weight.kind != "vector"]
    if any(mask.any() for mask in drawn):
        chosen = torch.zeros(values.shape, dtype=torch.bool, device=values.device)
        for mask in drawn:
            chosen |= mask
        random = _draw("init", module, step.target).mul_(module.init_std).to(values.device)
        torch.where(chosen, random, values, out=values)
    for (a, mask), target in reversed([*zip(untaken, step.target, strict=True)]):  # the layers' last
        if mask.any() and not (a.fill == "init" and module.weight.kind != "vector"):
            old, beyond = _blank(module, a)
            values.masked_fill_(mask, beyond)
            if old != beyond:
                values.masked_fill_(
                    mask & (torch.arange(*target, device=mask.device).view(mask.shape) < a.n_source), old
                )


def _add_noise(module: ModulePlan, step: Step, values: torch.Tensor) -> None:
    """Multiply by 1 + noise · (ξ − its mean over the copies of each source index that is read), ξ standard normal, the
    same for all copies that the residual stream is written with.

    Copies of a unit carry the same activation and the same weight, so the sum over those that are read does not change;
    and those that are written go on carrying the same to the last bit, so that rounding has nothing to grow from.
    """
    axes = list(enumerate(zip(module.axes, step.target, strict=True)))
    apart = {i: _groups(a, target) for i, (a, target) in axes if a.copies == "apart"}
    alike = {i: origins(a.n_source, a.n_target)[slice(*target)] for i, (a, target) in axes if a.copies == "alike"}
    box = list(step.target)
    for i, (widened, *_) in apart.items():
        box[i] = widened
    for i, origin in alike.items():
        box[i] = int(origin[0]), int(origin[-1]) + 1
    drawn = _draw("noise", module, tuple(box))
    mean = drawn
    for i, (_, indices, taps, _) in apart.items():
        mean = apply_operators(mean, [Stage(i, indices, taps)], torch.float32).tensor
    for i, (widened, _, _, which) in apart.items():
        mean = mean.index_select(i, torch.from_numpy(which))
        drawn = drawn.narrow(i, step.target[i][0] - widened[0], values.shape[i])
    factors = (drawn - mean).mul_(module.noise).add_(1.0)
    for i, origin in alike.items():
        factors = factors.index_select(i, torch.from_numpy(origin - origin[0]))
    values.mul_(factors.to(values.device))


def _groups(a: AxisPlan, target: Range) -> tuple[Range, np.ndarray, np.ndarray, np.ndarray]:
    """The target range widened to all copies of its source indices; for each of these the copies within that range
    and the taps of their mean; and which mean each index of ``target`` has."""
    origin = origins(a.n_source, a.n_target)[slice(*target)]
    first, last = int(origin[0]), int(origin[-1])
    start, stop = -(-first * a.n_target // a.n_source), -(-(last + 1) * a.n_target // a.n_source)
    copies = counts(a.n_source, a.n_target)[first : last + 1]
    begin = np.cumsum(copies) - copies
    place = np.arange(copies.max())
    indices = begin[:, None] + np.minimum(place, copies[:, None] - 1)
    taps = np.where(place < copies[:, None], 1.0 / copies[:, None], 0.0)
    return (start, stop), indices, taps, origin - first


def _draw(what: str, module: ModulePlan, box: Box) -> torch.Tensor:
    return torch.from_numpy(normal(f"{what}/{module.seed}/{module.name}", module.target_shape(), box))
