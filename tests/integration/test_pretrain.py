"""Continued pretraining by ZeRO-3 against the same model in one process, and against itself over other world sizes."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from bot_dist.data.batches import Batches, TokenFile, prepare_tokens
from bot_dist.errors import CheckpointExistsError, InputError, RunError, StoppedError
from bot_dist.events import Event
from bot_dist.events.training import Resumed, RunEvent, StateSaved, TrainingStepDone
from bot_dist.model import model_of
from bot_dist.recipe import ClusterConfig, TrainConfig
from bot_dist.store import CheckpointReader
from bot_dist.tensors import whole
from bot_dist.train.driver import PretrainResult, TrainRun, pretrain
from bot_dist.train.initial import InitialSource
from bot_dist.train.optimizers.adamw import BETAS
from bot_dist.train.schedule import learning_rate

pytestmark = [pytest.mark.ray, pytest.mark.deepspeed, pytest.mark.usefixtures("ray_cluster")]

STEPS = 4
CPU = ClusterConfig(device="cpu")


def hf_config(pico: Any) -> dict[str, Any]:
    config: dict[str, Any] = json.loads((pico.folder / "config.json").read_text())
    return config


@pytest.fixture
def train(shakespeare: str) -> TrainConfig:
    """Twelve sequences divide over 1, 2 and 3 workers; five held out do not."""
    fields: dict[str, Any] = {"text": (shakespeare,), "context": 16, "batch": 12, "held_out": 5, "evaluate_every": 2}
    return TrainConfig(learning_rate=3e-3, warmup=1, steps=STEPS, peak_flops=1e9, **fields)


@pytest.fixture
def start(pico_tokenizer: Path, tmp_path: Path) -> Callable[..., PretrainResult]:
    def start(runs: list[TrainRun], train: TrainConfig, **options: Any) -> PretrainResult:
        options = {"cluster": CPU, "output": str(tmp_path / "run"), **options}
        return pretrain(runs, train=train, tokenizer_url=str(pico_tokenizer), **options)

    return start


def loss_of(model: Any, windows: torch.Tensor) -> torch.Tensor:
    """Next-token cross-entropy as ``transformers`` computes it."""
    loss: torch.Tensor = model(input_ids=windows, labels=windows).loss
    return loss


def train_alone(model: Any, tokens: TokenFile, train: TrainConfig) -> tuple[list[float], list[float]]:
    """The same training in plain PyTorch: losses of the steps, and held-out losses before and after."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": train.weight_decay}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, betas=BETAS)
    batches = Batches(tokens.train(), train.batch, train.seed)
    losses, held_out = [], [loss_of(model, tokens.held_out_samples()).item()]
    for step in range(STEPS):
        loss = loss_of(model, batches.batch(step, 0, 1))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, peak=train.learning_rate, warmup=train.warmup, steps=STEPS)
        optimizer.step()
        losses.append(loss.item())
    held_out.append(loss_of(model, tokens.held_out_samples()).item())
    return losses, held_out


