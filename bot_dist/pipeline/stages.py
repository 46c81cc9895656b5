"""The stages of a run, composed: plan → transfer → continued pretraining → export → report.

Every stage takes a recipe and an optional ``on_event``, called with one plain mapping per thing that happened
(``{"stage": "transfer", "event": "step", …}``), and returns plain data.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.metadata
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from bot_dist.errors import CheckpointError, CheckpointExistsError, InputError, SourceError
from bot_dist.pipeline.planning import OnEvent, Planning, keep_apart, open_checked
from bot_dist.pipeline.records import Records
from bot_dist.recipe import OWN_TEXT, InsertedConfig, Recipe, make_recipe, members_of
from bot_dist.storage.disk import check_lasting, writing
from bot_dist.urls import absolute, label

if TYPE_CHECKING:
    from bot_dist.baselines import Baseline
    from bot_dist.fit import Adapted
    from bot_dist.formats.export import ExportResult
    from bot_dist.formats.gguf.write import Encoding
    from bot_dist.formats.source import Source
    from bot_dist.plan import TransferPlan
    from bot_dist.store import CheckpointReader, StoredParameter

ExportFormat = Literal["safetensors", "dcp", "gguf"]

PACKAGES = ("torch", "deepspeed", "ray", "zarr", "PyWavelets", "transformers")


def ignore(event: dict[str, Any]) -> None:
    """The default ``on_event``."""


def logged(path: Path, on_event: OnEvent) -> OnEvent:
    """``on_event`` that also appends every event to a file, a line of JSON each, with its ``time``. Raises
    CheckpointError where it can't be written."""
    check_lasting({"events": path})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()

    def log(event: dict[str, Any]) -> None:
        with writing(path), path.open("a") as file:
            file.write(json.dumps({"time": time.time(), **event}) + "\n")
        on_event(event)

    return log


def plan_transfer(recipe: Recipe) -> TransferPlan:
    """Read the source's index, and plan. Nothing is written and no weight is read: what a transfer fits to the source's
    statistics is named, and which layers it keeps is not known."""
    return Planning(recipe).draft


def transfer(recipe: Recipe, on_event: OnEvent = ignore, baseline: Baseline | None = None) -> dict[str, Any]:
    """Transfer the source into the store at ``recipe.transferred_url`` and commit it; resume an unfinished transfer.
    ``baseline`` puts a rule of others in the place of ours.

    Returns what was measured (it is in the store's manifest too): seconds, bytes, GB/s, energy kept per module, peak
    memory per actor. Raises CheckpointExistsError when the target holds a committed store, unless
    ``recipe.overwrite``.
    """
    from bot_dist.execute.device import check_device
    from bot_dist.execute.ray.cluster import connected
    from bot_dist.storage.filesystems import check_writable
    from bot_dist.store import check_target

    check_places(recipe)
    check_writable(absolute(recipe.transferred_url))
    keep_apart(recipe.source, absolute(recipe.transferred_url))
    check_target(absolute(recipe.transferred_url), overwrite=recipe.overwrite)
    check_device(recipe.cluster)
    planning = Planning(with_copy(recipe, on_event), baseline)
    twice = planning.adapts and recipe.cluster.executor == "ray"  # it is needed to calibrate, and to transfer
    with connected(recipe.cluster, planning.draft.mesh.size) if twice else contextlib.nullcontext():
        plan, adapted = planning.fitted(on_event)
        made = planning.make(on_event)
        return _transfer(planning.recipe, planning.source, plan, on_event, adapted, made)


def with_copy(recipe: Recipe, on_event: OnEvent = ignore) -> Recipe:
    """The recipe that reads ``import_to``, where one is asked for. The source is imported to it, unless it is there.

    Raises CheckpointExistsError when it holds something else, unless ``recipe.overwrite``.
    """
    if recipe.import_to is None:
        return recipe
    limits = recipe.transfer.model_dump(include={"memory_limit", "allow_nonfinite", "moments"})
    here = recipe.model_dump(include={"source", "output", "cluster", "overwrite"})
    plain = make_recipe({**here, "transfer": limits, "target_url": recipe.import_to})
    planning = Planning(plain)
    held = _provenance(recipe.import_to)
    if held is None or held.get("plan", {}).get("digest") != planning.draft.digest:
        _transfer(plain, planning.source, planning.draft, on_event)
    return recipe.model_copy(update={"source": recipe.import_to})


