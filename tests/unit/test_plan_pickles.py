"""Plans go to other processes by plain ``pickle``: what arrives is the same plan."""

from __future__ import annotations

import dataclasses
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.events import ignore
from bot_dist.execute import ALONE
from bot_dist.model import FAMILIES
from bot_dist.pipeline.planning import Planning
from bot_dist.plan import TransferPlan
from bot_dist.recipe import make_recipe
from tests.conftest import Pico


def planning(pico: Pico, tmp_path: Path, **keys: Any) -> Planning:
    cluster = {"executor": "local", "data": 2}
    return Planning(make_recipe({"source": pico.url, "output": str(tmp_path), "cluster": cluster, **keys}))


def assert_pickles(plan: TransferPlan) -> None:
    arrived = pickle.loads(pickle.dumps(plan))
    assert arrived == plan
    assert arrived.digest == plan.digest
    assert [*arrived.steps()] == [*plan.steps()]
    assert arrived.target.family is plan.target.family


@pytest.mark.parametrize("kind", FAMILIES)
def test_of_every_family(kind: str, make_pico: Callable[..., Pico], tmp_path: Path) -> None:
    pico = make_pico(kind)
    assert_pickles(planning(pico, tmp_path, target={"layers": 3}).draft)
    assert_pickles(planning(pico, tmp_path).draft)


def test_with_what_is_fitted(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    sizes, data = {"mlp": 20, "layers": 2}, {"tokens": 64, "held_out": 0, "context": 16, "allow_mismatch": True}
    made = planning(pico_llama(), tmp_path, target=sizes, calibrate=data)
    assert_pickles(made.draft)
    plan, adapted = made.fitted(ALONE, ignore)
    assert adapted is not None
    assert plan.digest != made.draft.digest
    assert_pickles(plan)


def test_a_family_that_no_other_process_knows_is_refused() -> None:
    other = dataclasses.replace(FAMILIES["llama"], norm="layer")
    with pytest.raises(pickle.PicklingError, match="family 'llama' is not the one"):
        pickle.dumps(other)
