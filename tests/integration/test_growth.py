"""Transfers of every kind of model and variant, heads and all: what grows by Haar keeps its function."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from bot_dist.formats.exports.safetensors import export_huggingface
from tests.conftest import Pico
from tests.integration.test_transfer import transfer
from tests.unit.test_families import BARE, assert_same_function, load, of, widths

PicoMaker = Callable[..., Pico]


@pytest.fixture(params=BARE)
def any_pico(request: pytest.FixtureRequest, make_pico: PicoMaker) -> PicoMaker:
    return partial(make_pico, **BARE[request.param])


def assert_grows(made: Pico, tmp_path: Path, **target: int) -> None:
    store = transfer(made.url, tmp_path / "store", target, **{"transfer.depth": "identity"})
    export_huggingface(store, str(tmp_path / "export"))
    assert_same_function(made, load(tmp_path / "export", made.model), 2)


def test_growth_keeps_the_function(any_pico: PicoMaker, tmp_path: Path) -> None:
    made = any_pico()
    assert_grows(made, tmp_path, **widths(of(made), 2), layers=7)


@pytest.mark.parametrize("kind", ["gpt2", "bert", "vit", "deit"])
def test_wider_heads_keep_the_function(make_pico: PicoMaker, tmp_path: Path, kind: str) -> None:
    made = make_pico(kind)
    sizes = of(made).sizes
    assert_grows(made, tmp_path, embed=2 * sizes["embed"], head_dim=2 * sizes["head_dim"])
