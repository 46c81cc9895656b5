"""What is tried of a recipe, and what is asked of the text before anything is: from configurations alone."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import InputError
from bot_dist.fit.candidates import candidates, stages_of
from bot_dist.fit.suitable import check_understood
from bot_dist.model import model_of
from bot_dist.pipeline.transfer import plan_transfer
from bot_dist.plan import TransferPlan, shrinking
from bot_dist.recipe import make_recipe
from tests.conftest import PICOS

BLOCKS, PREDICTED, SELECTED = "block by block, selecting", "one pass, predicting", "one pass, selecting"
UNITS = {"mlp": 24}


def config(kind: str, **fields: Any) -> dict[str, Any]:
    """Of a pico, as its file holds it."""
    import transformers

    config_class, architecture, sizes = PICOS[kind]
    made = getattr(transformers, config_class)(**{**sizes, **fields}).to_dict()
    return {**made, "architectures": [architecture]}


@pytest.mark.parametrize(
    ("kind", "target", "options", "wanted"),
    [
        ("llama", UNITS, {}, [[BLOCKS, PREDICTED, SELECTED]]),
        ("llama", {"embed": 16}, {}, [[BLOCKS, PREDICTED]]),
        ("llama", {"layers": 2}, {}, [[BLOCKS, PREDICTED]]),
        ("llama", UNITS, {"calibrate.passes": "sequential"}, [[BLOCKS]]),
        ("llama", UNITS, {"calibrate.passes": "one"}, [[PREDICTED, SELECTED]]),
        ("llama", UNITS, {"transfer.lifting": "selection"}, [[BLOCKS, SELECTED]]),
        ("llama", UNITS, {"transfer.lifting": "least-squares"}, [["block by block, predicting", PREDICTED]]),
        ("llama", {"embed": 16, "mlp": 24}, {"calibrate.passes": "each"}, [[PREDICTED, SELECTED], [PREDICTED]]),
        ("llama", {"layers": 2, "mlp": 24}, {"transfer.depth": "pairs"}, [[PREDICTED], [PREDICTED, SELECTED]]),
        ("bert", {"embed": 16, "heads": 2}, {}, [[PREDICTED, SELECTED]]),
        ("bert", {"layers": 2}, {}, [[PREDICTED]]),
        ("gemma2", {"embed": 16}, {"calibrate.passes": "sequential"}, [[PREDICTED, SELECTED]]),
    ],
)
def test_what_a_recipe_leaves_open_is_tried(
    kind: str, target: dict[str, int], options: dict[str, Any], wanted: list[list[str]]
) -> None:
    model = model_of(config(kind))
    recipe = make_recipe({"source": "s", "output": "o", "target": target}, options)
    stages = stages_of(model, recipe, shrinking(model, model.resized(target), recipe.transfer))
    found = [[c.name for c in candidates(model, recipe, stage, data=True, ranks=True)] for stage in stages]
    assert found == wanted
    assert [[c.name for c in candidates(model, recipe, stage, data=True, ranks=False)] for stage in stages] == [
        stage[:1] for stage in wanted
    ]


@pytest.fixture
def plan(tmp_path: Path) -> Callable[..., TransferPlan]:
    """Of a pico's configuration, fitted to a text that need not be there."""

    def make(target: dict[str, int], options: dict[str, Any], **fields: Any) -> TransferPlan:
        (tmp_path / "config.json").write_text(json.dumps(config("llama", **fields)))
        data = {"source": str(tmp_path / "config.json"), "output": str(tmp_path / "run"), "target": target}
        return plan_transfer(make_recipe(data, {"calibrate.text": ["text.txt"], **options}))

    return make


@pytest.mark.parametrize(
    ("target", "options", "wanted"),
    [
        ({"mlp": 48}, {}, "32 tokens can't tell 48 coordinates of 'mlp' apart; use calibrate.tokens=48 at least"),
        ({"layers": 2}, {"calibrate.tokens": 16}, "16 tokens can't tell 24 coordinates of 'embed' apart"),
        ({"heads": 8, "kv_heads": 4}, {}, "32 tokens can't tell 64 coordinates of 'heads' apart"),
    ],
)
def test_too_few_tokens_are_refused_by_the_plan(
    plan: Callable[..., TransferPlan], target: dict[str, int], options: dict[str, Any], wanted: str
) -> None:
    wide = {"intermediate_size": 96, "num_attention_heads": 12, "num_key_value_heads": 6}
    with pytest.raises(InputError, match=wanted):
        plan(target, {"calibrate.tokens": 32, "calibrate.context": 16, **options}, **wide)


def test_the_plan_says_what_will_be_tried_and_where_tokens_are_few(plan: Callable[..., TransferPlan]) -> None:
    notes = plan(UNITS, {"calibrate.tokens": 64, "calibrate.context": 32}).notes
    (ranked,) = (note for note in notes if note.startswith("fits are tried and ranked by their loss on 4,096 tokens"))
    assert ranked.endswith(f" more than the first alone: {BLOCKS}; {PREDICTED}; {SELECTED}")
    assert any("64 are 2.7 for each of 24 coordinates of" in note for note in notes)
    notes = plan(UNITS, {"calibrate.tokens": 512, "calibrate.held_out": 0}).notes
    why = "for calibrate.held_out leaves none for it"
    assert f"fits are not ranked by their loss, {why}: {BLOCKS} is taken as it is" in notes
    assert not any("for each of" in note for note in notes)
    alone = plan(UNITS, {"calibrate.passes": "sequential"}).notes
    assert not any("ranked" in note for note in alone)


def test_a_loss_near_a_uniform_guess_is_refused() -> None:
    model = model_of(config("llama"))
    check_understood(0.75 * math.log(64), model, "s", "calibrate.text 'a.txt'")
    check_understood(None, model_of({**config("vit"), "architectures": ["ViTModel"]}), "s", "train.images 'folder'")
    for loss in (0.85, 2.0):
        with pytest.raises(InputError, match=r"calibrate\.text 'a\.txt': the source's loss on it is"):
            check_understood(loss * math.log(64), model, "s", "calibrate.text 'a.txt'")
    with pytest.raises(InputError, match=r"over 7 classes has 1.95: the classes or the images are not this model's"):
        check_understood(1.9, model_of(config("vit")), "s", "train.images 'folder'")
