"""The Ray Train function: every rank runs it, and takes the runs one after the other in the same worker group."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import os
import resource
import time
from typing import Any, Literal

import torch
import torch.distributed as dist
import torch.nn.functional as F

from bot_dist.errors import RunError
from bot_dist.families import model_of
from bot_dist.recipe import TrainConfig
from bot_dist.train.data import Batches, TokenFile
from bot_dist.train.results import HeldOut, RunResult, Step, TrainRun
from bot_dist.train.schedule import learning_rate

IGNORED = -100
"""Label of a token without a successor."""

PROBE_TOKENS = 32
"""Length of the probe sequence, where the context is not shorter."""


def train_worker(settings: dict[str, Any]) -> list[dict[str, Any]]:
    """Train ``settings["runs"]`` in order; returns their RunResults as plain data (the same on every rank)."""
    import ray.train

    from bot_dist.train.engine import connect

    context = ray.train.get_context()
    if settings["device"] == "cpu":
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // context.get_local_world_size()))
    connect(settings["device"])
    train = TrainConfig(**settings["train"])
    tokens = TokenFile(**settings["tokens"])
    events = Events(settings["events"])
    events.add("workers_ready", workers=dist.get_world_size())
    results = []
    for data in settings["runs"]:
        trainer = Trainer(
            TrainRun(**data),
            train=train,
            tokens=tokens,
            tokenizer_url=settings["tokenizer_url"],
            events=events,
            device=settings["device"],
        )
        results.append(dataclasses.asdict(trainer.run()))
        events.add("run_done", run=data["name"], result=results[-1])
    return results


class Events:
    """Progress as JSON lines in a file that the driver follows; only rank 0 writes."""

    def __init__(self, path: str) -> None:
        self._path = path

    def add(self, event: str, **fields: Any) -> None:
        if dist.get_rank() == 0:
            with open(self._path, "a") as file:
                file.write(json.dumps({"event": event, "time": time.time(), **fields}) + "\n")


class Trainer:
    """One run on one rank."""

    def __init__(
        self,
        run: TrainRun,
        *,
        train: TrainConfig,
        tokens: TokenFile,
        tokenizer_url: str,
        events: Events,
        device: Literal["cpu", "cuda"],
    ) -> None:
        self._run, self._train, self._tokens, self._events = run, train, tokens, events
        self._tokenizer_url, self._device = tokenizer_url, device
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._model = model_of(run.config)
        self._held_out_windows = tokens.held_out_windows()
        self._steps: list[Step] = []
        self._held_out: list[HeldOut] = []

    def run(self) -> RunResult:
        """Load, measure, train, save and probe; then free everything."""
        from bot_dist.train import engine as engines
        from bot_dist.train import zero

        run, model = self._run, self._model
        _reset_peak_rss()
        begun = time.perf_counter()
        torch.manual_seed(self._train.seed * 1_000_003 + self._rank)  # dropout, where a configuration has it
        source = self._source()
        attempt = ""
        if run.save_url:
            attempt = zero.create_store(
                run.save_url,
                model,
                source,
                tokenizer_url=self._tokenizer_url,
                run_digest=self._run_digest(),
                overwrite=run.overwrite,
            )
        self._module, self._engine = engines.start(
            model, self._train, world=self._world, device=self._device, trains=run.steps > 0
        )
        loading = time.perf_counter()
        read_bytes = zero.fill(self._module, self._engine, model, zero.flat_reader(source))
        dist.barrier()
        load_s = time.perf_counter() - loading
        digest = zero.digest(self._module, self._engine, model)
        self._events.add("loaded", run=run.name, seconds=load_s, n_parameters=model.n_parameters, digest=digest)
        started_s = time.perf_counter() - begun
        self._measure(0)
        self._train_steps()
        if run.save_url:
            provenance = {"run": run.name, "steps": run.steps, "source": source.provenance()}
            zero.save(self._module, self._engine, model, run.save_url, attempt, provenance, overwrite=run.overwrite)
            self._events.add("saved", run=run.name, url=run.save_url)
        if run.probe_path:
            self._probe(run.probe_path)
        trained_digest = zero.digest(self._module, self._engine, model) if run.steps else None
        ranks: list[Any] = [None] * self._world
        dist.all_gather_object(ranks, (read_bytes, _peak_rss_bytes()))
        engines.stop(self._module, self._engine)
        del self._module, self._engine
        return RunResult(
            name=run.name,
            steps=run.steps,
            n_parameters=model.n_parameters,
            tokens_per_step=self._train.batch * self._train.context,
            losses=self._steps,
            held_out=self._held_out,
            load_s=load_s,
            first_step_s=started_s + self._steps[0].seconds if self._steps else None,
            bytes_read=[read for read, _ in ranks],
            peak_rss_bytes=[peak for _, peak in ranks],
            digest=digest,
            trained_digest=trained_digest,
            probe_path=run.probe_path,
            saved_url=run.save_url,
        )

    def _source(self) -> Any:
        if self._run.url is None:
            from bot_dist.train.initial import InitialSource

            return InitialSource(self._model, self._train.seed)
        from bot_dist.convert.open import open_source

        source = open_source(self._run.url)
        source.check(self._model)
        return source

    def _train_steps(self) -> None:
        run, train, engine = self._run, self._train, self._engine
        batches = Batches(self._tokens.train(), train.batch, train.seed)
        for step in range(run.steps):
            begun = time.perf_counter()
            rate = learning_rate(step, peak=train.learning_rate, warmup=train.warmup, steps=run.steps)
            for group in engine.optimizer.param_groups:
                group["lr"] = rate
            engine.train()
            loss = self._loss(batches.batch(step, self._rank, self._world), reduction="mean")
            mean = loss.detach().double()
            dist.all_reduce(mean)
            value = self._finite(mean.item() / self._world, "loss", step + 1)
            engine.backward(loss)
            engine.step()
            done = Step(step=step + 1, loss=value, learning_rate=rate, seconds=time.perf_counter() - begun)
            self._steps.append(done)
            tokens = train.batch * train.context
            self._events.add("step", run=run.name, steps=run.steps, tokens=tokens, **dataclasses.asdict(done))
            if (step + 1) % train.evaluate_every == 0 or step + 1 == run.steps:
                self._measure(step + 1)

    def _measure(self, step: int) -> None:
        """Held-out loss: mean over all tokens, whichever rank has them. Every rank runs equally many forwards,
        because each of them gathers weights from all ranks; a rank without a sequence counts nothing."""
        windows, share = self._held_out_windows, self._train.batch // self._world
        total = torch.zeros(2, dtype=torch.float64)
        self._engine.eval()
        with torch.no_grad():
            for first in range(self._rank * share, len(windows) + self._rank * share, share * self._world):
                mine = windows[first : first + share]
                loss = self._loss(mine if len(mine) else windows[:1], reduction="sum").item()
                if len(mine):
                    total += torch.tensor([loss, mine[:, 1:].numel()], dtype=torch.float64)
        total = total.to(self._device)
        dist.all_reduce(total)
        loss = self._finite(total[0].item() / total[1].item(), "held-out loss", step)
        self._held_out.append(HeldOut(step=step, loss=loss))
        self._events.add("held_out", run=self._run.name, step=step, steps=self._run.steps, loss=loss)

    def _loss(self, windows: torch.Tensor, reduction: str) -> torch.Tensor:
        """Next-token cross-entropy of windows ``(sequences, context)``, in nats."""
        windows = windows.to(self._device)
        logits = self._engine(input_ids=windows, use_cache=False).logits
        # The last token predicts nothing; marking it is cheaper than slicing it off, which copies all the logits.
        labels = F.pad(windows[:, 1:], (0, 1), value=IGNORED)
        return F.cross_entropy(
            logits.float().flatten(0, 1), labels.flatten(), ignore_index=IGNORED, reduction=reduction
        )

    def _probe(self, path: str) -> None:
        from safetensors.torch import save_file

        ids = self._held_out_windows[:1, :PROBE_TOKENS].contiguous()
        self._engine.eval()
        with torch.no_grad():
            logits = self._engine(input_ids=ids.to(self._device), use_cache=False).logits
        if self._rank == 0:
            os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
            save_file({"input_ids": ids, "logits": logits.float().cpu().contiguous()}, path)
        dist.barrier()

    def _finite(self, value: float, what: str, step: int) -> float:
        if not math.isfinite(value):
            rate, warmup = self._train.learning_rate, self._train.warmup
            way_out = (
                f"lower train.learning_rate ({rate:g}) or raise train.warmup ({warmup})"
                if self._held_out  # it was finite before training
                else f"the weights of {self._run.url or 'the initialisation'} are not finite; make them anew"
            )
            raise RunError(f"run '{self._run.name}': {what} is {value} at step {step} of {self._run.steps}; {way_out}")
        return value

    def _run_digest(self) -> str:
        run = {**dataclasses.asdict(self._run), "overwrite": None, "train": self._train.model_dump()}
        return hashlib.sha256(json.dumps(run, sort_keys=True).encode()).hexdigest()


def _reset_peak_rss() -> None:
    """Let the kernel's peak of resident memory begin anew, so that a run does not show its predecessor's."""
    if os.path.exists("/proc/self/clear_refs"):
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")


def _peak_rss_bytes() -> int:
    """Peak resident memory since ``_reset_peak_rss`` (since the process began, on systems without ``/proc``)."""
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status") as file:
            for line in file:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
