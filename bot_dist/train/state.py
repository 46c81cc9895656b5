"""Training states as checkpoints: float32 weights and AdamW's moments in one store, written while training goes on.

A state is a store like any other: its weights can be transferred, exported and verified. Beside them lie the moments
(``moments/exp_avg/NAME``, ``moments/exp_avg_sq/NAME``), and its provenance has under ``training`` what run it is of,
how far that has come, and its curve. Random numbers and the data's order are functions of the seed and the step, so
that nothing else belongs to a state, and any number of ranks, stage or tensor-parallel degree can take it up.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from bot_dist.errors import CheckpointError, CheckpointMissingError, InputError
from bot_dist.events import OnEvent
from bot_dist.events.training import HeldOut, Resumed, StatePassedOver, StateSaved, TrainingStep
from bot_dist.formats.companions import read_companions
from bot_dist.model import Model, model_of
from bot_dist.parsing import parse_object
from bot_dist.recipe import HOW_TRAINED, TrainConfig
from bot_dist.storage.files import join
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointReader, CheckpointWriter, StoredParameter, manifest, remove_store, store_layout
from bot_dist.train.moments import array_name, read_state
from bot_dist.train.optimizers import DEFAULT, OPTIMIZERS
from bot_dist.train.results import TrainRun
from bot_dist.train.zero import Shard, State, begin_moments, partitions, writing
from bot_dist.urls import label

STATES: tuple[State, ...] = ("weights", *OPTIMIZERS[DEFAULT].states)
PREFIX = "step-"
RESULT = "result.json"


@dataclass(frozen=True, kw_only=True)
class Progress:
    """The progress of a run: ``len(losses)`` steps. Where its data stand follows from that."""

    digest: str
    """Digest of the weights that the run began with."""
    losses: list[TrainingStep]
    held_out: list[HeldOut]

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Progress:
        return Progress(
            digest=data["digest"],
            losses=[TrainingStep(**step) for step in data["losses"]],
            held_out=[HeldOut(**held_out) for held_out in data["held_out"]],
        )


def identity(run: TrainRun, train: TrainConfig, data: str, source: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that decides what a run computes, as plain data: neither who computes it nor what is kept of it.

    ``data`` says what it is trained on, ``source`` is the provenance of the weights that it begins with.
    """
    settings = {k: v for k, v in train.model_dump(mode="json").items() if k not in HOW_TRAINED}
    settled = {
        "run": run.name,
        "model": run.config,
        "source": source,
        "data": data,
        "steps": run.steps,
        "inserted blocks": run.inserted,
        **{f"train.{name}": value for name, value in settings.items() if name not in ("text", "column", "steps")},
    }
    plain: dict[str, Any] = json.loads(json.dumps(settled))
    return plain


def check_space(url: str, runs: Iterable[TrainRun], train: TrainConfig) -> None:
    """Raise InputError where a local file system has no space for the states that ``train`` keeps."""
    if not train.save_every or "://" in url:
        return
    folder = Path(url)
    while not folder.exists():
        folder = folder.parent
    kept = train.keep + 2  # the best, and the one that is written
    there = sum(f.stat().st_size for f in Path(url).rglob("*") if f.is_file())
    wanted = sum(12 * model_of(run.config).n_parameters * kept for run in runs if run.steps) - there
    if (free := shutil.disk_usage(folder).free) < wanted:
        raise InputError(
            f"{url}: {free / 1e9:.2f} GB are free, and training states take {wanted / 1e9:.2f} GB (train.keep="
            f"{train.keep}, the best, and one that is being written); make space, lower train.keep, or use "
            f"train.save_every=0"
        )


def forget(url: str) -> None:
    """Remove the states of a run, and its result."""
    storage = Storage(url)
    storage.remove(RESULT)
    for step in _steps(storage):
        remove_store(storage, state_name(step))


def _steps(storage: Storage) -> list[int]:
    names = [name.removeprefix(PREFIX) for name in storage.names("") if name.startswith(PREFIX)]
    return sorted(int(name) for name in names if name.isdigit())


def state_name(step: int) -> str:
    """Name of the folder of a state, among those of its run."""
    return f"{PREFIX}{step:08d}"


@dataclass(frozen=True)
class _Piece:
    """The elements ``[start, stop)`` of a shard of a parameter that a rank has."""

    rank: int
    shard: Shard
    start: int
    stop: int