def test_two_workers_train_as_one_process_does(pico_llama, start, train, pico_tokenizer, tmp_path):
    pico = pico_llama()
    config, events = hf_config(pico), []
    out = tmp_path / "run"
    runs = [
        TrainRun(
            name="transferred",
            config=config,
            url=pico.url,
            steps=STEPS,
            save_url=str(out / "trained.zarr"),
            probe_path=str(out / "probe.safetensors"),
        ),
        TrainRun(name="scratch", config=config, url=None, steps=STEPS),
        TrainRun(name="source", config=config, url=str(out / "trained.zarr"), steps=0),
    ]
    result = start(runs, train, on_event=events.append)

    tokens = prepare_tokens(train, str(pico_tokenizer), 64, out / "train")
    losses, held_out = train_alone(pico.model, tokens, train)
    trained = result.run("transferred")
    assert [h.step for h in trained.held_out] == [0, 2, 4]
    assert trained.held_out[0].loss == pytest.approx(held_out[0], abs=1e-5)
    assert [step.loss for step in trained.losses] == pytest.approx(losses, abs=1e-4)
    assert trained.held_out[-1].loss == pytest.approx(held_out[1], abs=1e-4)
    assert trained.held_out[-1].loss < trained.held_out[0].loss

    # Every rank has read its half of the weights, and nothing else.
    n = sum(p.numel() for p in pico.model.parameters())
    assert sum(trained.bytes_read) == 4 * n
    assert max(trained.bytes_read) - min(trained.bytes_read) <= 4 * len(list(pico.model.parameters()))

    # What was saved is what was trained.
    reader, model = CheckpointReader(str(out / "trained.zarr")), model_of(config)
    reader.check(model)
    theirs = dict(pico.model.named_parameters())
    for _, _, p in model.parameters():
        ours = reader.read(p, whole(p.sizes)).reshape(p.shape)
        torch.testing.assert_close(ours, theirs[p.name].detach(), atol=2e-4, rtol=0)
    probe = load_file(out / "probe.safetensors")
    logits = pico.model(input_ids=probe["input_ids"]).logits
    torch.testing.assert_close(probe["logits"], logits.detach(), atol=1e-2, rtol=0)
    assert probe["logits"].shape == (1, 16, 64)

    # Reading it back starts where training ended, in an engine without an optimizer.
    again = result.run("source")
    assert again.digest == trained.trained_digest
    assert again.held_out[0].loss == pytest.approx(trained.held_out[-1].loss, abs=1e-6)
    assert again.losses == []
    assert again.trained_digest is None

    # From scratch means from the family's own initialisation.
    scratch, initial = result.run("scratch"), InitialSource(model, train.seed)
    for _, _, p in model.parameters():
        theirs[p.name].data.copy_(initial.read(p, whole(p.sizes)).reshape(p.shape))
    untrained = loss_of(pico.model, tokens.held_out_samples()).item()
    assert scratch.held_out[0].loss == pytest.approx(untrained, abs=1e-5)
    assert scratch.held_out[-1].loss < scratch.held_out[0].loss

    # What it shows: a line and a scalar of every step and measurement.
    shown = out / "train" / "transferred"
    lines = [json.loads(line) for line in (shown / "metrics.jsonl").read_text().splitlines()]
    assert [line["loss"] for line in lines if "loss" in line] == [step.loss for step in trained.losses]
    assert [line["held_out_loss"] for line in lines if "held_out_loss" in line] == [h.loss for h in trained.held_out]
    board = EventAccumulator(str(shown / "tensorboard"))
    board.Reload()
    assert {*board.Tags()["scalars"]} == {"loss", "learning_rate", "tokens_per_s", "mfu", "held_out_loss"}
    assert [scalar.step for scalar in board.Scalars("held_out_loss")] == [0, 2, 4]
    assert [scalar.value for scalar in board.Scalars("loss")] == pytest.approx([s.loss for s in trained.losses])
    seconds = statistics.median(step.seconds for step in trained.losses)
    flops = 12 * 16 * model.training_flops_per_token(16)
    assert trained.mfu == pytest.approx(flops / seconds / (2 * train.peak_flops))

    kinds = [event.kind for event in events if isinstance(event, RunEvent) and event.run == "transferred"]
    assert kinds == ["loaded", "held_out", "step", "step", "held_out", "step", "step", "held_out", "saved", "run_done"]
    assert json.loads(json.dumps(result.to_json()))["runs"][0]["name"] == "transferred"


def test_a_killed_worker_costs_nothing_but_time(pico_llama, start, train, tmp_path, request):
    config, events = hf_config(pico_llama()), []
    runs = [
        TrainRun(name="first", config=config, url=None, steps=2, save_url=str(tmp_path / "first.zarr")),
        TrainRun(name="second", config=config, url=None, steps=80),
    ]
    train = train.model_copy(update={"save_every": 5, "max_failures": 1, "evaluate_every": 40})

    def kill(event: Event) -> None:
        events.append(event)
        if isinstance(event, StateSaved) and event.run == "second" and "resumed" not in kinds(events):
            workers = [p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in p.name()]
            workers = workers or [
                p for p in psutil.Process().children(recursive=True) if "RayTrainWorker" in " ".join(p.cmdline())
            ]
            workers[-1].kill()

    def kinds(events: list[Event]) -> list[str]:
        return [event.kind for event in events]

    survived = start(runs, train, on_event=kill)
    request.getfixturevalue("forked_training")
    assert "finished_before" in kinds(events)
    assert kinds(events).count("resumed") == 1
    undisturbed = start(
        [dataclasses.replace(run, save_url=None) for run in runs], train, output=str(tmp_path / "other")
    )
    for run, same in zip(survived.runs, undisturbed.runs, strict=True):
        assert [step.loss for step in run.losses] == [step.loss for step in same.losses]
        assert run.held_out == same.held_out
        assert run.trained_digest == same.trained_digest


@pytest.mark.slow
def test_a_signal_to_the_driver_saves_the_state(pico_llama, start, train):
    run = TrainRun(name="run", config=hf_config(pico_llama()), url=None, steps=300)
    events: list[Event] = []

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    def stop(event: Event) -> None:
        events.append(event)
        if isinstance(event, TrainingStepDone) and event.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    train = train.model_copy(update={"evaluate_every": 300})
    handler = signal.signal(signal.SIGTERM, interrupt)  # as the command line does
    try:
        with pytest.raises(StoppedError, match=r"run 'run' was stopped after step \d+ of 300; its state is in .*step-"):
            start([run], train, on_event=stop)
    finally:
        signal.signal(signal.SIGTERM, handler)
    saved = [event.step for event in events if isinstance(event, StateSaved)]
    start([run], train, on_event=events.append)
    assert [event.step for event in events if isinstance(event, Resumed)] == saved


