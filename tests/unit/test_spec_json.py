"""Operators of every kind in the manifests of format 1: what was written is read, and written the same."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bot_dist.operators import (
    Constant,
    Copy,
    Detail,
    Diagonal,
    FirstMoment,
    FittedConstant,
    FittedLifting,
    FittedMatrix,
    FittedSelection,
    Lazy,
    Merge,
    OperatorSpec,
    Resample,
    Restore,
    SecondMoment,
    Select,
    Stack,
    spec_from_json,
    spec_to_json,
)

FORM = """{"n_source": 8, "n_target": 4, "row_sum": 1.0, "wavelet": "haar", "boundary": "periodic",
    "policy": "resample", "split": 0.0, "speaks": "every", "indices": [], "diagonal": [], "of": null, "handle": "",
    "digest": "",
    "per_layer": false, "selects": false, "lifted": false, "rank": 0}"""
"""As 9c917b3 wrote it, the keys of every operator."""
BANK = {"wavelet": "db2", "boundary": "symmetric", "row_sum": 0.5}
KEPT = {"policy": "stored", "digest": "0b", "per_layer": True}


def recorded(**said: Any) -> dict[str, Any]:
    return {**json.loads(FORM), **said}


@pytest.mark.parametrize(
    ("data", "kind", "text"),
    [
        (recorded(**BANK), Resample, "db2 ×0.5"),
        (recorded(n_target=9, policy="copy", row_sum=0.5, split=0.5, speaks="first"), Copy, "identity"),
        (recorded(n_target=9, policy="lazy", row_sum=2.0), Lazy, "lazy"),
        (recorded(n_target=16, policy="stack"), Stack, "stack"),
        (recorded(policy="select", indices=[0, 2, 4, 6], split=1.0), Select, "select"),
        (recorded(policy="merge", indices=[0, 2, 3, 5], split=1.0), Merge, "merge"),
        (recorded(policy="constant", row_sum=0.25), Constant, "= 0.25"),
        (recorded(n_source=2, n_target=2, policy="diagonal", diagonal=[0.5, 1.0]), Diagonal, "diagonal"),
        (
            recorded(**KEPT | {"policy": "constant", "handle": "a#embed.gain.norm"}),
            FittedConstant,
            "= fitted embed.gain",
        ),
        (
            recorded(**KEPT, handle="a#embed.read.norm", rank=3, row_sum=1.5),
            FittedMatrix,
            "fitted embed.read.norm ×1.5",
        ),
        (recorded(**KEPT, handle="a#mlp.kept", selects=True, split=0.5), FittedSelection, "fitted mlp.kept /c^½"),
        (recorded(**KEPT, handle="a#mlp.read", lifted=True), FittedLifting, "fitted mlp.read"),
        (recorded(policy="detail", of=recorded(**BANK)), Detail, "detail of db2 ×0.5"),
        (recorded(n_target=8, policy="restore", of=recorded(**BANK)), Restore, "restore of db2 ×0.5"),
        (recorded(policy="exp_avg", of=recorded(**BANK)), FirstMoment, "exp_avg of db2 ×0.5"),
        (recorded(policy="exp_avg_sq", of=recorded(**KEPT, handle="a#w")), SecondMoment, "exp_avg_sq of fitted w"),
    ],
)
def test_every_kind_is_read_and_written_the_same(data: dict[str, Any], kind: type[OperatorSpec], text: str) -> None:
    spec = spec_from_json(data)
    assert type(spec) is kind
    assert str(spec).startswith(text)
    assert json.loads(json.dumps(spec_to_json(spec))) == data


def test_what_is_no_operator_is_refused() -> None:
    with pytest.raises(ValueError, match="no operator has policy 'fold'"):
        spec_from_json(recorded(policy="fold"))
    with pytest.raises(KeyError):
        spec_from_json({"n_source": 8})