def _transfer(
    recipe: Recipe,
    source: Source,
    plan: TransferPlan,
    on_event: OnEvent,
    adapted: Adapted | None = None,
    made: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """``made`` is what is known of a ``source`` that a baseline has made of the recipe's."""
    from bot_dist.execute.run_plan import Tally
    from bot_dist.formats.companions import read_companions
    from bot_dist.formats.config_only import Shapes
    from bot_dist.formats.open import open_source
    from bot_dist.plan import details_of
    from bot_dist.store import CheckpointReader, CheckpointWriter, attempt_of

    if isinstance(source, Shapes):
        raise InputError(f"{label(source.url)} is a configuration without weights: plan works from it, a transfer not")
    started = time.perf_counter()
    plan.validate()
    url = absolute(recipe.transferred_url)
    keep_apart(recipe.source, url)
    companions = read_companions(recipe.source)
    attempt = attempt_of(url, plan.digest) if recipe.overwrite else plan.digest
    writer = CheckpointWriter.create(
        url, _stored(plan), config=plan.target.config, attempt=attempt, overwrite=recipe.overwrite
    )
    tally = Tally(plan, lambda event: on_event({"stage": "transfer", **event}))
    tally.run(recipe.cluster, source, url, attempt)
    companions.save(writer.url)
    unchanged = source.provenance() if made is None else made["of"]
    if open_source(absolute(recipe.source)).provenance() != unchanged:
        writer.discard()
        raise SourceError(f"{label(recipe.source)} was changed while it was read; nothing is kept, run it again")
    report = {
        "seconds": time.perf_counter() - started,
        "tokenizer": companions.tokenizer,
        "notes": list(companions.notes),
        "sizes": {"source": plan.source.sizes, "target": plan.target.sizes},
        **tally.report(),
    }
    if adapted is not None:
        report["calibrate"] = adapted.stages
        report["fitting_s"] = adapted.seconds
    if made is not None:
        report["made"] = made
    provenance: dict[str, Any] = {
        "source": source.provenance(),
        "plan": plan.to_json(),
        "recipe": recipe.public(),
        "versions": versions(),
        "transfer": report,
    }
    if recipe.transfer.keep_details:
        provenance["details"] = details_of(plan.source, plan.modules).within(url).to_json()
    if plan.optimizer_step is not None:
        assert isinstance(source, CheckpointReader), "only stores have moments"
        exact = source.moments_exact and not any(a.changes for m in plan.modules if m.moment for a in m.axes)
        provenance["moments"] = {"optimizer_step": plan.optimizer_step, "exact": exact}
    if adapted is not None:
        provenance["operators"] = adapted.stores()
    writer.commit(tally.digests, provenance, overwrite=recipe.overwrite)
    on_event({"stage": "transfer", "event": "committed", "url": label(url), **report})
    return report


def pretrain(
    recipe: Recipe, on_event: OnEvent = ignore, *, fresh: bool | None = None, at_once: int = 1
) -> dict[str, Any]:
    """Continue pretraining from the transferred store; train the same model from scratch beside it, and measure the
    source's held-out loss, as the recipe asks. Returns what was measured.

    A run that was stopped goes on from its newest training state, unless ``fresh`` (None: ``recipe.overwrite``).
    ``at_once``: how many trainings, this one among them, share the cluster."""
    from bot_dist.execute.ray.cluster import connected
    from bot_dist.formats.tokenizer import has_tokenizer
    from bot_dist.train.driver import TrainRun
    from bot_dist.train.driver import pretrain as run_training

    url = recipe.transferred_url
    check_places(recipe, trains=True)
    store = _committed(url)
    config, inserted = store.config, tuple(store.manifest.provenance.get("plan", {}).get("inserted_layers", ()))
    check_inserted(recipe, inserted)
    steps = recipe.train.steps
    for read in (recipe.source, url):
        keep_apart(read, recipe.trained_url)
    output = Path(recipe.output).resolve()
    runs = []
    if recipe.train.source_loss:
        runs.append(TrainRun(name="source", config=open_checked(recipe)[0].config, url=recipe.source, steps=0))
    runs.append(
        TrainRun(
            name="transferred",
            config=config,
            url=url,
            steps=steps,
            save_url=recipe.trained_url if steps else None,
            probe_path=str(output / "train" / "probe.safetensors"),
            overwrite=recipe.overwrite,
            inserted=inserted,
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
            fresh=recipe.overwrite if fresh is None else fresh,
            at_once=at_once,
        )
    return result.to_json()


def export(
    recipe: Recipe,
    on_event: OnEvent = ignore,
    *,
    folder: str | None = None,
    probe: Path | None = None,
    to: ExportFormat = "safetensors",
    max_shard_bytes: int | None = None,
    dtype: Encoding | None = None,
) -> dict[str, Any]:
    """Write the recipe's trained store (the transferred one, where ``train.steps`` is 0) as ``export_store`` does, by
    default into ``recipe.export_dir`` (GGUF: a file beside it); compare its logits with the ``probe`` that training
    left, if given.

    Raises CheckpointError when the trained store did not start from the present transferred store.
    """
    url = recipe.transferred_url
    if recipe.train.steps:
        begun_from = _committed(recipe.trained_url).manifest.provenance["source"]
        if begun_from["digest"] != _committed(url).manifest.digest:
            raise CheckpointError(
                f"{label(recipe.trained_url)} was trained from another store than {label(url)} is now; "
                f"train again (bot_dist pretrain RECIPE --overwrite)"
            )
        url = recipe.trained_url
    report = export_store(
        url,
        folder or (f"{recipe.export_dir}.gguf" if to == "gguf" else recipe.export_dir),
        overwrite=recipe.overwrite,
        to=to,
        max_shard_bytes=max_shard_bytes,
        dtype=dtype,
        on_event=on_event,
    )
    if probe is not None:
        from bot_dist.formats.check_export import compare_logits

        report["logits"] = compare_logits(report["folder"], probe)
    return report


def export_store(
    url: str,
    folder: str,
    *,
    overwrite: bool = False,
    to: ExportFormat = "safetensors",
    max_shard_bytes: int | None = None,
    dtype: Encoding | None = None,
    on_event: OnEvent = ignore,
) -> dict[str, Any]:
    """Write the store (or any other source) at ``url`` as a Hugging Face folder, with safetensors in files of at most
    ``max_shard_bytes`` (5 GB) and in ``dtype`` (those of the store), or with a checkpoint of torch's DCP instead; or as
    a GGUF file ``folder`` with matrices in ``dtype`` (f16). ``folder`` may be ``hf://USER/MODEL``, on the hub."""
    from bot_dist.formats.beside import folder_of
    from bot_dist.formats.export import (
        DTYPES,
        MAX_SHARD_BYTES,
        export_dcp,
        export_gguf,
        export_huggingface,
        written_bytes,
    )
    from bot_dist.formats.hub_out import HUB, export_hub
    from bot_dist.formats.open import open_source
    from bot_dist.storage.files import real_place

    started = time.perf_counter()
    check_lasting({"folder": folder})
    source = open_source(url)
    if not folder.startswith(HUB) and real_place(folder_of(url)) == real_place(folder):
        raise InputError(f"{label(folder)} is what is exported; give another place")
    if max_shard_bytes is not None and to != "safetensors":
        raise InputError("--max-shard-size is for safetensors; leave it out")
    if dtype is not None and (to == "dcp" or (to == "safetensors" and dtype not in DTYPES)):
        raise InputError(
            f"--dtype {dtype} is for GGUF; safetensors take {', '.join(DTYPES)}, and DCP keeps the dtypes of the store"
        )
    write: Callable[..., ExportResult]
    match to:
        case "safetensors":
            most = MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes
            write = functools.partial(export_huggingface, max_shard_bytes=most, dtype=DTYPES[dtype] if dtype else None)
        case "dcp":
            write = export_dcp
        case "gguf":
            write = functools.partial(export_gguf, encoding=dtype or "f16")
    if folder.startswith(HUB):
        if to == "dcp":
            raise InputError(f"{label(folder)}: the hub takes safetensors and GGUF; export DCP into a folder")
        encoding = (dtype or "f16") if to == "gguf" else None
        write = functools.partial(export_hub, write=write, gguf=encoding)
    on_event({"stage": "export", "event": "start", "bytes": written_bytes(source, to, dtype)})
    result = write(
        source,
        folder,
        overwrite=overwrite,
        progress=lambda n: on_event({"stage": "export", "event": "written", "bytes": n}),
    )
    return {"seconds": time.perf_counter() - started, "source": label(url), **dataclasses.asdict(result)}


def run(recipe: Recipe, on_event: OnEvent = ignore) -> dict[str, Any]:
    """All stages, each skipped where an earlier run of the same recipe has finished it; of a family, ``run_family``.

    Returns the facts that the report shows; ``"complete_before"`` says that there was nothing left to do. Raises
    InputError when the output belongs to another recipe, CheckpointExistsError when it holds what no run has made,
    unless ``recipe.overwrite``.
    """
    from bot_dist.execute.ray.cluster import connected

    if recipe.family:
        return run_family(recipe, on_event)
    cpus = _checked(recipe)
    records = Records(Path(recipe.output), recipe)
    if (facts := records.load("facts")) is not None:
        return {**facts, "complete_before": True}
    with connected(recipe.cluster, cpus):
        return _end(_begin(recipe, records, on_event))


@dataclass(frozen=True, kw_only=True)
class _Begun:
    """A run whose transfer is done."""

    recipe: Recipe
    reading: Recipe
    """The recipe that reads the copy of the source, where there is one."""
    records: Records
    plan: TransferPlan
    transferred: dict[str, Any]
    on_event: OnEvent


def _begin(recipe: Recipe, records: Records, on_event: OnEvent) -> _Begun:
    """Up to the transfer, unless it was done before."""
    on_event = logged(Path(recipe.output) / "events.jsonl", on_event)
    reading = with_copy(recipe, on_event)
    planning = Planning(reading)
    plan, adapted = planning.fitted(on_event)
    on_event({"stage": "plan", "event": "planned", "digest": plan.digest})
    done = _already_transferred(recipe, plan) or _transfer(reading, planning.source, plan, on_event, adapted)
    return _Begun(recipe=recipe, reading=reading, records=records, plan=plan, transferred=done, on_event=on_event)


def _end(begun: _Begun, at_once: int = 1) -> dict[str, Any]:
    """All that comes after it, beside others, if there are so many ``at_once``; the facts."""
    from bot_dist.plan import summarise
    from bot_dist.report.html import write_report

    recipe, records, on_event = begun.recipe, begun.records, begun.on_event
    output = Path(recipe.output)
    again = begun.reading.model_copy(update={"overwrite": True})  # of what an earlier attempt may have begun
    if (trained := records.load("pretrain")) is None:
        trained = records.save("pretrain", pretrain(again, on_event, fresh=recipe.overwrite, at_once=at_once))
    if (exported := records.load("export")) is None:
        exported = records.save("export", export(again, on_event, probe=output / "train" / "probe.safetensors"))
    if (samples := records.load("samples")) is None:
        samples = records.save("samples", _samples(begun, on_event))
    facts = {
        "recipe": recipe.public(),
        "plan": dataclasses.asdict(summarise(begun.plan, recipe.train.context)),
        "notes": [*begun.plan.notes],
        "transfer": begun.transferred,
        "pretrain": trained,
        "export": exported,
        "samples": samples,
        "versions": versions(),
        "command": label(" ".join(sys.argv)),
        "machine": platform.platform(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    facts["report"] = str(write_report(output / "report.html", facts))
    records.save("facts", facts)
    return {**facts, "complete_before": False}


def _samples(begun: _Begun, on_event: OnEvent) -> dict[str, list[str]]:
    """What the source and the model that was made of it write."""
    from bot_dist.pipeline.sampling import sample_texts

    recipe = begun.reading
    made = recipe.trained_url if recipe.train.steps else recipe.transferred_url
    return sample_texts(recipe, made, f"{recipe.output}/samples", lambda event: on_event({**event, "stage": "samples"}))


def run_family(recipe: Recipe, on_event: OnEvent = ignore) -> dict[str, Any]:
    """Every member of a family as ``run`` does it; events tell which (``member``), and come from several threads.

    All are planned before the first begins, transferred one after the other, and then trained, as many at once as
    ``cluster.side_by_side`` says. Returns the facts of each by name under ``"members"``, and the index of their
    reports, which is written anew after each. Raises as ``run`` does, once the others are done; a signal stops all.
    """
    from bot_dist.execute.ray.cluster import connected
    from bot_dist.report.html import write_index
    from bot_dist.train.side_by_side import places, side_by_side

    members = members_of(recipe)
    cpus = max(_checked(member) for member in members.values())
    records = {name: Records(Path(member.output), member) for name, member in members.items()}
    before = {name: facts for name in members if (facts := records[name].load("facts")) is not None}
    done = {name: {**facts, "complete_before": True} for name, facts in before.items()}
    report = Path(recipe.output) / "report.html"
    with connected(recipe.cluster, cpus) if len(before) < len(members) else contextlib.nullcontext():
        begun = {
            name: _begin(member, records[name], functools.partial(_tell_member, on_event, name))
            for name, member in members.items()
            if name not in before
        }

        def ended(name: str, facts: dict[str, Any]) -> None:
            done[name] = facts
            shown = {name: done[name] for name in members if name in done}
            write_index(report, {"recipe": recipe.public(), "members": shown})

        workers = max(member.train.workers for member in members.values())
        at_once = places(recipe.cluster, workers, len(begun))
        works = {name: functools.partial(_end, one, at_once) for name, one in begun.items()}
        side_by_side(works, at_once, ended)
    return {
        "members": {name: done[name] for name in members},
        "report": str(report),
        "complete_before": len(before) == len(members),
    }


def _tell_member(on_event: OnEvent, name: str, event: dict[str, Any]) -> None:
    on_event({**event, "member": name})


def _checked(recipe: Recipe) -> int:
    """How many CPUs a run takes, when nothing is found wrong with it before anything is read or written."""
    from bot_dist.formats.export_folder import ExportFolder

    check_places(recipe, trains=True)
    for written in (recipe.transferred_url, recipe.trained_url):
        keep_apart(recipe.source, written)
    plan = plan_transfer(recipe)
    check_data(recipe)
    check_training(recipe, plan)
    if recipe.overwrite:
        ExportFolder(Path(recipe.export_dir), overwrite=True)
    return max(plan.mesh.size, recipe.train.workers)


def check_places(recipe: Recipe, *, trains: bool = False) -> None:
    """Raise InputError where something that a transfer writes, or a training too, would not last."""
    places = {
        "target_url": recipe.target_url,
        "output": recipe.output if trains or recipe.target_url is None else None,
        "import_to": recipe.import_to,
        "calibrate.folder": recipe.calibrate.folder,
        "train.token_cache": recipe.train.token_cache if trains else None,
    }
    check_lasting(places)


def check_data(recipe: Recipe) -> None:
    """Raise InputError where a text that the recipe names is not there or no text."""
    from bot_dist.data.texts import open_texts

    for section, named in (("calibrate", recipe.calibrate), ("train", recipe.train)):
        written = section == "calibrate" and named.text == OWN_TEXT
        if named.text and not written:
            open_texts(named.text, named.column, section, named.document_limit)


def check_training(recipe: Recipe, plan: TransferPlan) -> None:
    """Raise InputError where the model that a plan makes can't be trained as the recipe says."""
    from bot_dist.train import driver

    driver.check(recipe.train, {"transferred": plan.target.config}, recipe.source)
    check_inserted(recipe, plan.inserted_layers)


def versions() -> dict[str, str]:
    """Of the packages that results depend on, and the commit of this one, where it is in a clone."""
    own = importlib.metadata.version("bot_dist")
    if (commit := _commit()) is not None:
        own += f" at {commit}"
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"bot_dist": own, "python": platform.python_version()} | packages


@functools.cache
def _commit() -> str | None:
    """The commit that this package is at, with ``-dirty`` where files differ from it; None where it is in no clone."""
    root = Path(__file__).parents[1]
    if not (root / ".git").exists():
        return None
    git = ("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def check_inserted(recipe: Recipe, inserted: Sequence[int]) -> None:
    """Raise InputError where inserted blocks are to learn otherwise, and there are none."""
    if not inserted and recipe.train.inserted != InsertedConfig():
        raise InputError(
            "train.inserted is about blocks that a transfer has put in, and this one puts none in; leave it out, or "
            "grow target.layers with transfer.depth=identity"
        )


def _stored(plan: TransferPlan) -> list[StoredParameter]:
    """The target's parameters as the plan lays them out."""
    from bot_dist.store import StoredParameter

    return [
        StoredParameter(
            parameter=p, dtype=m.dtype, shard=m.shard, chunk=m.chunk, learning_rate_factor=m.learning_rate_factor
        )
        for m in plan.modules
        for p in plan.written(m)
    ]


def _already_transferred(recipe: Recipe, plan: TransferPlan) -> dict[str, Any] | None:
    """What an earlier run of the same plan measured, if it is committed."""
    provenance = None if recipe.overwrite else _provenance(recipe.transferred_url)
    if provenance is None:
        return None
    if provenance.get("plan", {}).get("digest") != plan.digest:
        raise CheckpointExistsError(
            f"{label(recipe.transferred_url)} holds a checkpoint of another plan; give another output or --overwrite"
        )
    report: dict[str, Any] = provenance["transfer"]
    return report


def _provenance(url: str) -> dict[str, Any] | None:
    """Where a committed store came from; None where there is none."""
    from bot_dist.storage.folder import Storage
    from bot_dist.store import CheckpointReader

    return CheckpointReader(url).manifest.provenance if Storage(url).exists("manifest.json") else None


def _committed(url: str) -> CheckpointReader:
    from bot_dist.store import CheckpointReader

    return CheckpointReader(url)


__all__ = ["export", "export_store", "logged", "plan_transfer", "pretrain", "run", "run_family", "transfer"]
