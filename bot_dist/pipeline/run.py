"""The stages of a run, composed: plan → transfer → continued pretraining → export → report.

Every stage takes a recipe and an optional ``on_event``, which is called with every event as it happens (by default
events are logged), and returns a result with fields of its own.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from bot_dist.errors import CheckpointExistsError
from bot_dist.events import OnEvent, log
from bot_dist.events.transfer import Planned
from bot_dist.formats.export_result import ExportResult
from bot_dist.pipeline.export import export
from bot_dist.pipeline.places import check_places, keep_apart
from bot_dist.pipeline.planning import Planning
from bot_dist.pipeline.pretrain import check_training, pretrain
from bot_dist.pipeline.records import Records, logged
from bot_dist.pipeline.results import FamilyResult, PipelineResult, TransferResult
from bot_dist.pipeline.transfer import committed_provenance, plan_transfer, transfer_by, with_copy
from bot_dist.pipeline.versions import versions
from bot_dist.recipe import OWN_TEXT, Recipe
from bot_dist.train.results import PretrainResult
from bot_dist.urls import absolute, label

if TYPE_CHECKING:
    from bot_dist.plan import TransferPlan


def run(recipe: Recipe, on_event: OnEvent = log) -> PipelineResult | FamilyResult:
    """All stages, each skipped where an earlier run of the same recipe has finished it; of a family, ``run_family``.

    Returns the facts that the report shows; of a family, a FamilyResult. Raises InputError when the output belongs to
    another recipe, CheckpointExistsError when it holds what no run has made, unless ``recipe.overwrite``.
    """
    from bot_dist.execute.ray.cluster import connected

    if recipe.family:
        from bot_dist.pipeline.members import run_family

        return run_family(recipe, on_event)
    cpus = check_run(recipe)
    records = Records(Path(recipe.output), recipe)
    if (done := records.load_result("facts", PipelineResult)) is not None:
        return dataclasses.replace(done, complete_before=True)
    with connected(recipe.cluster, cpus):
        return end(begin(recipe, records, on_event))


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run whose transfer is done."""

    recipe: Recipe
    reading: Recipe
    """The recipe that reads the copy of the source, where there is one."""
    records: Records
    plan: TransferPlan
    transferred: TransferResult
    on_event: OnEvent


def begin(recipe: Recipe, records: Records, on_event: OnEvent) -> Begun:
    """Up to the transfer, unless it was done before."""
    on_event = logged(Path(recipe.output) / "events.jsonl", on_event)
    reading = with_copy(recipe, on_event)
    planning = Planning(reading)
    plan, adapted = planning.fitted(on_event)
    on_event(Planned(digest=plan.digest))
    done = _already_transferred(recipe, plan) or transfer_by(reading, planning.source, plan, on_event, adapted)
    return Begun(recipe=recipe, reading=reading, records=records, plan=plan, transferred=done, on_event=on_event)


def end(begun: Begun, at_once: int = 1) -> PipelineResult:
    """All that comes after it, beside others, if there are so many ``at_once``; the facts."""
    from bot_dist.plan import summarise
    from bot_dist.report.html import write_report

    recipe, records, on_event = begun.recipe, begun.records, begun.on_event
    output = Path(recipe.output)
    again = begun.reading.model_copy(update={"overwrite": True})  # of what an earlier attempt may have begun
    if (trained := records.load_result("pretrain", PretrainResult)) is None:
        trained = records.save("pretrain", pretrain(again, on_event, fresh=recipe.overwrite, at_once=at_once))
    if (exported := records.load_result("export", ExportResult)) is None:
        exported = records.save("export", export(again, on_event, probe=output / "train" / "probe.safetensors"))
    if (samples := records.load("samples")) is None:
        samples = records.save("samples", _samples(begun, on_event))
    facts = PipelineResult(
        recipe=recipe.public(),
        plan=summarise(begun.plan, recipe.train.context),
        notes=begun.plan.notes,
        transfer=begun.transferred,
        pretrain=trained,
        export=exported,
        samples=samples,
        versions=versions(),
        command=label(" ".join(sys.argv)),
        machine=platform.platform(),
        date=time.strftime("%Y-%m-%d %H:%M:%S"),
        report=str(output / "report.html"),
    )
    write_report(Path(facts.report), facts.to_json())
    return records.save("facts", facts)


def _samples(begun: Begun, on_event: OnEvent) -> dict[str, list[str]]:
    """What the source and the model that was made of it write."""
    from bot_dist.pipeline.sampling import sample_texts

    recipe = begun.reading
    made = recipe.trained_url if recipe.train.steps else recipe.transferred_url
    return sample_texts(recipe, made, f"{recipe.output}/samples", on_event)


def check_run(recipe: Recipe) -> int:
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


def check_data(recipe: Recipe) -> None:
    """Raise InputError where a text that the recipe names is not there or no text."""
    from bot_dist.data.texts import open_texts

    for section, named in (("calibrate", recipe.calibrate), ("train", recipe.train)):
        written = section == "calibrate" and named.text == OWN_TEXT
        if named.text and not written:
            open_texts(named.text, named.column, section, named.document_limit)


def _already_transferred(recipe: Recipe, plan: TransferPlan) -> TransferResult | None:
    """What an earlier run of the same plan measured, if it is committed."""
    provenance = None if recipe.overwrite else committed_provenance(recipe.transferred_url)
    if provenance is None:
        return None
    if provenance.get("plan", {}).get("digest") != plan.digest:
        raise CheckpointExistsError(
            f"{label(recipe.transferred_url)} holds a checkpoint of another plan; give another output or --overwrite"
        )
    url = label(absolute(recipe.transferred_url))
    return TransferResult.from_json({**provenance["transfer"], "url": url}, url)
