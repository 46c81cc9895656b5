"""The Ray Train function: every rank runs it, and takes the runs one after the other in the same worker group."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist

from bot_dist.data.batches import Batches
from bot_dist.errors import BotDistError, DivergedError, RunError, StoppedError
from bot_dist.events import OnEvent
from bot_dist.events.training import (
    Diverged,
    FinishedBefore,
    HeldOut,
    HeldOutMeasured,
    Loaded,
    MomentsTaken,
    RunDone,
    Saved,
    StepSkipped,
    TrainingStep,
    TrainingStepDone,
    WorkersReady,
)
from bot_dist.execute.process import peak_rss_bytes, reset_peak_rss, usable_cpus
from bot_dist.model import model_of
from bot_dist.recipe import TrainConfig
from bot_dist.storage.disk import writing
from bot_dist.storage.files import join
from bot_dist.store import manifest
from bot_dist.train.mailbox import Teller
from bot_dist.train.moments import fill_moments, steps_before
from bot_dist.train.objectives import HELD_OUT, Data, Examples, Objective, objective_of
from bot_dist.train.parameter_groups import set_rates
from bot_dist.train.results import RunResult, TrainRun, run_result
from bot_dist.train.spikes import highest, is_spike
from bot_dist.train.state import Progress, States, identity
from bot_dist.train.stopping import Stopping
from bot_dist.urls import label

PROBE_TOKENS = 32
"""Length of the probe sequence, where the context is not shorter."""


def train_worker(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Train ``settings["runs"]`` in order; returns their RunResults as plain data (the same on every rank)."""
    import ray

    from bot_dist.train.engine import connect

    if settings["device"] == "cpu":
        workers = int(os.environ["LOCAL_WORLD_SIZE"]) * settings["beside"]
        torch.set_num_threads(max(1, usable_cpus() // workers))
    connect(settings["device"])
    train = TrainConfig(**settings["train"])
    runs, samples = [TrainRun(**fields) for fields in settings["runs"]], settings["samples"]
    data = Data(
        batches=Batches(samples.train(), train.batch, train.seed),
        held_out=samples.held_out_samples(),
        tokens_per_sample=model_of(runs[0].config).tokens_per_sample(train.context),
    )
    mailbox = settings["mailbox"]
    if (failure := ray.get(mailbox.failure.remote())) is not None:
        raise failure  # Ray starts workers again whatever they raised, and this would come again
    teller = Teller(mailbox.put.remote)
    teller(WorkersReady(workers=dist.get_world_size()))
    results: list[dict[str, Any]] = []
    done: list[Callable[[], None]] = []
    try:
        with Stopping(mailbox.stopped.remote) as stopping:
            for run in runs:
                trainer = _trainer(run, settings, train, data, teller, stopping)
                result = trainer.run()
                results.append(dataclasses.asdict(result))
                done.append(functools.partial(trainer.record, result))
                if train.save_every:
                    trainer.record(result)
                teller(RunDone(run=result.name, result=results[-1]))
            if dist.get_rank() == 0:
                ray.get(mailbox.end.remote())
            return results
    except BotDistError as error:
        if isinstance(error, StoppedError):
            for record in done:
                record()
        ray.get(mailbox.fail.remote(error))
        raise
    finally:
        teller.flush()


def _trainer(
    run: TrainRun, settings: dict[str, Any], train: TrainConfig, data: Data, on_event: OnEvent, stopping: Stopping
) -> Trainer:
    return Trainer(
        run,
        train=train,
        data=data,
        objective=objective_of(model_of(run.config), seed=train.seed, masking=settings["masking"]),
        tokenizer_url=settings["tokenizer_url"],
        on_event=on_event,
        device=settings["device"],
        states=Place(url=run.states_url or join(settings["states_url"], run.name), data=settings["data"]),
        stopping=stopping,
    )


@dataclass(frozen=True, kw_only=True)
class Place:
    """The place of the states of a run."""

    url: str
    data: str
    """Name that identifies what is trained on."""


class Trainer:
    """One run on one rank."""

    def __init__(
        self,
        run: TrainRun,
        *,
        train: TrainConfig,
        data: Data,
        objective: Objective,
        tokenizer_url: str,
        on_event: OnEvent,
        device: Literal["cpu", "cuda"],
        states: Place | None = None,
        stopping: Stopping | None = None,
    ) -> None:
        """Take what a run needs; without ``states`` nothing is saved but the trained weights."""
        self._run, self._train, self._data, self._objective, self._tell = run, train, data, objective, on_event
        self._place, self._stopping = states, stopping
        self._states: Any = None
        self._tokenizer_url, self._device = tokenizer_url, device
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._data_rank, self._data_world = self._rank // train.tensor, self._world // train.tensor
        """Tensor-parallel ranks, which are next to each other, see the same samples."""
        self._part = train.batch // (self._data_world * train.accumulate)
        """Samples that go through the model at once."""
        self._model = model_of(run.config)
        self._held_out_examples = objective.examples(data.held_out, step=HELD_OUT, first=0)
        self._steps: list[TrainingStep] = []
        self._held_out: list[HeldOut] = []

    def run(self) -> RunResult:
        """Load, measure, train, save and probe; then free everything."""
        from bot_dist.train import engine as engines
        from bot_dist.train import saving, zero

        run, model = self._run, self._model
        reset_peak_rss()
        begun = time.perf_counter()
        source = self._source()
        before = steps_before(source, self._train) if run.steps else 0
        facts = identity(run, self._train, self._place.data if self._place else "", source.provenance())
        if self._place and run.steps:
            self._states = States(
                self._place.url,
                model,
                facts,
                source=source,
                keep=self._train.keep,
                tokenizer_url=self._tokenizer_url,
                run=run.name,
                on_event=self._tell,
                steps_before=before,
            )
            if (finished := self._states.finished(run.save_url)) is not None:
                self._tell(FinishedBefore(run=run.name, steps=run.steps))
                return run_result(finished)
        attempt = ""
        overwrite = run.overwrite
        if run.save_url:
            overwrite = overwrite or saving.is_of(run.save_url, manifest.digest(facts))
            attempt = saving.create_store(
                run.save_url,
                model,
                source,
                tokenizer_url=self._tokenizer_url,
                run_digest=manifest.digest(facts),
                overwrite=overwrite,
            )
        factors = {p.name: source.learning_rate_factor(p) for _, _, p in model.parameters()}
        self._module, self._engine = engines.start(
            model,
            self._train,
            world=self._world,
            device=self._device,
            trains=run.steps > 0,
            factors=factors if self._train.use_factors else {},
            inserted=run.inserted,
        )
        loading = time.perf_counter()
        progress = self._states.restore(self._module, self._engine) if self._states else None
        read_bytes = 0 if progress else zero.fill(self._module, self._engine, model, source)
        if before and not progress:
            read_bytes += fill_moments(self._module, self._engine, model, source, before)
            self._tell(MomentsTaken(run=run.name, step=before))
        dist.barrier()
        load_s = time.perf_counter() - loading
        digest = progress.digest if progress else zero.digest(self._module, self._engine, model)
        self._tell(Loaded(run=run.name, seconds=load_s, n_parameters=model.n_parameters, digest=digest))
        started_s = time.perf_counter() - begun
        if progress:
            self._steps, self._held_out = progress.losses, progress.held_out
        begun_at = len(self._steps)
        diverged = None
        try:
            if not progress:
                self._measure(0)
            self._train_steps(digest)
        except DivergedError as error:
            if not run.may_diverge:
                raise
            diverged = str(error)
            self._tell(Diverged(run=run.name, step=len(self._steps)))
        if run.save_url and not diverged:
            measured = [dataclasses.asdict(held_out) for held_out in self._held_out]
            provenance = {
                "run": run.name,
                "steps": run.steps,
                "source": source.provenance(),
                "held_out": measured,
            }
            saving.save(self._module, self._engine, model, run.save_url, attempt, provenance, overwrite=overwrite)
            self._tell(Saved(run=run.name, url=run.save_url))
        if run.probe_path and not diverged:
            self._probe(run.probe_path)
        trained_digest = zero.digest(self._module, self._engine, model) if run.steps else None
        ranks: list[Any] = [None] * self._world
        dist.all_gather_object(ranks, (read_bytes, peak_rss_bytes()))
        if self._states:
            self._states.close()
        engines.stop(self._module, self._engine)
        del self._module, self._engine
        first = self._steps[begun_at].seconds if begun_at < len(self._steps) else None
        return RunResult(
            name=run.name,
            steps=run.steps,
            n_parameters=model.n_parameters,
            tokens_per_step=self._train.batch * self._data.tokens_per_sample,
            losses=self._steps,
            held_out=self._held_out,
            load_s=load_s,
            first_step_s=None if first is None else started_s + first,
            bytes_read=[read for read, _ in ranks],
            peak_rss_bytes=[peak for _, peak in ranks],
            digest=digest,
            trained_digest=trained_digest,
            probe_path=run.probe_path,
            saved_url=run.save_url,
            diverged=diverged,
            **(self._speed(statistics.median(step.seconds for step in self._steps)) if self._steps else {}),
        )

    def _peak_flops(self) -> float:
        """FLOP/s that all ranks compute at best. A collective, when it is first asked for."""
        from bot_dist.train.engine import dtype_of
        from bot_dist.train.peak import peak_flops

        if self._train.peak_flops is not None:
            return self._train.peak_flops * self._world
        return peak_flops(dtype_of(self._model, self._train, self._device), self._device)

    def _speed(self, seconds: float) -> dict[str, float]:
        """Tokens per second and MFU of a step that takes so many ``seconds``."""
        tokens = self._train.batch * self._data.tokens_per_sample
        flops = tokens * self._model.training_flops_per_token(self._data.tokens_per_sample)
        return {"tokens_per_s": tokens / seconds, "mfu": flops / seconds / self._peak_flops()}

    def record(self, result: RunResult) -> None:
        """Remember that the run is done, so that it is not done again; rank 0 does it."""
        if self._states:
            self._states.finish(dataclasses.asdict(result))

    def _source(self) -> Any:
        if self._run.url is None:
            from bot_dist.train.initial import InitialSource

            return InitialSource(self._model, self._train.seed)
        from bot_dist.formats.open import open_source

        source = open_source(self._run.url)
        source.check(self._model)
        return source

    def _train_steps(self, digest: str) -> None:
        """The steps that are left. ``digest``: of the weights that the run began with."""
        run, train, engine = self._run, self._train, self._engine
        share = train.batch // self._data_world
        for step in range(len(self._steps), run.steps):
            begun = time.perf_counter()
            torch.manual_seed(seed_of(train.seed, step, self._data_rank))  # dropout, where a configuration has it
            rate = set_rates(engine.optimizer.param_groups, train, step, run.steps)
            engine.train()
            samples = self._data.batches.batch(step, self._data_rank, self._data_world)
            mine = self._objective.examples(samples, step=step, first=self._data_rank * share)
            limit = highest(self._steps, train.spike)
            loss, stopped_by = self._backward(mine, limit)
            spike = is_spike(loss, limit)
            if spike:
                self._check_spike(step + 1, loss, limit)
            else:
                engine.step()
            seconds = time.perf_counter() - begun
            done = TrainingStep(step=step + 1, loss=loss, learning_rate=rate, seconds=seconds, skipped=spike)
            self._steps.append(done)
            fields = {**dataclasses.asdict(done), **self._speed(done.seconds)}
            self._tell(TrainingStepDone(run=run.name, steps=run.steps, **fields))
            if (step + 1) % train.evaluate_every == 0 or step + 1 == run.steps:
                self._measure(step + 1)
            if self._states and (stopped_by or (train.save_every and (step + 1) % train.save_every == 0)):
                progress = Progress(digest=digest, losses=[*self._steps], held_out=[*self._held_out])
                self._states.save(self._module, engine, progress)
            if self._states and stopped_by and step + 1 < run.steps:
                self._states.wait()
                raise StoppedError(
                    f"run '{run.name}' was stopped after step {step + 1} of {run.steps}; its state is in "
                    f"{label(self._states.url_of(step + 1))}: run the same command again to go on from there"
                )

    def _backward(self, mine: Examples, limit: float) -> tuple[float, float]:
        """Gradients of this rank's share of a step, part by part; returns the mean loss over all labels of the step,
        on whichever rank they are, and how many ranks are to stop. The engine takes its step after the last part.
        Where spikes are skipped, there are no gradients of a loss above the ``limit``."""
        n_labels = self._sum(float(mine.n_labels))[0]
        # DeepSpeed takes the mean over ranks and parts, and these may have different numbers of labels. Both sides of
        # the fraction count every tensor-parallel rank.
        scale = self._world * self._train.accumulate / n_labels
        total = torch.zeros((), dtype=torch.float64, device=self._device)
        for first in range(0, len(mine), self._part):
            if first:
                self._engine.step()  # of DeepSpeed's count of parts; the weights stay as they are
            part = mine.part(first, first + self._part).to(self._device)
            loss = part.loss(self._logits(part))
            total += loss.detach()
            if self._train.on_spike == "skip" and is_spike(self._sum(total.item())[0] / n_labels, limit):
                break
            self._engine.backward(loss * scale)
        stops = self._stopping is not None and self._stopping.asked()
        loss_sum, stopped_by = self._sum(total.item(), float(stops))
        return loss_sum / n_labels, stopped_by

    def _measure(self, step: int) -> None:
        """Held-out loss: mean over all labels, whichever rank has them. Every rank runs equally many forwards,
        because each of them gathers weights from all ranks; a rank without a sample counts nothing."""
        examples, part = self._held_out_examples, self._part
        offset = self._data_rank * part
        loss, n_labels, correct = 0.0, 0, 0
        self._engine.eval()
        with torch.no_grad():
            for first in range(offset, len(examples) + offset, part * self._data_world):
                idle = first >= len(examples)
                mine = (examples.part(0, 1) if idle else examples.part(first, first + part)).to(self._device)
                logits = self._logits(mine)
                if not idle:
                    loss += mine.loss(logits).item()
                    n_labels += mine.n_labels
                    correct += mine.n_correct(logits) if self._objective.measures_accuracy else 0
        loss, all_labels, all_correct = self._sum(loss, n_labels, correct)
        measured = HeldOut(
            step=step,
            loss=self._finite(loss / all_labels, "held-out loss", step),
            accuracy=all_correct / all_labels if self._objective.measures_accuracy else None,
        )
        self._held_out.append(measured)
        fields = dataclasses.asdict(measured)
        self._tell(HeldOutMeasured(run=self._run.name, steps=self._run.steps, **fields))

    def _logits(self, examples: Examples) -> torch.Tensor:
        logits: torch.Tensor = self._engine(**examples.inputs).logits
        return logits

    def _sum(self, *values: float) -> list[float]:
        """The sum of each value over all ranks."""
        total = torch.tensor(values, dtype=torch.float64, device=self._device)
        dist.all_reduce(total)
        summed: list[float] = total.tolist()
        return summed

    def _probe(self, path: str) -> None:
        from safetensors.torch import save_file

        first = self._held_out_examples.part(0, 1)
        inputs = {k: (v[:, :PROBE_TOKENS] if k == "input_ids" else v).contiguous() for k, v in first.inputs.items()}
        self._engine.eval()
        with torch.no_grad():
            logits = self._logits(Examples(inputs=inputs, labels=first.labels).to(self._device))
        if self._rank == 0:
            with writing(path):
                os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
                save_file({**inputs, "logits": logits.float().cpu().contiguous()}, path)
        dist.barrier()

    def _check_spike(self, step: int, loss: float, limit: float) -> None:
        """Raise RunError unless the spike of this step may be left out."""
        train, run = self._train, self._run
        skipped = sum(done.skipped for done in self._steps)
        if train.on_spike == "skip" and skipped < train.max_skipped:
            self._tell(StepSkipped(run=run.name, step=step, loss=loss))
            return
        saved = step - 1 - (step - 1) % train.save_every if train.save_every else 0
        if self._states:
            self._states.wait()  # so that the one that is named is whole
        state = label(self._states.url_of(saved)) if self._states and saved else "none; train.save_every saves them"
        numbers = ", ".join(map(str, self._data.batches.numbers(step - 1)))
        told = f"loss is {loss:.4g} at step {step} of {run.steps}"
        what = f", above {limit:.4g} (train.spike={train.spike:g})" if math.isfinite(loss) else ""
        many = f", after {skipped} that were skipped (train.max_skipped)" if skipped else ""
        raise (RunError if math.isfinite(loss) and not run.may_diverge else DivergedError)(
            f"run '{run.name}': {told}{what}{many}; lower train.learning_rate ({train.learning_rate:g}), raise "
            f"train.warmup ({train.warmup}), or leave such steps out (train.on_spike=skip); its batch: samples "
            f"{numbers}; the last good state: {state}"
        )

    def _finite(self, value: float, what: str, step: int) -> float:
        if not math.isfinite(value):
            rate, warmup = self._train.learning_rate, self._train.warmup
            way_out = (
                f"lower train.learning_rate ({rate:g}) or raise train.warmup ({warmup})"
                if self._held_out  # it was finite before training
                else f"the weights of {self._run.url or 'the initialisation'} are not finite; make them anew"
            )
            raise DivergedError(
                f"run '{self._run.name}': {what} is {value} at step {step} of {self._run.steps}; {way_out}"
            )
        return value


def seed_of(seed: int, step: int, rank: int) -> int:
    """The seed of what is random in a step on a rank: of these alone, so that a run that goes on draws what it would
    have."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0] >> np.uint64(1))
