"""A whole run on a pico model: stages are done once, taken up where they were left, and never mixed up."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bot_dist
from bot_dist.errors import CheckpointError, CheckpointExistsError, FamilyError, InputError, RecipeError, StoppedError
from bot_dist.events import Event
from bot_dist.events.calibrate import StatisticsCommitted, TakenUp
from bot_dist.events.training import StateSaved, TrainingStepDone
from bot_dist.events.transfer import TransferCommitted
from bot_dist.recipe import member_of
from bot_dist.store import CheckpointReader
from tests.conftest import UNTRAINED

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.usefixtures("ray_cluster")]


STORES = ("transferred", "trained")


@pytest.fixture
def recipe(
    tmp_path: Path, pico_llama: Callable[..., Any], pico_tokenizer: Path, shakespeare: str
) -> Callable[..., bot_dist.Recipe]:
    """The recipe of a run, with overrides."""
    source = pico_llama().folder
    for file in pico_tokenizer.iterdir():
        shutil.copy(file, source)
    data = {
        "source": str(source),
        "output": str(tmp_path / "run"),
        "target": {"embed": 12, "mlp": 20},
        "cluster": {"tensor": 2},
        "calibrate": UNTRAINED,
        "train": {"text": [shakespeare], "steps": 2, "context": 16, "batch": 4, "held_out": 4},
    }
    return lambda **overrides: bot_dist.make_recipe(data, overrides)


@pytest.mark.usefixtures("forked_training")
def test_a_run_and_its_reruns(recipe: Callable[..., bot_dist.Recipe], tmp_path: Path) -> None:
    out = tmp_path / "run"
    facts = bot_dist.run(recipe())
    assert not facts.complete_before
    assert [run.name for run in facts.pretrain.runs] == ["transferred", "scratch"]
    assert facts.export.logits.max_abs_difference < 1e-5
    assert facts.export.logits.missing_keys == facts.export.logits.unexpected_keys == []
    assert {name: len(texts) for name, texts in facts.samples.items()} == {"source": 2, "target": 2}
    html = (out / "report.html").read_text()
    assert "What they write" in html
    assert all(text in html for text in ("data:image/png;base64", "mlp.down", "How it was shrunk", "torch"))
    kinds = {(e["stage"], e["event"]) for e in map(json.loads, (out / "events.jsonl").read_text().splitlines())}
    assert {("transfer", "step"), ("transfer", "committed"), ("pretrain", "step"), ("export", "start")} <= kinds

    before, after = (CheckpointReader(str(out / f"{name}.zarr")).manifest.parameters for name in STORES)
    assert {n: p.learning_rate_factor for n, p in after.items()} == {
        n: p.learning_rate_factor for n, p in before.items()
    }
    assert before["model.layers.0.mlp.up_proj.weight"].learning_rate_factor == 2

    # Again: nothing to do. After a lost report: only the report.
    assert bot_dist.run(recipe()).complete_before
    (out / "stages" / "facts.json").unlink()
    (out / "report.html").unlink()
    events: list[Event] = []
    again = bot_dist.run(recipe(), events.append)
    assert (again.pretrain, again.transfer) == (facts.pretrain, facts.transfer)
    assert {(e.stage, e.kind) for e in events} == {
        ("calibrate", "cached"),
        ("calibrate", "loss"),
        ("plan", "planned"),
    }
    assert (out / "report.html").exists()

    # Another recipe in the same place is refused; asked for, it replaces all, the trained store's export too.
    other = {"train.steps": 0, "train.scratch": False, "target.mlp": 80}
    with pytest.raises(InputError, match="another recipe"):
        bot_dist.run(recipe(**other))
    facts = bot_dist.run(recipe(**other, overwrite=True))
    assert facts.export.source == str(out / "transferred.zarr")
    assert json.loads((out / "export" / "config.json").read_text())["intermediate_size"] == 80
    assert facts.export.logits.max_abs_difference < 1e-5

    # What was trained from another store is not exported as this one's result.
    with pytest.raises(CheckpointError, match="was trained from another store"):
        bot_dist.export(recipe(**{"target.mlp": 80, "overwrite": True}))

    # The store that a run reads is never written over.
    with pytest.raises(InputError, match="over its source"):
        bot_dist.transfer(recipe(source=str(out / "transferred.zarr"), target={}, overwrite=True))
    CheckpointReader(str(out / "transferred.zarr"))


@pytest.mark.usefixtures("forked_training")
def test_a_family_is_a_run_for_each_of_it(recipe: Callable[..., bot_dist.Recipe], tmp_path: Path) -> None:
    out, copy = tmp_path / "run", str(tmp_path / "copy.zarr")
    family = {"small": {"target": {"mlp": 20}}, "large": {"target": {"embed": 16, "mlp": 80}}}
    short = {"train.steps": 0, "train.scratch": False, "cluster.tensor": 1}
    whole = recipe(**short, family=family, import_to=copy)
    events: list[Event] = []
    facts = bot_dist.run(whole, events.append)
    assert [*facts.members] == ["small", "large"]
    assert not facts.complete_before
    assert [e.url for e in events if isinstance(e, TransferCommitted)] == [
        copy,
        *(str(out / name / "transferred.zarr") for name in family),
    ]
    for name, sizes in (("small", [12, 20]), ("large", [16, 80])):
        config = json.loads((out / name / "export" / "config.json").read_text())
        assert [config["hidden_size"], config["intermediate_size"]] == sizes
        assert CheckpointReader(str(out / name / "transferred.zarr")).manifest.provenance["source"]["url"] == copy
    measured = [e for e in events if isinstance(e, (StatisticsCommitted, TakenUp)) and e.purpose == "loss of source"]
    assert {e.member: type(e) for e in measured} == {"small": StatisticsCommitted, "large": TakenUp}
    index = (out / "report.html").read_text()
    assert all(f'href="{name}/report.html"' in index and (out / name / "report.html").exists() for name in family)

    # Again: nothing to do; of one whose report is lost, only that, and by its own name, too.
    assert bot_dist.run(whole).complete_before
    (out / "large" / "stages" / "facts.json").unlink()
    again = bot_dist.run(whole).members
    assert [again[name].complete_before for name in family] == [True, False]
    assert again["large"].transfer == facts.members["large"].transfer
    assert bot_dist.run(member_of(whole, "large")).complete_before

    # What is wrong with one of them is found before anything of another is done; and they are planned one by one.
    wrong = recipe(**short, family={"first": {}, "second": {"target": {"head_dim": 3}}}, output=str(tmp_path / "other"))
    with pytest.raises(FamilyError, match="head_dim=3: family 'llama' keeps it"):
        bot_dist.run(wrong)
    assert not (tmp_path / "other").exists()
    with pytest.raises(InputError, match=r"holds a family \(small, large\): name one of it, as in RECIPE\.yaml:small"):
        bot_dist.transfer(whole)


def test_members_are_trained_side_by_side_and_stopped_together(recipe: Callable[..., bot_dist.Recipe]) -> None:
    steps = 100_000
    whole = recipe(
        **{"train.steps": steps, "train.scratch": False, "train.workers": 1, "train.evaluate_every": steps},
        **{"cluster.tensor": 1, "cluster.side_by_side": 2},
        family={"small": {"target": {"mlp": 20}}, "large": {"target": {"mlp": 80}}},
    )
    events: list[Event] = []
    started: set[str] = set()

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, TrainingStepDone) and started != {"small", "large"}:
            started.add(event.member)
            if len(started) == 2:
                os.kill(os.getpid(), signal.SIGUSR1)

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt  # as the command line does on a signal

    handler = signal.signal(signal.SIGUSR1, interrupt)
    try:
        with pytest.raises(StoppedError, match=r"run 'transferred' was stopped after step \d+ of 100000"):
            bot_dist.run(whole, stop)
    finally:
        signal.signal(signal.SIGUSR1, handler)
    saved = {event.member: event.step for event in events if isinstance(event, StateSaved)}
    assert {*saved} == {"small", "large"}, "each was at work before the other was done"


def test_what_no_run_has_made_is_not_replaced_and_found_before_anything_is_done(
    recipe: Callable[..., bot_dist.Recipe], tmp_path: Path
) -> None:
    mine = tmp_path / "run" / "export" / "model.safetensors"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"three years of work")
    for _ in range(2):
        with pytest.raises(CheckpointExistsError, match="is not empty"):
            bot_dist.run(recipe(**{"train.steps": 0, "train.scratch": False}))
    assert mine.read_bytes() == b"three years of work"
    assert not (tmp_path / "run" / "transferred.zarr").exists()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"train.text": []}, "names no file"),
        ({"train.batch": 3}, "not divisible over"),
        ({"train.inserted": {"warmup": 3}}, r"train\.inserted is about blocks .* puts none in"),
        ({"train.context": 65}, "max_position_embeddings=64"),
        ({"transfer.wavelet": {"embd": "db2"}}, "no axis 'embd'"),
    ],
)
def test_mistakes_are_found_before_anything_is_written(
    overrides: dict[str, Any], message: str, recipe: Callable[..., bot_dist.Recipe], tmp_path: Path
) -> None:
    with pytest.raises((InputError, RecipeError, StoppedError), match=message):
        bot_dist.run(recipe(**overrides))
    assert not (tmp_path / "run").exists()
