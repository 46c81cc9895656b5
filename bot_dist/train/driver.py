"""Continued pretraining seen from outside: prepare the tokens, start Ray Train, follow its events, gather results."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import posixpath
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast

from bot_dist.errors import BotDistError, InputError, RunError
from bot_dist.events import Event, OnEvent, ignore
from bot_dist.events.training import WorkersReady
from bot_dist.execute.ray.cluster import resources
from bot_dist.model import model_of
from bot_dist.recipe import ClusterConfig, TrainConfig
from bot_dist.storage.disk import writing
from bot_dist.train.results import PretrainResult, TrainRun, run_result
from bot_dist.train.side_by_side import per_node, stoppable
from bot_dist.urls import absolute, label

__all__ = ["PretrainResult", "TrainRun", "pretrain"]

START_TIMEOUT_S = 600
"""Seconds in which workers have to start: importing torch takes long where cores are few and busy."""

STOP_TIMEOUT_S = 120
"""Seconds in which workers have to end their step and save their state, after a signal."""

NOT_CUT = ("deit", "gpt2", "vit")
"""Families that DeepSpeed's AutoTP (0.19.8) refuses or cuts wrongly."""

_PREPARING = threading.Lock()
"""Held while a training prepares its data: another beside it finds them done."""

if TYPE_CHECKING:
    from bot_dist.data.batches import TokenFile
    from bot_dist.data.images import ImageFile


def pretrain(
    runs: Sequence[TrainRun],
    *,
    train: TrainConfig,
    cluster: ClusterConfig,
    tokenizer_url: str,
    output: str,
    on_event: OnEvent = ignore,
    fresh: bool = False,
    at_once: int = 1,
) -> PretrainResult:
    """Train every run on the same text or images, in the same worker group, one after the other.

    Ray must be initialised. ``tokenizer_url`` has the tokenizer, or the image processor. ``on_event`` is called from a
    thread with each event of ``bot_dist.events.training`` as it happens. All files go under ``{output}/train``, those
    of each run as ``Metrics`` has them. Runs go on from their states, in ``{output}/train/states`` or where they say,
    unless ``fresh``, which removes those and what they have shown. ``at_once``: how many trainings, this one among
    them, share the cluster.

    Raises InputError for what the user can put right before anything runs (and where a worker finds it), RunError for
    what failed later.
    """
    from bot_dist.train.mailbox import following
    from bot_dist.train.metrics import Metrics
    from bot_dist.train.state import check_space, forget

    begun = time.time()
    check(train, {run.name: run.config for run in runs}, tokenizer_url)
    folder = Path(output).resolve() / "train"
    device = _device(cluster, train.workers)
    with _PREPARING:
        samples = samples_of(runs, train, cluster, tokenizer_url, folder, on_event)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    states_url = str(folder / "states")
    if fresh:
        for run in runs:
            forget(run.states_url or f"{states_url}/{run.name}")
    check_space(states_url, runs, train)
    settings = {
        "runs": [dataclasses.asdict(_absolute_run(run)) for run in runs],
        "train": train.model_dump(),
        "samples": samples,
        "masking": masking(runs, tokenizer_url),
        "tokenizer_url": absolute(tokenizer_url),
        "device": device,
        "states_url": states_url,
        "beside": per_node(at_once),
        "data": posixpath.basename(samples.url) if train.images is None else label(train.images),
    }
    ready: list[float] = []
    metrics = Metrics(folder, fresh=fresh)

    def follow(event: Event) -> None:
        metrics(event)
        if isinstance(event, WorkersReady):
            ready.append(event.time)
        on_event(event)

    with contextlib.closing(metrics), following(follow) as mailbox, stoppable(mailbox):
        results = _fit({**settings, "mailbox": mailbox}, train.workers, device, folder)
    return PretrainResult(
        runs=[run_result(data) for data in results],
        workers=train.workers,
        device=device,
        startup_s=ready[0] - begun,
        total_s=time.time() - begun,
        tokens=getattr(samples, "tokens", None),
        versions={name: importlib.metadata.version(name) for name in ("deepspeed", "ray", "torch", "transformers")},
    )


def samples_of(
    runs: Sequence[TrainRun],
    train: TrainConfig,
    cluster: ClusterConfig,
    tokenizer_url: str,
    folder: Path,
    on_event: OnEvent = ignore,
) -> TokenFile | ImageFile:
    """Prepare what is trained on: tokens in ``folder``, or where ``train`` says. Much text is tokenised by the executor
    that ``cluster`` names. Raises InputError."""
    if train.images is not None:
        from bot_dist.data.images import prepare_images

        return prepare_images(train, tokenizer_url, runs[0].config)
    from bot_dist.data.batches import prepare_tokens

    models = [model_of(run.config) for run in runs]
    vocab_size = min(model.sizes["vocab"] for model in models)
    masked = any(model.family.objective == "masked" for model in models)
    return prepare_tokens(train, tokenizer_url, vocab_size, folder, on_event, masked=masked, cluster=cluster)


