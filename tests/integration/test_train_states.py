"""Training states: taken up by another world and stage, passed over when damaged, refused to another run."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from bot_dist.data.batches import Batches
from bot_dist.errors import CheckpointError, InputError, RunError, StoppedError
from bot_dist.events import Event
from bot_dist.events.training import Resumed, StatePassedOver, TrainingStep
from bot_dist.model import model_of
from bot_dist.recipe import TrainConfig
from bot_dist.store import CheckpointReader
from bot_dist.store.verification import parts, verify_part
from bot_dist.train.objectives import objective_of
from bot_dist.train.results import RunResult, TrainRun, run_result
from bot_dist.train.spikes import highest, is_spike
from tests.integration.ranks import on_ranks
from tests.integration.test_trainer import BATCH, text

pytestmark = pytest.mark.deepspeed

TRAIN = TrainConfig(steps=6, batch=BATCH, learning_rate=3e-3, evaluate_every=2, save_every=2, keep=2, stage=3)


def train_on_rank(
    pico_url: str, config: dict[str, Any], train: TrainConfig, folder: str, stop_at: int, spikes: Sequence[int]
) -> Any:
    """The result; or what was raised, and what was told before. At ``stop_at`` the last rank gets a SIGTERM; in the
    steps of ``spikes`` it sees token 1."""
    import torch.distributed as dist

    from bot_dist.train.stopping import Stopping
    from bot_dist.train.worker import Place, Trainer

    told: list[Event] = []

    class Batched(Batches[Any]):
        def batch(self, step: int, rank: int, world: int) -> Any:
            if step + 1 == stop_at and dist.get_rank() == dist.get_world_size() - 1:
                os.kill(os.getpid(), signal.SIGTERM)
            samples = super().batch(step, rank, world)
            if step + 1 in spikes and rank == world - 1:
                samples[-1, 3] = 1
            return samples

    data = text()
    data = dataclasses.replace(data, batches=Batched(data.batches._samples, BATCH, seed=0))
    with Stopping(None) as stopping:
        trainer = Trainer(
            TrainRun(name="run", config=config, url=pico_url, steps=train.steps),
            train=train,
            data=data,
            objective=objective_of(model_of(config), seed=train.seed, masking=None),
            tokenizer_url="",
            on_event=told.append,
            device="cpu",
            states=Place(url=folder, data="drawn"),
            stopping=stopping,
        )
        try:
            return dataclasses.asdict(trainer.run()), told
        except (InputError, CheckpointError, RunError) as error:
            return error, told


def train_on(
    world: int, pico: Any, folder: Path, train: TrainConfig = TRAIN, stop_at: int = 0, spikes: Sequence[int] = ()
) -> tuple[RunResult | Exception, list[Event]]:
    config = json.loads((pico.folder / "config.json").read_text())
    found, told = on_ranks(world, train_on_rank, pico.url, config, train, str(folder), stop_at, spikes)[0]
    return (run_result(found) if isinstance(found, dict) else found), told


def kinds(told: Sequence[Event]) -> list[str]:
    return [event.kind for event in told]


def curve(result: RunResult | Exception) -> list[float]:
    assert isinstance(result, RunResult), result
    assert [step.step for step in result.losses] == [*range(1, 7)]
    assert [h.step for h in result.held_out] == [0, 2, 4, 6]
    return [step.loss for step in result.losses] + [h.loss for h in result.held_out]


def test_a_stopped_run_goes_on_as_if_it_had_not(pico_llama: Any, tmp_path: Path) -> None:
    pico = pico_llama(num_hidden_layers=1)
    undisturbed, _ = train_on(2, pico, tmp_path / "undisturbed")

    # A SIGTERM on one rank saves the step that it came in, and the same world goes on bit by bit.
    stopped, _ = train_on(2, pico, tmp_path / "run", stop_at=3)
    assert isinstance(stopped, StoppedError)
    assert "run 'run' was stopped after step 3 of 6" in str(stopped)
    again, told = train_on(2, pico, tmp_path / "run")
    assert kinds(told).count("step") == 3
    assert [event.step for event in told if isinstance(event, Resumed)] == [3]
    assert curve(again) == curve(undisturbed)
    assert again.trained_digest == undisturbed.trained_digest
    assert again.digest == undisturbed.digest

    # Its states are checkpoints: of the model, with moments beside it, whole; the best is kept besides the last two.
    names = sorted(path.name for path in (tmp_path / "run").iterdir())
    assert names[-2:] == ["step-00000004", "step-00000006"]
    reader = CheckpointReader(str(tmp_path / "run" / "step-00000006"))
    reader.check(model_of(reader.config))
    assert len(reader.manifest.parameters) == 3 * len([*reader.tensors()])
    assert all(verify_part(reader, part) == [] for part in parts(reader, 1))

    # Another learning rate is another run.
    other, _ = train_on(1, pico, tmp_path / "run", TRAIN.model_copy(update={"learning_rate": 1e-3}))
    assert isinstance(other, InputError)
    assert "another run: train.learning_rate differ" in str(other)


def test_another_world_and_stage_pass_over_what_is_damaged(pico_llama: Any, tmp_path: Path) -> None:
    pico = pico_llama(num_hidden_layers=1)
    first, _ = train_on(3, pico, tmp_path / "run", TRAIN.model_copy(update={"stage": 1}))
    newest = tmp_path / "run" / "step-00000006"
    shard = next(newest.glob("data/*/moments/exp_avg_sq/*/c.*"))
    shard.write_bytes(bytes(reversed(shard.read_bytes())))

    second, told = train_on(2, pico, tmp_path / "run", TRAIN.model_copy(update={"stage": 1, "tensor": 2}))
    passed, resumed, *_ = told
    assert isinstance(passed, StatePassedOver)
    assert isinstance(resumed, Resumed)
    assert "is damaged" in passed.problem
    assert resumed.step == 4
    assert curve(second) == pytest.approx(curve(first), abs=1e-3)

    # What ranks that cut parameters have saved, too, is there for another stage.
    (newest.parent / "step-00000004").rename(tmp_path / "set aside")
    third, told = train_on(1, pico, tmp_path / "run")
    assert [event.step for event in told if isinstance(event, Resumed)] == [6]
    assert third.trained_digest == second.trained_digest
    (tmp_path / "set aside").rename(newest.parent / "step-00000004")

    (tmp_path / "run" / "step-00000006" / "manifest.json").unlink()  # unfinished: no state at all
    for manifest in (tmp_path / "run").glob("*/manifest.json"):
        manifest.write_text(manifest.read_text().replace('"step": 4', '"step": 5', 1))
    none, told = train_on(1, pico, tmp_path / "run")
    assert isinstance(none, CheckpointError)
    assert "every training state is damaged" in str(none)
    assert "step" not in kinds(told)


@pytest.mark.parametrize("stage", [1, 3])
def test_a_spike_is_left_out_or_named(pico_llama: Any, tmp_path: Path, stage: int) -> None:
    pico = pico_llama(tied=False, num_hidden_layers=1)
    with torch.no_grad():
        pico.model.model.embed_tokens.weight[1] = float("nan")  # which no text has but that of a spike
    pico.model.save_pretrained(pico.folder)
    skip = TRAIN.model_copy(update={"stage": stage, "save_every": 1, "keep": 6, "on_spike": "skip", "max_skipped": 1})
    result, told = train_on(2, pico, tmp_path / "run", skip, spikes=[3])
    assert isinstance(result, RunResult), result
    assert [step.skipped for step in result.losses] == [False, False, True, False, False, False]
    assert [math.isfinite(step.loss) for step in result.losses] == [not step.skipped for step in result.losses]
    assert kinds(told).count("skipped") == 1
    before, after, later = (CheckpointReader(str(tmp_path / "run" / f"step-0000000{n}")) for n in (2, 3, 4))
    for name in before.manifest.parameters:
        same = before.manifest.digests[name] == after.manifest.digests[name]
        assert same, f"{name} was changed by a step that was left out"
    assert any(after.manifest.digests[name] != later.manifest.digests[name] for name in after.manifest.parameters)

    twice, _ = train_on(2, pico, tmp_path / "twice", skip, spikes=[3, 5])
    assert isinstance(twice, RunError)
    stopped, _ = train_on(2, pico, tmp_path / "stopped", skip.model_copy(update={"on_spike": "stop"}), spikes=[4])
    assert isinstance(stopped, RunError)
    assert "loss is nan at step 4 of 6" in str(stopped)
    assert "step-00000003" in str(stopped)
    numbers = str(text().batches.numbers(3)).strip("[]")
    assert f"its batch: samples {numbers}; " in str(stopped)


def test_a_spike_is_far_above_what_was_before() -> None:
    steps = [TrainingStep(step=i + 1, loss=2 + i % 2, learning_rate=1, seconds=1, skipped=False) for i in range(32)]
    assert highest(steps, None) == highest(steps[1:], 3.0) == math.inf
    assert highest(steps, 3.0) == pytest.approx(2.5 + 3 * 0.5)
    skipped = TrainingStep(step=33, loss=math.nan, learning_rate=1, seconds=1, skipped=True)
    assert highest([*steps, skipped], 3.0) == highest(steps, 3.0)
    assert is_spike(4.1, 4.0)
    assert is_spike(math.nan, math.inf)
    assert not is_spike(4.0, 4.0)
