"""Whether a plan keeps the source's function, told from its operators."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from bot_dist.model import Family
from bot_dist.plan.axis_plan import AxisPlan
from bot_dist.plan.module_plan import ModulePlan
from bot_dist.plan.rules import RESIDUAL
from bot_dist.tensors.axes import Role


@dataclass(frozen=True, kw_only=True)
class FunctionKept:
    """Whether a target computes what its source does."""

    verdict: Literal["exactly", "up to rounding", "not"]
    """Whether the target does: ``exactly`` where its weights are such that in exact arithmetic it does, ``up to
    rounding`` where the target's dtype rounds them, else ``not``."""
    because: tuple[str, ...] = ()
    """Reasons: what is rounded, or why the function is not kept."""

    def __str__(self) -> str:
        why = "; ".join(self.because)
        return {"exactly": "exactly", "up to rounding": f"up to rounding ({why})", "not": f"not, because {why}"}[
            self.verdict
        ]


def function_kept(family: Family, modules: Sequence[ModulePlan]) -> FunctionKept:
    """Whether the model that ``modules`` make computes what their source does; if not, why not."""
    own = [m for m in modules if not m.derived]
    if any(a.restores for m in own for a in m.axes):
        return FunctionKept(verdict="not", because=("details give back the model that the source was shrunk from",))
    inserts = any(a.spec is not None and a.spec.mutes for m in own for a in m.axes)
    if lost := {why: None for m in own for a, role in _uses(m) if (why := _lost(family, a, role, inserts=inserts))}:
        return FunctionKept(verdict="not", because=tuple(lost))
    rounded = {why: None for m in own for why in _rounded(m)}
    return FunctionKept(verdict="up to rounding" if rounded else "exactly", because=tuple(rounded))


def _uses(module: ModulePlan) -> Iterator[tuple[AxisPlan, Role]]:
    """The axes of a module, each with what the module does along it; without those that a selection takes together
    which drops nothing (``fitted_table``)."""
    roles: list[Role] = [use.role for use in module.weight.uses]
    taken = 0
    for a, role in zip(module.axes, ["layer", *roles] if module.layered else roles, strict=True):
        if a.spans > 1 and a.spec is not None and a.spec.takes_all:
            taken = a.spans
        if taken == 0:
            yield a, role
        taken = max(0, taken - 1)


def _lost(family: Family, a: AxisPlan, role: Role, *, inserts: bool) -> str:
    """Why what is done along an axis changes the function; empty where it does not. ``inserts``: new blocks are silent,
    so they change nothing."""
    spec, change = a.spec, f"'{a.axis}' {a.n_source} → {a.n_target}"
    if a.n_target < a.n_source:
        return f"{change} shrinks"
    if a.n_target == a.n_source or spec is None:
        return ""
    if role == "layer":
        return "" if inserts else f"{change}: blocks {spec.in_words}"
    if a.axis == "position":
        return f"{change}: positions are stretched"
    if a.axis == RESIDUAL and family.norm == "layer" and spec.uneven:
        return f"{change}: copies shift LayerNorm's mean a little, unless at multiples of {a.n_source}"
    wrong = spec.grown_wrong(a.n_source / a.n_target if role == "read" else 1.0)
    return wrong and f"{change} {wrong}"


def _rounded(module: ModulePlan) -> Iterator[str]:
    """Everything of a module that the target's dtype can't hold to the last bit, as the same function would take."""
    if module.noise:
        yield f"noise {module.noise:g} on copies in {module.dtype}"
    if module.dtype != module.source_dtype and module.dtype != "float32":
        yield f"{module.source_dtype} becomes {module.dtype}"
    taps = [a.operator().taps for a in module.axes if a.changes and not a.alone]
    factors = np.abs(np.concatenate([[module.scale], *(t[t != 0] for t in taps)]))
    fitted = any(a.centred or (a.spec is not None and a.spec.fitted) for a in module.axes)
    if fitted or (np.frexp(factors)[0] != 0.5).any():
        yield f"factors in {module.dtype}"
