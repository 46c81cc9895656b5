"""What runs keep in their output's folder, and that they keep it apart from the user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bot_dist
from bot_dist.data.token_store import TokenStoreWriter
from bot_dist.errors import CheckpointExistsError, InputError
from bot_dist.events.training import TrainingStepDone
from bot_dist.pipeline.records import Records
from bot_dist.store import CheckpointWriter
from bot_dist.train.metrics import Metrics
from bot_dist.train.state import forget, state_name
from tests.unit.test_store import STORED, fill


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., bot_dist.Recipe]:
    """``recipe(**keys)``; its output is ``tmp_path``."""
    return lambda **keys: bot_dist.make_recipe({"source": "source", "output": str(tmp_path), **keys})


def contents(folder: Path) -> dict[str, str]:
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): path.read_bytes().decode("latin-1") for path in paths}


def test_a_run_is_taken_up_and_forgotten_on_request(recipe: Callable[..., Any], tmp_path: Path) -> None:
    Records(tmp_path, recipe()).save("facts", {"loss": 1.0})
    (tmp_path / "report.html").write_text("its own")
    (tmp_path / "stages/notes.json").write_text("mine")
    assert Records(tmp_path, recipe()).load("facts") == {"loss": 1.0}
    with pytest.raises(InputError, match="holds a run of another recipe"):
        Records(tmp_path, recipe(target={"layers": 3}))
    assert Records(tmp_path, recipe(overwrite=True)).load("facts") is None
    assert contents(tmp_path / "stages").keys() == {"recipe.json", "notes.json"}


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("name", ["facts.json", "recipe.json", "pretrain.json"])
def test_records_that_no_run_has_made_stay(
    recipe: Callable[..., Any], tmp_path: Path, name: str, overwrite: bool
) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / name).write_text('{"mine": 1}')
    with pytest.raises(CheckpointExistsError, match="holds what no run has recorded"):
        Records(tmp_path, recipe(overwrite=overwrite))
    assert contents(tmp_path) == {f"stages/{name}": '{"mine": 1}'}


@pytest.mark.parametrize(
    "name", ["report.html", "export/model.gguf", "trained.zarr/notes.txt", "export", "trained.zarr"]
)
def test_what_a_run_would_write_over_stays(recipe: Callable[..., Any], tmp_path: Path, name: str) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointExistsError, match=r"is not empty|is there already"):
        Records(tmp_path, recipe())
    assert contents(tmp_path) == {name: "mine"}


def test_forgotten_states_leave_what_is_the_users(tmp_path: Path) -> None:
    for step in (1, 2):
        writer = CheckpointWriter.create(str(tmp_path / state_name(step)), STORED, config={}, attempt="a")
        digests = fill(writer)
        if step == 1:
            writer.commit(digests, {})
    mine = ("notes.txt", f"{state_name(2)}/notes.txt", f"{state_name(3)}/weights.bin", "step-x/c.0", "steps/c.0")
    for name in mine:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")
    (tmp_path / "result.json").write_text("{}")
    forget(str(tmp_path))
    assert contents(tmp_path) == dict.fromkeys(mine, "mine")


def test_metrics_begun_anew_leave_what_is_the_users(tmp_path: Path) -> None:
    numbers = {"loss": 1.0, "learning_rate": 1e-3, "seconds": 1.0, "tokens_per_s": 9.0, "mfu": 0.5}
    event = TrainingStepDone(run="Ours", step=1, steps=2, **numbers)
    for fresh in (False, True):
        metrics = Metrics(tmp_path, fresh=fresh)
        metrics(event)
        metrics.close()
        mine = {"ours/notes.txt", "ours/tensorboard/notes.txt"}
        for name in mine:
            (tmp_path / name).write_text("mine")
    assert len((tmp_path / "ours/metrics.jsonl").read_text().splitlines()) == 1
    assert {name for name, text in contents(tmp_path).items() if text == "mine"} == mine
    assert len(contents(tmp_path)) == 4


def test_tokens_that_are_given_up_leave_what_is_the_users(tmp_path: Path) -> None:
    writer = TokenStoreWriter(str(tmp_path), "uint16")
    for number in range(3):
        writer.write(number, torch.arange(9, dtype=torch.int32).numpy(), {0: 1})
    (tmp_path / "7.bin").write_text("mine")
    writer.discard(3)
    assert contents(tmp_path) == {"7.bin": "mine"}
