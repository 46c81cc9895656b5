"""Trainings, side by side, whose results are kept under a key of everything that decides them, and taken again."""

from __future__ import annotations

import dataclasses
import functools
import json
import re
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

from bot_dist.data.encoder import Encoder
from bot_dist.data.texts import identities, open_texts
from bot_dist.events import Event, OnEvent
from bot_dist.events.training import JobBegun, RunDone
from bot_dist.execute.ray.cluster import connected
from bot_dist.formats.processor import image_processor
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.parsing import parse_object
from bot_dist.recipe import HOW_TRAINED, CalibrateConfig, ClusterConfig, TrainConfig
from bot_dist.storage.disk import write_whole
from bot_dist.storage.folder import Storage
from bot_dist.store.manifest import digest
from bot_dist.train.driver import TrainRun, pretrain
from bot_dist.train.side_by_side import places, side_by_side
from bot_dist.urls import absolute

Plain = dict[str, Any]
"""Plain data, which JSON can hold."""
RESULT = "result.json"
STATES = "states"
"""Name of the folder of training states in a job's folder."""
Contents = Callable[[TrainConfig | CalibrateConfig], list[list[str]]]
"""Gives the identity of the text or the images that a section of a recipe names."""


class Job(Protocol):
    """One training, whose result is kept."""

    @property
    def name(self) -> str:
        """Names the run in events; another for each of the jobs that are trained together."""

    @property
    def train(self) -> TrainConfig: ...

    @property
    def tokenizer_url(self) -> str: ...

    def decides(self, contents: Contents) -> dict[str, Any]:
        """Everything that the result depends on, besides how and on which data it is trained."""

    def begin(self, folder: str, start: str) -> TrainRun:
        """Make what it starts from; the run has the job's ``name``. ``folder`` is its own, ``start`` that of all jobs
        with the same ``decides``, however they are trained."""

    def result(self, start: str, training: Plain) -> Plain:
        """The part of a RunResult (as plain data) that is kept."""


class Bench:
    """A folder of results, and the cluster that trains what is missing."""

    def __init__(self, output: Path, cluster: ClusterConfig, on_event: OnEvent) -> None:
        self._output, self._cluster, self._on_event = output, cluster, on_event
        self._telling = threading.Lock()
        self._tokens = str(output / "tokens")
        self._contents: dict[tuple[tuple[str, ...], str], list[list[str]]] = {}
        self._takers: dict[tuple[str, str, str], str] = {}

    def results(self, jobs: Sequence[Job]) -> list[Plain]:
        """The result of every job. Missing ones are trained, as many jobs at once as the cluster has room for, and each
        result is kept as soon as it is there. Raises the first failure once the others are done; a signal stops all,
        and the same call goes on."""
        if missing := [job for job in jobs if not (self._folder(job) / RESULT).is_file()]:
            self._train(missing)
        paths = [self._folder(job) / RESULT for job in jobs]
        return [parse_object(path.read_bytes(), str(path)) for path in paths]

    def key(self, job: Job) -> str:
        """Identifies the job's result. Raises SourceError where its data is not there."""
        return digest(self._decided_by(job))[:12]

    def _train(self, jobs: Sequence[Job]) -> None:
        cluster, workers = self._cluster, max(job.train.workers for job in jobs)
        with connected(cluster, max(workers, cluster.tensor * cluster.data)):
            at_once = places(cluster, workers, len(jobs))
            alike: dict[str, list[tuple[Job, TrainRun]]] = {}
            for job in jobs:
                how = digest({"training": self._training(job), "tokenizer": job.tokenizer_url})
                alike.setdefault(how, []).append((job, self._begin(job)))
            groups = [group[i::at_once] for group in alike.values() for i in range(min(at_once, len(group)))]
            works = {group[0][0].name: functools.partial(self._train_alike, group, at_once) for group in groups}
            side_by_side(works, at_once, lambda name, trained: None)

    def _train_alike(self, begun: Sequence[tuple[Job, TrainRun]], at_once: int) -> None:
        """Train jobs by the same workers, one after the other."""
        by_name = {job.name: job for job, _ in begun}
        assert len(by_name) == len(begun), "events tell runs apart by their names"

        def follow(event: Event) -> None:
            if isinstance(event, RunDone):
                self._keep(by_name[event.run], dict(event.result))
            self._tell(event)

        first = begun[0][0]
        pretrain(
            [run for _, run in begun],
            train=first.train.model_copy(update={"token_cache": first.train.token_cache or self._tokens}),
            cluster=self._cluster,
            tokenizer_url=first.tokenizer_url,
            output=str(self._folder(first)),
            on_event=follow,
            at_once=at_once,
        )

    def _tell(self, event: Event) -> None:
        with self._telling:
            self._on_event(event)

    def _begin(self, job: Job) -> TrainRun:
        self._tell(JobBegun(job=job.name))
        folder = str(self._folder(job))
        return dataclasses.replace(job.begin(folder, self._start(job)), states_url=f"{folder}/{STATES}")

    def _keep(self, job: Job, training: Plain) -> None:
        folder = self._folder(job)
        kept = {**job.result(self._start(job), training), "decided_by": self._decided_by(job)}
        write_whole(folder / RESULT, json.dumps(kept, indent=1))

    def _folder(self, job: Job) -> Path:
        slug = re.sub("[^a-z0-9]+", "-", job.name.lower()).strip("-")
        return self._output / f"{slug}-{self.key(job)}"

    def _start(self, job: Job) -> str:
        return str(self._output / "starts" / digest(job.decides(self._contents_of))[:12])

    def _decided_by(self, job: Job) -> dict[str, Any]:
        return {**job.decides(self._contents_of), "training": self._training(job)}

    def _training(self, job: Job) -> dict[str, Any]:
        """How and on what it is trained."""
        named = {"text", "column", "images", "scratch", "source_loss"}
        settings = job.train.model_dump(exclude=named | (HOW_TRAINED - {"evaluate_every"}))
        return {**settings, "text": self._contents_of(job.train), "taken by": self._taken_by(job)}

    def _taken_by(self, job: Job) -> str:
        """The identity of the tokenizer, or of the way in which images are made the model's input."""
        url = absolute(job.tokenizer_url)
        key = url, job.train.bos, job.train.eos
        if key not in self._takers:
            if job.train.images is not None:
                self._takers[key] = digest(image_processor(url, {}))
            else:
                _, bos, eos = key
                self._takers[key] = Encoder(load_tokenizer(url), bos=bos, eos=eos).digest
        return self._takers[key]

    def _contents_of(self, section: TrainConfig | CalibrateConfig) -> list[list[str]]:
        if isinstance(section, TrainConfig) and section.images is not None:
            from bot_dist.data.images import open_images

            key: tuple[tuple[str, ...], str] = (), section.images
            if key not in self._contents:
                images = open_images(absolute(section.images), section.image_limit)
                self._contents[key] = [["images", images.digest]]
            return self._contents[key]
        key = section.text, section.column
        if key not in self._contents:
            texts = open_texts(*key, limit=section.document_limit)
            files = identities(texts, Storage(self._tokens))
            self._contents[key] = [[*text.kind, *(files[url].digest for url in text.sources)] for text in texts]
        return self._contents[key]
