"""From specs to operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np

from bot_dist.errors import PlanError
from bot_dist.operators.banded import Operator
from bot_dist.operators.copies import copying, diagonal, lazy, merge, nothing, select, stack
from bot_dist.operators.details import MAX_BLOCK, largest_block, undoing
from bot_dist.operators.filter_bank import filters
from bot_dist.operators.optimizer_state import dual_operator, inverted_indices, second_moments
from bot_dist.operators.resample import resampling
from bot_dist.operators.spec import OperatorSpec, Policy


@lru_cache(maxsize=64)
def build_operator(spec: OperatorSpec) -> Operator:
    """The operator that ``spec`` describes.

    Raises RecipeError on an unknown wavelet, and PlanError if what is to be undone can't be.
    """
    assert spec.policy in BUILDERS, f"the operator {spec.handle!r} is kept elsewhere and has to be loaded"
    return BUILDERS[spec.policy](spec)


def _detail(spec: OperatorSpec) -> Operator:
    assert spec.of is not None, spec
    return _undoing(dataclasses.replace(spec.of, row_sum=1.0))[0]


def _restore(spec: OperatorSpec) -> Operator:
    assert spec.of is not None, spec
    restore = _undoing(dataclasses.replace(spec.of, row_sum=1.0))[1]
    scale = np.where(restore.indices < spec.of.n_target, 1 / spec.of.row_sum, 1.0)
    return Operator(restore.indices, restore.taps * scale, restore.n_source)


@lru_cache(maxsize=4)
def _undoing(spec: OperatorSpec) -> tuple[Operator, Operator]:
    return undoing(spec, build_operator(spec))


def _first_moments(spec: OperatorSpec) -> Operator:
    assert spec.of is not None, spec
    return dual_operator(spec.of, build_operator(spec.of))


def _second_moments(spec: OperatorSpec) -> Operator:
    return second_moments(_first_moments(spec))


BUILDERS: Mapping[Policy, Callable[[OperatorSpec], Operator]] = {
    "resample": resampling,
    "copy": copying,
    "lazy": lazy,
    "stack": stack,
    "select": select,
    "merge": merge,
    "constant": nothing,
    "diagonal": diagonal,
    "detail": _detail,
    "restore": _restore,
    "exp_avg": _first_moments,
    "exp_avg_sq": _second_moments,
}


MOST_PRODUCTS = 2**27
"""Of pairs of taps, that a level of an operator takes: seconds, and a GiB."""


def check_supported(spec: OperatorSpec, what: str) -> None:
    """Raise PlanError, naming the axis by ``what``, when no operator leads from ``n_source`` to ``n_target``, and
    RecipeError when its wavelet is unknown."""
    change = f"{spec.n_source} → {spec.n_target}"
    if min(spec.n_source, spec.n_target) < 1:
        raise PlanError(f"{what}: {change} is no size to resample; use sizes of at least 1")
    shrinks = spec.n_target < spec.n_source
    if spec.policy == "resample":
        taps = max(map(len, filters(spec.wavelet)))
        if taps**2 * max(spec.n_source, spec.n_target) > MOST_PRODUCTS and spec.n_source != spec.n_target:
            raise PlanError(
                f"{what}: {change} by {spec.wavelet}, of {taps} taps, takes too long to compute: at most "
                f"{MOST_PRODUCTS // taps**2:,}; use haar, or a smaller size"
            )
    elif shrinks and spec.policy in ("lazy", "stack"):
        raise PlanError(
            f"{what}: policy '{spec.policy}' only grows, and {change} shrinks; use 'resample', or 'copy' to select"
        )
    elif shrinks and spec.policy == "copy" and spec.split:
        raise PlanError(
            f"{what}: policy 'copy' with its copies sharing a value (split {spec.split:g}) only grows, and {change} "
            f"shrinks; use 'resample', or split 0 to select"
        )
    elif spec.policy in ("detail", "restore"):
        assert spec.of is not None, spec
        _check_undone(spec.of, what)
    elif spec.policy in ("exp_avg", "exp_avg_sq"):
        assert spec.of is not None, spec
        check_supported(spec.of, what)
        if (block := inverted_indices(spec.of)) > MAX_BLOCK:
            raise PlanError(
                f"{what}: carrying AdamW's moments through {spec.of} ({change}) takes a dense inverse of {block:,} "
                f"indices, over {MAX_BLOCK:,}; use haar, an orthogonal wavelet at a ratio that is a power of two, or "
                f"transfer.moments none"
            )


def _check_undone(spec: OperatorSpec, what: str) -> None:
    check_supported(spec, what)
    change = f"{spec.n_source} → {spec.n_target}"
    if spec.n_target > spec.n_source or (spec.n_target == spec.n_source and not spec.fitted):
        raise PlanError(f"{what}: {change} drops nothing, so it has no details; keep those of axes that shrink")
    if (block := largest_block(spec)) > MAX_BLOCK:
        way_out = "basis permutation in one pass" if spec.fitted else "haar, a ratio that is a power of two,"
        raise PlanError(
            f"{what}: undoing {spec} ({change}) takes a dense inverse of {block:,} indices, over {MAX_BLOCK:,}; use "
            f"{way_out} or keep_details false"
        )