@pytest.mark.usefixtures("forked_training")
def test_weights_do_not_depend_on_the_number_of_workers(pico_llama, pico_gpt2, start, train, tmp_path):
    llama, gpt2 = pico_llama(tied=False), pico_gpt2()
    runs = [
        TrainRun(name="llama", config=hf_config(llama), url=llama.url, steps=0),
        TrainRun(name="gpt2", config=hf_config(gpt2), url=gpt2.url, steps=0),
        TrainRun(name="scratch", config=hf_config(llama), url=None, steps=0),
        TrainRun(name="trained", config=hf_config(llama), url=None, steps=1),
    ]
    one, *others = (
        start(runs, train.model_copy(update={"workers": world}), output=str(tmp_path / str(world)))
        for world in (1, 2, 3)
    )
    assert len({run.digest for run in one.runs[:3]}) == 3
    for other in others:
        assert [run.digest for run in other.runs] == [run.digest for run in one.runs]
        for run, same in zip(other.runs, one.runs, strict=True):
            assert [h.loss for h in run.held_out] == pytest.approx([h.loss for h in same.held_out], abs=1e-5)


def test_an_error_of_a_worker_keeps_its_class(pico_llama, start, train, tmp_path):
    run = TrainRun(name="r", config=hf_config(pico_llama()), url=str(tmp_path / "nothing"), steps=0)
    with pytest.raises(InputError, match="nothing"):
        start([run], train)


@pytest.mark.usefixtures("forked_training")
class TestErrors:
    def test_a_diverging_run_is_named_with_its_step(self, pico_llama, start, train):
        run = TrainRun(name="transferred", config=hf_config(pico_llama()), url=None, steps=STEPS)
        with pytest.raises(RunError, match=r"run 'transferred': (held-out )?loss is (nan|inf) at step \d of 4; lower"):
            start([run], train.model_copy(update={"learning_rate": 1e17, "warmup": 0}))

    def test_a_run_that_may_diverge_ends_there_and_others_go_on(self, pico_llama, start, train, tmp_path):
        """As where a comparison tries learning rates."""
        config, saved = hf_config(pico_llama()), str(tmp_path / "trained.zarr")
        diverging = TrainRun(name="a", config=config, url=None, steps=STEPS, save_url=saved, may_diverge=True)
        result = start(
            [diverging, TrainRun(name="b", config=config, url=None, steps=0)],
            train.model_copy(update={"learning_rate": 1e17, "warmup": 0, "workers": 2}),
        )
        first, second = result.runs
        assert first.diverged.startswith("run 'a': ")
        assert second.diverged is None
        assert 0 < len(first.losses) < STEPS
        assert all(math.isfinite(step.loss) for step in first.losses)
        assert first.held_out[0].loss == second.held_out[0].loss
        assert not (tmp_path / "trained.zarr" / "manifest.json").exists()

    def test_a_taken_store_is_refused_before_training(self, pico_llama, start, train, tmp_path):
        taken = tmp_path / "taken"
        taken.mkdir()
        (taken / "thesis.txt").write_text("mine")
        run = TrainRun(name="r", config=hf_config(pico_llama()), url=None, steps=STEPS, save_url=str(taken))
        events: list[Event] = []
        with pytest.raises(CheckpointExistsError, match=r"taken is not empty"):
            start([run], train, on_event=events.append)
        assert not [event for event in events if isinstance(event, TrainingStepDone)]

    def test_more_workers_than_cpus(self, pico_llama, start, train):
        run = TrainRun(name="r", config=hf_config(pico_llama()), url=None, steps=0)
        with pytest.raises(InputError, match=r"train\.workers=12, but the Ray cluster has 4 CPUs"):
            start([run], train.model_copy(update={"workers": 12}))

    def test_a_context_that_the_model_has_no_positions_for(self, pico_gpt2, start, train):
        run = TrainRun(name="r", config=hf_config(pico_gpt2()), url=None, steps=0)
        with pytest.raises(InputError, match=r"train\.context is 40 tokens, but the model has n_positions=32"):
            start([run], train.model_copy(update={"context": 40}))

    def test_an_error_of_the_listener_reaches_the_caller(self, pico_llama, start, train):
        def broken(event: Event) -> None:
            raise ZeroDivisionError("listener")

        run = TrainRun(name="r", config=hf_config(pico_llama()), url=None, steps=0)
        with pytest.raises(ZeroDivisionError, match="listener"):
            start([run], train, on_event=broken)
