"""What a plan leaves of the source's function, told from its operators."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from bot_dist.model import Family
from bot_dist.operators import HAAR, copies_only
from bot_dist.plan.plan import AxisPlan, FunctionKept, ModulePlan
from bot_dist.plan.rules import RESIDUAL
from bot_dist.tensors.axes import Role


def function_kept(family: Family, modules: Sequence[ModulePlan]) -> FunctionKept:
    """Whether the model that ``modules`` make computes what their source does; if not, why not."""
    own = [m for m in modules if not m.derived]
    if any(a.restores for m in own for a in m.axes):
        return FunctionKept(verdict="not", because=("details give back the model that the source was shrunk from",))
    inserts = any(a.spec is not None and a.spec.speaks != "every" for m in own for a in m.axes)
    if lost := {why: None for m in own for a, role in _uses(m) if (why := _lost(family, a, role, inserts=inserts))}:
        return FunctionKept(verdict="not", because=tuple(lost))
    rounded = {why: None for m in own for why in _rounded(m)}
    return FunctionKept(verdict="up to rounding" if rounded else "exactly", because=tuple(rounded))


def _uses(module: ModulePlan) -> Iterator[tuple[AxisPlan, Role]]:
    """The axes of a module and what it does along each; without those that a selection takes together, which drops
    nothing (``fitted``)."""
    roles: list[Role] = [use.role for use in module.weight.uses]
    taken = 0
    for a, role in zip(module.axes, ["layer", *roles] if module.layered else roles, strict=True):
        if a.spans > 1 and a.spec is not None and a.spec.policy == "select":
            taken = a.spans
        if taken == 0:
            yield a, role
        taken = max(0, taken - 1)


def _lost(family: Family, a: AxisPlan, role: Role, *, inserts: bool) -> str:
    """Why what is done along an axis changes the function; empty where it does not. ``inserts``: new blocks are
    silent."""
    spec, change = a.spec, f"'{a.axis}' {a.n_source} → {a.n_target}"
    if a.n_target < a.n_source:
        return f"{change} shrinks"
    if a.n_target == a.n_source or spec is None:
        return ""
    if role == "layer":
        done = {"stack": "are stacked", "copy": "are repeated"}.get(spec.policy, f"are resampled by {spec.wavelet}")
        return "" if inserts else f"{change}: blocks {done}"
    if a.axis == "position":
        return f"{change}: positions are stretched"
    if spec.policy != "resample":
        off = a.axis == RESIDUAL and family.norm == "layer" and spec.policy == "copy" and a.n_target % a.n_source
        return f"{change}: copies shift LayerNorm's mean a little, unless at multiples of {a.n_source}" if off else ""
    if not copies_only(spec):
        averaged = spec.wavelet in HAAR
        return f"{change} is {'averaged, for it is no multiple' if averaged else f'resampled by {spec.wavelet}'}"
    measure = a.n_source / a.n_target if role == "read" else 1.0
    return "" if math.isclose(spec.row_sum, measure) else f"{change} has the orthonormal gain"


def _rounded(module: ModulePlan) -> Iterator[str]:
    """What of a module the target's dtype can't hold to the last bit, that the function would have to be the same."""
    if module.noise:
        yield f"noise {module.noise:g} on copies in {module.dtype}"
    if module.dtype != module.source_dtype and module.dtype != "float32":
        yield f"{module.source_dtype} becomes {module.dtype}"
    taps = [a.operator().taps for a in module.axes if a.changes and not a.alone]
    factors = np.abs(np.concatenate([[module.scale], *(t[t != 0] for t in taps)]))
    fitted = any(a.centred or (a.spec is not None and a.spec.fitted) for a in module.axes)
    if fitted or (np.frexp(factors)[0] != 0.5).any():
        yield f"factors in {module.dtype}"