class States:
    """The states of one run, in the folder at ``url``. All methods are collectives but where they say otherwise."""

    def __init__(
        self,
        url: str,
        model: Model,
        facts: Mapping[str, Any],
        *,
        source: Any,
        keep: int,
        tokenizer_url: str,
        run: str,
        on_event: OnEvent,
        steps_before: int = 0,
    ) -> None:
        """Take the run's ``identity`` as ``facts``, and the number of steps that AdamW had taken when the run began as
        ``steps_before``. ``on_event`` gets a Resumed, StatePassedOver or StateSaved that names the ``run``."""
        self.url, self._model, self._facts, self._keep = url, model, dict(facts), keep
        self._source, self._tokenizer_url = source, tokenizer_url
        self._run, self._on_event = run, on_event
        self._storage = Storage(url)
        self._identity, self._steps_before = manifest.digest(facts), steps_before
        self._rank, self._world = dist.get_rank(), dist.get_world_size()
        self._group: Any = None
        self._pieces: list[list[_Piece]] = []
        self._thread: threading.Thread | None = None
        self._failure: list[BaseException] = []

    def steps(self) -> list[int]:
        """The steps of which there are states, whole or not, ascending. No collective."""
        return _steps(self._storage)

    def url_of(self, step: int) -> str:
        return join(self.url, state_name(step))

    def save(self, module: torch.nn.Module, engine: Any, progress: Progress) -> None:
        """Copy what this rank owns, and write it in a thread; first wait until the state before is written."""
        self.wait()
        mine = partitions(module, engine, self._model)
        if self._group is None:
            self._group = dist.new_group(backend="gloo")
            self._pieces = self._agreed([(part.shard, part.start, part.stop) for part in mine])
        held = [torch.stack([part.get(state) for state in STATES]) for part in mine]

        def work() -> None:
            try:
                self._write([part.parameter.name for part in mine], held, progress)
            except BaseException as error:  # raised where the training waits for it
                self._failure.append(error)

        self._thread = threading.Thread(target=work, name="bot_dist-train-state", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until what was saved is committed. Raises what went wrong."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._failure:
            raise self._failure[0]

    def close(self) -> None:
        self.wait()
        if self._group is not None:
            dist.destroy_process_group(self._group)
            self._group = None

    def restore(self, module: torch.nn.Module, engine: Any) -> Progress | None:
        """Set weights and moments to the newest state that is whole, and tell of it and of the others; None where no
        state was ever finished.

        Raises InputError when the states are of another run, CheckpointError when all are damaged.
        """
        damaged: list[str] = []
        for step in reversed(self._shared(self.steps() if self._rank == 0 else None)):
            url, problem, training = self.url_of(step), "", {}
            try:
                reader = CheckpointReader(url)
                training = reader.manifest.provenance["training"]
            except CheckpointMissingError:
                problem = "unfinished"
            except CheckpointError as error:
                problem = str(error)
            if not (problem := self._any(problem)):
                self._check(training["run"])
                problem = self._any(self._read(module, engine, reader, step))
            if not problem:
                self._on_event(Resumed(run=self._run, step=step, url=label(url)))
                return Progress.from_json(training)
            self._on_event(StatePassedOver(run=self._run, step=step, url=label(url), problem=problem))
            if problem != "unfinished":
                damaged.append(problem)
        if damaged:
            raise CheckpointError(
                f"{label(self.url)}: every training state is damaged, of the newest: {damaged[0]}; restore one, or "
                f"train from the start (--overwrite)"
            )
        return None

    def finished(self, saved_url: str | None) -> dict[str, Any] | None:
        """The result that ``finish`` has recorded, if what the run has saved is still there.

        Raises InputError when it is another run's, CheckpointError when it is damaged.
        """
        records: list[Any] = [None]
        saved = saved_url is None or Storage(saved_url).exists(manifest.MANIFEST)
        if self._rank == 0 and saved and self._storage.exists(RESULT):
            try:
                records = [parse_object(self._storage.read(RESULT), RESULT, ValueError)]
            except ValueError:
                records = ["damaged"]
        record = self._shared(records[0])
        if record is None:
            return None
        if record == "damaged" or manifest.digest(record["result"]) != record["digest"]:
            raise CheckpointError(f"{label(self.url)}/{RESULT} is damaged; restore it, or train again (--overwrite)")
        self._check(record["run"])
        result: dict[str, Any] = record["result"]
        return result

    def finish(self, result: Mapping[str, Any]) -> None:
        """Record that the run is done. No collective: rank 0 does it."""
        if self._rank == 0:
            plain = json.loads(json.dumps(result))
            record = {"run": self._facts, "result": plain, "digest": manifest.digest(plain)}
            self._storage.write(RESULT, [json.dumps(record).encode()], durable=True)
            self._storage.sync_folders("")

    def _check(self, run: Mapping[str, Any]) -> None:
        if run == self._facts:
            return
        names = sorted(k for k in run.keys() | self._facts.keys() if run.get(k) != self._facts.get(k))
        raise InputError(
            f"{label(self.url)} holds training states of another run: {', '.join(names)} differ; train from the start "
            f"(--overwrite) or give another output"
        )

    def _read(self, module: torch.nn.Module, engine: Any, reader: CheckpointReader, step: int) -> str:
        """Fill this rank's partitions; what was wrong with what it read."""
        begin_moments(engine, self._steps_before + step)
        with writing(module, engine):
            try:
                for part in partitions(module, engine, self._model):
                    for state in STATES:
                        if part.stop > part.start:
                            part.set(state, read_state(reader, part, state))
            except CheckpointError as error:
                return str(error)
        return ""

    def _write(self, names: list[str], held: list[torch.Tensor], progress: Progress) -> None:
        step = len(progress.losses)
        url = self.url_of(step)
        attempt = [f"{self._identity[:32]}-{uuid.uuid4().hex[:8]}"]
        if self._rank == 0:
            created = CheckpointWriter.create(
                url, self._layout(), config=self._model.config, attempt=attempt[0], overwrite=True
            )
            if self._tokenizer_url:
                read_companions(self._tokenizer_url).save(created.url)
        dist.broadcast_object_list(attempt, src=0, group=self._group)
        writer = CheckpointWriter.open(url, attempt[0])
        mine: dict[str, dict[str, bytes]] = {}
        for i, (name, pieces) in enumerate(zip(names, self._pieces, strict=True)):
            to = i % self._world
            if to == self._rank:
                whole = self._gathered(pieces, held[i])
                for state, values in zip(STATES, whole, strict=True):
                    array = array_name(name, state)
                    sizes = writer.stored[array].parameter.sizes
                    mine[array] = writer.write_array(array, values.reshape(sizes))
            elif any(piece.rank == self._rank for piece in pieces):
                dist.send(held[i], dst=to, group=self._group)
            held[i] = torch.empty(0)
        everyone: list[Any] | None = [None] * self._world if self._rank == 0 else None
        dist.gather_object(mine, everyone, dst=0, group=self._group)
        if everyone is not None:
            digests = {array: chunks for theirs in everyone for array, chunks in theirs.items()}
            training = {
                "run": self._facts,
                "step": step,
                "optimizer_step": self._steps_before + step,
                **dataclasses.asdict(progress),
            }
            provenance = {"source": self._source.provenance(), "training": training}
            writer.commit(digests, provenance, overwrite=True)
            self._storage.sync_folders("")
            self._prune(step, progress)
            self._on_event(StateSaved(run=self._run, step=step, url=label(url)))
        dist.barrier(group=self._group)  # a rank that ends sooner would have the others ended

    def _gathered(self, pieces: list[_Piece], own: torch.Tensor) -> torch.Tensor:
        """The states of a parameter, ``(3, *shape)``, gathered from the ranks that own some of it."""
        full = torch.empty(len(STATES), *pieces[0].shard.whole())
        for offset in sorted({piece.shard.offset for piece in pieces}):
            of_shard = [piece for piece in pieces if piece.shard.offset == offset]
            shard = of_shard[0].shard
            flat = torch.empty(len(STATES), *shard.shape).flatten(1)
            for piece in of_shard:
                values = own
                if piece.rank != self._rank:
                    values = torch.empty(len(STATES), piece.stop - piece.start)
                    dist.recv(values, src=piece.rank, group=self._group)
                flat[:, piece.start : piece.stop] = values
            place = full.narrow(1 + shard.dim, offset, shard.shape[shard.dim]) if shard.sizes else full
            place.copy_(flat.reshape(len(STATES), *shard.shape))
        return full

    def _layout(self) -> Iterator[StoredParameter]:
        for _, _, p in self._model.parameters():
            for state in STATES:
                factor = self._source.learning_rate_factor(p) if state == "weights" else 1.0
                yield store_layout(dataclasses.replace(p, name=array_name(p.name, state)), factor)

    def _prune(self, step: int, progress: Progress) -> None:
        """Keep the last few states and the best; what stands after this step was passed over."""
        there = [s for s in self.steps() if s <= step]
        measured = {h.step: h.loss for h in progress.held_out if h.step in there}
        best = min(measured, key=measured.__getitem__, default=step)
        for old in there[: -self._keep]:
            if old != best:
                remove_store(self._storage, state_name(old))

    def _agreed(self, mine: list[tuple[Shard, int, int]]) -> list[list[_Piece]]:
        """The pieces of each parameter, and the rank that gives each; what several ranks own, the first gives."""
        everyone: list[Any] = [None] * self._world
        dist.all_gather_object(everyone, mine, group=self._group)
        agreed = []
        for i in range(len(mine)):
            pieces: dict[tuple[int, int], _Piece] = {}
            for rank, theirs in enumerate(everyone):
                shard, start, stop = theirs[i]
                if stop > start:
                    pieces.setdefault((shard.offset, start), _Piece(rank, shard, start, stop))
            agreed.append([*pieces.values()])
        return agreed

    def _any(self, problem: str) -> str:
        """The first problem that a rank has."""
        everyone: list[Any] = [None] * self._world
        dist.all_gather_object(everyone, problem)
        return next((theirs for theirs in everyone if theirs), "")

    def _shared(self, value: Any) -> Any:
        """The value that rank 0 has."""
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]
