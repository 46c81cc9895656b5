"""The stages of a run, composed: plan → transfer → continued pretraining → export → report.

Every stage takes a recipe and an optional ``on_event``, called with one plain mapping per thing that happened
(``{"stage": "transfer", "event": "step", …}``), and returns plain data.
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot_dist.errors import CheckpointExistsError, InputError
from bot_dist.families import Model, model_of
from bot_dist.recipe import Recipe
from bot_dist.sharding import Mesh

if TYPE_CHECKING:
    from bot_dist.checkpoint import CheckpointReader, Damage, StoredParameter
    from bot_dist.convert.source import Source
    from bot_dist.plan import TransferPlan

OnEvent = Callable[[dict[str, Any]], None]

PACKAGES = ("torch", "deepspeed", "ray", "zarr", "PyWavelets", "transformers")


def ignore(event: dict[str, Any]) -> None:
    """The default ``on_event``."""


def plan_transfer(recipe: Recipe) -> TransferPlan:
    """Read the source's index, and plan. Nothing is written and no weight is read."""
    return _planned(recipe)[1]


def transfer(recipe: Recipe, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Transfer the source into the store at ``recipe.transferred_url`` and commit it; resume an unfinished transfer.

    Returns what was measured (it is in the store's manifest too): seconds, bytes, GB/s, energy kept per module, peak
    memory per actor. Raises CheckpointExistsError when the target holds a committed store, unless
    ``recipe.overwrite``.
    """
    from bot_dist.checkpoint import CheckpointWriter
    from bot_dist.convert.tokenizer import save_tokenizer
    from bot_dist.runtime.tally import Tally

    started = time.perf_counter()
    source, plan = _planned(recipe)
    plan.validate()
    url = recipe.transferred_url
    writer = CheckpointWriter.create(
        url, _stored(plan), config=plan.target.config, plan_digest=plan.digest, overwrite=recipe.overwrite
    )
    tally = Tally(plan, lambda event: on_event({"stage": "transfer", **event}))
    tally.run(recipe.cluster, source, _absolute(url))
    tokenizer = save_tokenizer(recipe.source, f"{url}/tokenizer")
    report = {"seconds": time.perf_counter() - started, "tokenizer": tokenizer, **tally.report()}
    provenance = {
        "source": source.provenance(),
        "plan": plan.to_json(),
        "recipe": recipe.model_dump(exclude={"overwrite": True, "cluster": {"address"}}),
        "versions": versions(),
        "transfer": report,
    }
    writer.commit(tally.digests, provenance)
    on_event({"stage": "transfer", "event": "committed", "url": url, **report})
    return report


def pretrain(recipe: Recipe, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Continue pretraining from the transferred store; train the same model from scratch beside it, and measure the
    source's held-out loss, as the recipe asks. Returns what was measured."""
    from bot_dist.convert.tokenizer import has_tokenizer
    from bot_dist.runtime.cluster import connected
    from bot_dist.train.driver import TrainRun
    from bot_dist.train.driver import pretrain as run_training

    url = recipe.transferred_url
    config = _committed(url).config
    steps = recipe.train.steps
    output = Path(recipe.output).resolve()
    runs = []
    if recipe.train.source_loss:
        runs.append(TrainRun(name="source", config=_source(recipe)[0].config, url=recipe.source, steps=0))
    runs.append(
        TrainRun(
            name="transferred",
            config=config,
            url=url,
            steps=steps,
            save_url=recipe.trained_url if steps else None,
            probe_path=str(output / "train" / "probe.safetensors"),
            overwrite=recipe.overwrite,
        )
    )
    if recipe.train.scratch:
        runs.append(TrainRun(name="scratch", config=config, url=None, steps=steps))
    tokenizer_url = url if has_tokenizer(url) else recipe.source
    with connected(recipe.cluster, recipe.train.workers):
        result = run_training(
            runs,
            train=recipe.train,
            cluster=recipe.cluster,
            tokenizer_url=tokenizer_url,
            output=str(output),
            on_event=lambda event: on_event({"stage": "pretrain", **event}),
        )
    return result.to_json()


def export(recipe: Recipe, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Write the trained store (or the transferred one, where nothing was trained) as a Hugging Face folder, and, where
    the training left a probe, compare the logits of the loaded folder with the trained model's."""
    from bot_dist.checkpoint import Storage

    trained = Storage(recipe.trained_url).exists("manifest.json")
    url = recipe.trained_url if trained else recipe.transferred_url
    probe = Path(recipe.output) / "train" / "probe.safetensors"
    return export_store(url, recipe.export_dir, overwrite=recipe.overwrite, probe=probe, on_event=on_event)


def export_store(
    url: str, folder: str, *, overwrite: bool = False, probe: Path | None = None, on_event: OnEvent = ignore
) -> dict[str, Any]:
    """Write the store (or any other source) at ``url`` as a Hugging Face folder."""
    from bot_dist.convert.export import export_huggingface
    from bot_dist.convert.open import open_source
    from bot_dist.convert.tokenizer import has_tokenizer

    started = time.perf_counter()
    source = open_source(url)
    total = sum(source.storage_bytes(p) for _, _, p in model_of(source.config).parameters())
    on_event({"stage": "export", "event": "start", "bytes": total})
    result = export_huggingface(
        source,
        folder,
        tokenizer_url=url if has_tokenizer(url) else None,
        overwrite=overwrite,
        progress=lambda n: on_event({"stage": "export", "event": "written", "bytes": n}),
    )
    report = {"seconds": time.perf_counter() - started, "source": url, **dataclasses.asdict(result)}
    if probe is not None and probe.exists():
        from bot_dist.evaluate.probe import compare_logits

        report["logits"] = compare_logits(folder, probe)
    return report


def verify(url: str, on_event: OnEvent = ignore) -> list[Damage]:
    """Read every chunk of a committed store and return what is damaged or missing."""
    reader = _committed(url)
    parameters = reader.manifest.parameters
    on_event({"stage": "verify", "event": "start", "bytes": sum(s.nbytes for s in parameters.values())})
    damaged = []
    for name, stored in parameters.items():
        damaged += [found for found in reader.verify(name) if found is not None]
        on_event({"stage": "verify", "event": "parameter", "name": name, "bytes": stored.nbytes})
    return damaged


def run(recipe: Recipe, on_event: OnEvent = ignore) -> dict[str, Any]:
    """All stages, each skipped where an earlier run of the same recipe has finished it.

    Returns the facts that the report shows; ``"complete_before"`` says that there was nothing left to do. Raises
    InputError when the output belongs to another recipe, unless ``recipe.overwrite``.
    """
    from bot_dist.evaluate.report import write_report
    from bot_dist.plan import summarise
    from bot_dist.runtime.cluster import connected

    output = Path(recipe.output)
    records = _Records(output, recipe)
    again = recipe.model_copy(update={"overwrite": True})  # of stages that an earlier attempt has begun, not finished
    on_event = _logged(output / "events.jsonl", on_event)
    if (facts := records.load("facts")) is not None:
        return {**facts, "complete_before": True}
    plan = plan_transfer(recipe)
    on_event({"stage": "plan", "event": "planned", "digest": plan.digest})
    with connected(recipe.cluster, max(plan.mesh.size, recipe.train.workers)):
        transferred = _already_transferred(recipe, plan) or transfer(recipe, on_event)
        trained = records.load("pretrain") or records.save("pretrain", pretrain(again, on_event))
    exported = records.load("export") or records.save("export", export(again, on_event))
    facts = {
        "recipe": recipe.model_dump(),
        "plan": dataclasses.asdict(summarise(plan, recipe.train.context)),
        "transfer": transferred,
        "pretrain": trained,
        "export": exported,
        "versions": versions(),
        "command": " ".join(sys.argv),
        "machine": platform.platform(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    facts["report"] = str(write_report(output / "report.html", facts))
    records.save("facts", facts)
    return {**facts, "complete_before": False}


def versions() -> dict[str, str]:
    """Of the packages that results depend on."""
    return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}


class _Records:
    """What finished stages measured, kept in the output folder."""

    def __init__(self, output: Path, recipe: Recipe) -> None:
        self.folder = output / "stages"
        mine = {"digest": recipe.digest(), "recipe": recipe.model_dump()}
        path = self.folder / "recipe.json"
        if path.exists() and not recipe.overwrite and json.loads(path.read_text())["digest"] != mine["digest"]:
            raise InputError(
                f"{output} holds a run of another recipe; give another output (--set output=DIR) or --overwrite"
            )
        self.folder.mkdir(parents=True, exist_ok=True)
        if recipe.overwrite:
            for old in self.folder.glob("*.json"):
                old.unlink()
        path.write_text(json.dumps(mine, indent=1))

    def load(self, stage: str) -> dict[str, Any] | None:
        path = self.folder / f"{stage}.json"
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text())
        return result

    def save(self, stage: str, result: dict[str, Any]) -> dict[str, Any]:
        partial = self.folder / f"{stage}.json.partial"
        partial.write_text(json.dumps(result, indent=1))
        partial.replace(self.folder / f"{stage}.json")
        return result


def _source(recipe: Recipe) -> tuple[Source, Model]:
    from bot_dist.convert.open import open_source

    source = open_source(recipe.source)
    model = model_of(source.config)
    source.check(model)
    return source, model


def _planned(recipe: Recipe) -> tuple[Source, TransferPlan]:
    from bot_dist.plan import make_plan

    source, model = _source(recipe)
    target = model.resized(recipe.target)
    identity = json.dumps(source.provenance(), sort_keys=True, default=str)
    plan = make_plan(
        model,
        target,
        recipe.transfer,
        Mesh(tensor=recipe.cluster.tensor, data=recipe.cluster.data),
        source_bytes={
            w.name: sum(source.storage_bytes(model.parameter(w, i)) for i in range(model.weight_layers(w)))
            for w in model.weights
        },
        source_dtype={w.name: str(source.dtype(model.parameter(w))).removeprefix("torch.") for w in model.weights},
        source_id=hashlib.sha256(identity.encode()).hexdigest()[:32],
    )
    return source, plan


def _stored(plan: TransferPlan) -> list[StoredParameter]:
    """The target's parameters as the plan lays them out."""
    from bot_dist.checkpoint import StoredParameter

    return [
        StoredParameter(parameter=plan.parameter(m, layer), dtype=m.dtype, shard=m.shard, chunk=m.chunk)
        for m in plan.modules
        for layer in range(plan.target.weight_layers(m.weight))
    ]


def _already_transferred(recipe: Recipe, plan: TransferPlan) -> dict[str, Any] | None:
    """What an earlier run of the same plan measured, if it is committed."""
    from bot_dist.checkpoint import CheckpointReader, Storage

    if recipe.overwrite or not Storage(recipe.transferred_url).exists("manifest.json"):
        return None
    provenance = CheckpointReader(recipe.transferred_url).manifest.provenance
    if provenance.get("plan", {}).get("digest") != plan.digest:
        raise CheckpointExistsError(
            f"{recipe.transferred_url} holds a checkpoint of another plan; give another output or --overwrite"
        )
    report: dict[str, Any] = provenance["transfer"]
    return report


def _committed(url: str) -> CheckpointReader:
    from bot_dist.checkpoint import CheckpointReader

    return CheckpointReader(url)


def _absolute(url: str) -> str:
    """Local paths made absolute: actors have another working directory."""
    return url if "://" in url else str(Path(url).resolve())


def _logged(path: Path, on_event: OnEvent) -> OnEvent:
    """``on_event`` that also appends every event to a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)

    def log(event: dict[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")
        on_event(event)

    return log


__all__ = ["export", "export_store", "plan_transfer", "pretrain", "run", "transfer", "verify"]
