"""AdamW's moments beside the weights: every module once more for each, with the operators that moments take.

See ``operators.optimizer_state`` for what becomes of an operator. A factor on a whole weight is divided by, as
gradients are. Two things are not quite what these operators say:

- Blocks that identity depth inserts change nothing, so the gradients of what is copied into them vanish while those of
  the old blocks stay: old blocks keep their moments, inserted ones start at ``m = 0`` with the second moments of the
  blocks that they copy. (As copies, old and new would have had half the first moment, and a quarter of the second.)
- Where LayerNorm's writers are centred, so are first moments; second moments are not, a part in ``n`` of them.

A head that was tied has the moments of the table that it is made of, which keeps them, too. Moments are carried in
float32. Dense operators mix the errors of second moments: whoever loads them takes ``max(v', m'²)``.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import get_args

from bot_dist.operators import FirstMoment, SecondMoment
from bot_dist.plan.axis_plan import AxisPlan
from bot_dist.plan.module_plan import ModulePlan, Moment, OptimizerStatePlan, fields_of
from bot_dist.tensors.axes import ITEMSIZE

OPERATORS = {"exp_avg": FirstMoment, "exp_avg_sq": SecondMoment}
"""The kinds of operators that moments take where weights take an operator."""


def moments_of(module: ModulePlan, *, inserts: bool) -> Iterator[OptimizerStatePlan]:
    """Plans of a weight's moments, not yet cut into tiles. ``inserts``: blocks are put in that change nothing.

    Raises PlanError where an operator is too large to be inverted.
    """
    for moment in get_args(Moment):
        power = 1 if moment == "exp_avg" else 2
        changed = {
            "axes": tuple(
                _axis(module, a, moment, inserts and module.layered and a is module.axes[0]) for a in module.axes
            ),
            "dtype": "float32",
            "source_bytes": math.prod(module.source_shape()) * ITEMSIZE["float32"],
            "source_dtype": "float32",
            "whole_rows": False,
            "factors": tuple((axis, factor**-power) for axis, factor in module.factors),
            "noise": 0.0,
            "learning_rate_factor": 1.0,
        }
        yield OptimizerStatePlan(**{**fields_of(module), **changed}, moment=moment)


def _axis(module: ModulePlan, a: AxisPlan, moment: Moment, inserts: bool) -> AxisPlan:
    spec = a.spec and a.spec.of_gradients(inserts=inserts)
    if spec is not None and not spec.is_identity:
        spec = OPERATORS[moment](n_source=spec.n_source, n_target=spec.n_target, of=spec)
        spec.check(f"{module.name}: axis '{a.axis}'")
    return dataclasses.replace(a, spec=spec, fill="neutral", copies="", centred=a.centred and moment == "exp_avg")
