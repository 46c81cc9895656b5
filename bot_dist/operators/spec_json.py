"""Operators as plain data: in the manifests of stores of format 1, and in the digests of plans.

That form has one set of keys for all kinds of operators, whether a kind has something to say under a key or not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from bot_dist.operators.copies import Constant, Copy, Diagonal, Lazy, Merge, Select, Stack
from bot_dist.operators.fitted import FittedConstant, FittedLifting, FittedMatrix, FittedSelection
from bot_dist.operators.resample import Resample
from bot_dist.operators.spec import Detail, FirstMoment, OperatorSpec, Restore, SecondMoment

DEFAULTS: Mapping[str, Any] = {
    "row_sum": 1.0,
    "wavelet": "haar",
    "boundary": "periodic",
    "policy": "resample",
    "split": 0.0,
    "speaks": "every",
    "indices": [],
    "diagonal": [],
    "of": None,
    "handle": "",
    "digest": "",
    "per_layer": False,
    "selects": False,
    "lifted": False,
    "rank": 0,
}
"""The keys beside ``n_source`` and ``n_target``, with the values that they hold for kinds of operators that don't use
them."""

KINDS: Mapping[type[OperatorSpec], Mapping[str, Any]] = {
    Resample: {"policy": "resample"},
    Copy: {"policy": "copy"},
    Lazy: {"policy": "lazy"},
    Stack: {"policy": "stack"},
    Select: {"policy": "select"},
    Merge: {"policy": "merge"},
    Diagonal: {"policy": "diagonal"},
    Constant: {"policy": "constant"},
    FittedConstant: {"policy": "constant"},
    FittedMatrix: {"policy": "stored"},
    FittedSelection: {"policy": "stored", "selects": True},
    FittedLifting: {"policy": "stored", "lifted": True},
    Detail: {"policy": "detail"},
    Restore: {"policy": "restore"},
    FirstMoment: {"policy": "exp_avg"},
    SecondMoment: {"policy": "exp_avg_sq"},
}
"""The entries that tell the kinds of operators apart. Of the two constants, the fitted one has a handle."""

KEYS = {"gain": "row_sum", "value": "row_sum", "factors": "diagonal"}
"""The keys of the fields that are not kept under their own names."""


def spec_to_json(spec: OperatorSpec) -> dict[str, Any]:
    """An operator as plain data that can be written as JSON."""
    data = {**DEFAULTS, **KINDS[type(spec)]}
    for field in dataclasses.fields(spec):
        value = getattr(spec, field.name)
        if isinstance(value, OperatorSpec):
            value = spec_to_json(value)
        data[KEYS.get(field.name, field.name)] = [*value] if isinstance(value, tuple) else value
    return data


def spec_from_json(data: Mapping[str, Any]) -> OperatorSpec:
    """The inverse of ``spec_to_json``. Raises ValueError where the data is of no operator, and KeyError and TypeError
    where parts of it are missing or of other types."""
    kind = _kind(data)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        key = KEYS.get(field.name, field.name)
        value = data[key] if key in data or key not in DEFAULTS else DEFAULTS[key]
        if key == "of":
            value = spec_from_json(value)
        values[field.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


def _kind(data: Mapping[str, Any]) -> type[OperatorSpec]:
    told = {key: data.get(key, DEFAULTS[key]) for key in ("policy", "selects", "lifted")}
    kinds = [kind for kind, said in KINDS.items() if all(said.get(k, DEFAULTS[k]) == told[k] for k in told)]
    if not kinds:
        raise ValueError(f"no operator has {', '.join(f'{key} {value!r}' for key, value in told.items())}")
    return kinds[-1] if data.get("handle") else kinds[0]
