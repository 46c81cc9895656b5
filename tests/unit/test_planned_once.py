"""What is planned and opened is planned and opened once, and still told when it is replaced meanwhile."""

from __future__ import annotations

import contextlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

import bot_dist
from bot_dist import cli
from bot_dist.data.byte_tokenizer import save_byte_tokenizer
from bot_dist.errors import SourceError
from bot_dist.formats.open import open_source
from bot_dist.pipeline.planning import Planning
from bot_dist.pipeline.transfer import transfer_planned
from bot_dist.plan import make_plan
from tests.conftest import UNTRAINED, Pico

FITTED = {"transfer": {"analysis": "adaptive"}, "calibrate": {**UNTRAINED, "held_out": 0}}
COUNTED = {open_source.__code__: "opened", make_plan.__code__: "planned"}


class TrainingBeginsError(Exception):
    """All that comes before the training has been done."""


@contextlib.contextmanager
def counting(source: Path) -> Iterator[Counter[str]]:
    """Count the plans that this thread makes, and how often it opens the source, whoever asks for it."""
    counted: Counter[str] = Counter()

    def look(frame: FrameType, event: str, _: object) -> None:
        what = COUNTED.get(frame.f_code) if event == "call" else None
        if what == "planned" or (what == "opened" and frame.f_locals["url"] == str(source)):
            counted[what] += 1

    sys.setprofile(look)
    try:
        yield counted
    finally:
        sys.setprofile(None)


@pytest.fixture
def recipe(tmp_path: Path, pico_llama: Callable[..., Pico]) -> dict[str, Any]:
    """The recipe of a run in this process that takes averages."""
    save_byte_tokenizer(source := pico_llama(vocab_size=300, eos_token_id=256).folder)
    (text := tmp_path / "text.txt").write_text("rain on the roof " * 1_500)
    return {
        "source": str(source),
        "output": str(tmp_path / "run"),
        "target": {"mlp": 20},
        "transfer": {"analysis": "wavelet"},
        "cluster": {"executor": "local"},
        "calibrate": UNTRAINED,
        "train": {"text": [str(text)], "steps": 2, "context": 16, "batch": 4, "held_out": 4, "source_loss": True},
    }


@pytest.fixture
def until_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run ends where its training would begin, and starts no Ray."""

    def begin(*args: Any, **options: Any) -> None:
        raise TrainingBeginsError

    monkeypatch.setattr("bot_dist.execute.ray.cluster.connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr("bot_dist.train.side_by_side.places", lambda *_: 1)
    monkeypatch.setattr("bot_dist.train.driver.pretrain", begin)


@pytest.mark.parametrize(
    ("changed", "planned"),
    [
        ({}, 1),
        (FITTED, 2),  # what is checked before anything is fitted, and what is made of it
        ({"family": {"a": {"target": {"mlp": 20}}, "b": {"target": {"mlp": 40}}}}, 2),
    ],
    ids=("averaged", "fitted", "family"),
)
@pytest.mark.usefixtures("until_training")
def test_a_run_plans_once_and_opens_its_source_once(
    recipe: dict[str, Any], changed: dict[str, Any], planned: int
) -> None:
    with counting(Path(recipe["source"])) as counted, pytest.raises(TrainingBeginsError):
        bot_dist.run(bot_dist.make_recipe({**recipe, **changed}))
    members = len(changed.get("family", "1"))
    assert counted == {"planned": planned, "opened": 1 + members}  # each transfer looks whether it was replaced


@pytest.mark.usefixtures("until_training")
def test_the_command_line_runs_what_it_has_shown(
    recipe: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(str(recipe))  # a flow mapping is YAML
    with counting(Path(recipe["source"])) as counted, pytest.raises(SystemExit):
        cli.main(["run", str(path)])
    assert "TrainingBeginsError" in capsys.readouterr().err
    assert counted == {"planned": 1, "opened": 2}


@pytest.mark.parametrize(("verb", "opened"), [("plan", 1), ("scale", 2)])
def test_plan_and_scale_plan_once(recipe: dict[str, Any], tmp_path: Path, verb: str, opened: int) -> None:
    source = Path(recipe["source"])
    target = [str(tmp_path / "store")] if verb == "scale" else []
    options = ["--mlp", "20", "--analysis", "wavelet", "--set", "cluster.executor=local"]
    with counting(source) as counted, contextlib.suppress(SystemExit):
        cli.main([verb, str(source), *target, *options])
    assert counted == {"planned": 1, "opened": opened}


def test_a_source_that_was_replaced_after_it_was_planned_is_told(
    recipe: dict[str, Any], pico_llama: Callable[..., Pico]
) -> None:
    planning = Planning(bot_dist.make_recipe(recipe))
    assert planning.draft
    with torch.no_grad():
        other = pico_llama(vocab_size=300, eos_token_id=256)
        other.model.model.norm.weight[0] += 1
    other.model.save_pretrained(recipe["source"])
    with pytest.raises(SourceError, match="was changed while it was read"):
        transfer_planned(planning)
    assert not Path(planning.recipe.transferred_url, "manifest.json").exists()