def check(train: TrainConfig, configs: Mapping[str, dict[str, Any]], tokenizer_url: str) -> None:
    """Raise InputError for what can be seen to be wrong before anything runs; ``configs`` are the models by run, and
    ``tokenizer_url`` has what makes their input."""
    from bot_dist.data.texts.open import resolve_texts
    from bot_dist.train.objectives import check_objective

    if train.workers % train.tensor:
        raise InputError(f"train.workers={train.workers} is not divisible by train.tensor={train.tensor}")
    copies = train.workers // train.tensor
    if train.batch % (parts := copies * train.accumulate):
        raise InputError(
            f"train.batch is {train.batch} sequences, not divisible over {copies} copies of the model "
            f"(train.workers / train.tensor) times train.accumulate={train.accumulate}; "
            f"use train.batch={-(-train.batch // parts) * parts}"
        )
    for name, config in configs.items():
        model = model_of(config)
        family = model.family
        check_objective(model, name)
        if train.tensor > 1 and family.name in NOT_CUT:
            raise InputError(
                f"run '{name}': DeepSpeed's AutoTP does not cut the family '{family.name}'; use train.tensor=1"
            )
        if (family.objective == "image") != (train.images is not None):
            raise InputError(
                f"run '{name}': family '{family.name}' is trained on "
                + ("images; name them in train.images" if train.images is None else "text; leave train.images out")
            )
        if train.images is not None:
            from bot_dist.data.images import prepare_images

            prepare_images(train, tokenizer_url, config)
            continue
        field = family.context_field
        longest = config.get(field)
        if longest is not None and train.context > longest:
            raise InputError(
                f"run '{name}': train.context is {train.context} tokens, but the model has {field}={longest}; "
                f"use train.context={longest} or less"
            )
    if train.images is None:
        resolve_texts(train.text, "train")


def masking(runs: Sequence[TrainRun], tokenizer_url: str) -> dict[str, Any] | None:
    """The tokens that masking needs to know. Raises InputError when the tokenizer has none to mask with."""
    from bot_dist.formats.tokenizer import load_tokenizer

    if all(model_of(run.config).family.objective != "masked" for run in runs):
        return None
    tokenizer = load_tokenizer(tokenizer_url)
    if tokenizer.mask_token_id is None:
        raise InputError(
            f"the tokenizer of {label(tokenizer_url)} has no mask token, and a masked language model is trained on it; "
            f"give it a 'mask_token'"
        )
    return {"mask": tokenizer.mask_token_id, "special": sorted(tokenizer.all_special_ids)}


def _fit(settings: dict[str, Any], workers: int, device: str, folder: Path) -> list[dict[str, Any]]:
    """Run ``train_worker`` on every worker by Ray Train; returns what it returned."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
    from ray.train.torch import TorchTrainer

    from bot_dist.train.meeting import ProcessGroup
    from bot_dist.train.worker import train_worker

    failures = FailureConfig(max_failures=settings["train"]["max_failures"])
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(START_TIMEOUT_S))
    trainer = TorchTrainer(
        cast(Any, train_worker),  # Ray's annotation does not know of return values
        train_loop_config=settings,
        torch_config=ProcessGroup(backend="nccl" if device == "cuda" else "gloo"),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=device == "cuda"),
        run_config=RunConfig(name="ray", storage_path=str(folder), failure_config=failures),
    )
    try:
        result: Any = trainer.fit()
    except KeyboardInterrupt:  # SIGTERM and SIGHUP; Ctrl-C is for Ray Train, which ends the workers
        _stop(settings["mailbox"])
        raise
    except TrainingFailedError as error:
        raise _root_cause(error) from None
    value: list[dict[str, Any]] = result.return_value
    return value


def _stop(mailbox: Any) -> None:
    """Let the workers save their states; they say so by failing. Raises what they raise."""
    import ray

    ray.get(mailbox.stop.remote())
    until = time.monotonic() + STOP_TIMEOUT_S
    while time.monotonic() < until:
        if (failure := ray.get(mailbox.failure.remote())) is not None:
            raise failure
        if ray.get(mailbox.ended.remote()):
            return  # there was nothing left to stop
        time.sleep(0.2)


def _root_cause(error: Exception) -> BotDistError:
    """The error that a user should read: the first failure of our own making, or else the first that is no echo of
    another."""
    failures: dict[int, BaseException] = getattr(error, "worker_failures", None) or {
        -1: getattr(error, "controller_failure", error)
    }
    causes = {rank: _unwrap(failure) for rank, failure in sorted(failures.items())}
    for cause in causes.values():
        if isinstance(cause, BotDistError):
            return cause
    echoes = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    rank, cause = min(causes.items(), key=lambda item: (any(echo in str(item[1]) for echo in echoes), item[0]))
    where = f"worker {rank}" if rank >= 0 else "Ray Train's controller"
    lines = str(cause).strip().splitlines() or ["no message"]
    return RunError(f"training failed on {where}: {type(cause).__name__}: {lines[-1] if len(lines) > 5 else lines[0]}")


def _unwrap(failure: BaseException) -> BaseException:
    """The exception that the worker raised, out of Ray's wrappers."""
    while True:
        inner = getattr(failure, "_base_exc", None) or getattr(failure, "cause", None) or failure.__cause__
        if not isinstance(inner, BaseException) or isinstance(failure, BotDistError):
            return failure
        failure = inner


def _device(cluster: ClusterConfig, workers: int) -> Literal["cpu", "cuda"]:
    """The device to train on, after making sure that the cluster can hold the workers (Ray Train would wait for
    ever)."""
    device, room = resources(cluster, workers)
    if room < workers and device == "cuda":
        raise InputError(
            f"train.workers={workers} with cluster.device=cuda, but the Ray cluster has {room} GPUs; "
            f"use train.workers={max(room, 1)}, or cluster.device=cpu"
        )
    if room < workers:
        raise InputError(f"train.workers={workers}, but the Ray cluster has {room} CPUs; use train.workers={room}")
    return device


def _absolute_run(run: TrainRun) -> TrainRun:
    return dataclasses.replace(
        run,
        url=run.url and absolute(run.url),
        save_url=run.save_url and absolute(run.save_url),
        states_url=run.states_url and absolute(run.states_url),
        probe_path=run.probe_path and absolute(run.probe_path),
    )
