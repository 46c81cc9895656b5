"""The stages of a run, composed: plan → transfer → continued pretraining → export → report.

Every stage takes a recipe and an optional ``on_event``, which is called with every event as it happens (by default
events are logged), and returns a result with fields of its own.
"""

from __future__ import annotations

import dataclasses
import platform
import sys
import time
from collections.abc import Mapping
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
from bot_dist.pipeline.records import Records, recorded_in
from bot_dist.pipeline.results import FamilyResult, PipelineResult, TransferResult
from bot_dist.pipeline.transfer import committed_provenance, transfer_by, with_copy
from bot_dist.pipeline.versions import versions
from bot_dist.recipe import OWN_TEXT, Recipe, members_of
from bot_dist.train.results import PretrainResult
from bot_dist.urls import absolute, label

if TYPE_CHECKING:
    from bot_dist.plan import TransferPlan


def plan_run(recipe: Recipe) -> dict[str, Planning]:
    """The plannings of a recipe's runs: of the members of a family by their names, of which the common source is opened
    once; and of any other recipe by an empty name."""
    plannings: dict[str, Planning] = {}
    opened = None
    for name, member in (members_of(recipe) if recipe.family else {"": recipe}).items():
        plannings[name] = Planning(member, opened=opened)
        opened = plannings[name].opened
    return plannings


def run(
    recipe: Recipe, on_event: OnEvent = log, *, plannings: Mapping[str, Planning] | None = None
) -> PipelineResult | FamilyResult:
    """Run all stages, each skipped where an earlier run of the same recipe has finished it; of a family,
    ``run_family``.

    ``plannings`` are what ``plan_run`` has given, where the plans have been looked at before.
    Returns the facts that the report shows; of a family, a FamilyResult. Raises InputError when the output belongs to
    another recipe, CheckpointExistsError when it holds what no run has made, unless ``recipe.overwrite``.
    """
    from bot_dist.execute.ray.cluster import connected

    if plannings is None:
        plannings = plan_run(recipe)
    if recipe.family:
        from bot_dist.pipeline.members import run_family

        return run_family(recipe, plannings, on_event)
    (planning,) = plannings.values()
    cpus = check_run(planning)
    records = Records(Path(recipe.output), recipe)
    if (done := records.load_result("facts", PipelineResult)) is not None:
        return dataclasses.replace(done, complete_before=True)
    with connected(recipe.cluster, cpus):
        return end(begin(planning, records, on_event))


@dataclass(frozen=True, kw_only=True)
class Begun:
    """A run whose transfer is done."""

    recipe: Recipe
    reading: Planning
    """The planning of the recipe, or of one that reads the copy of the source, where there is one."""
    records: Records
    plan: TransferPlan
    transferred: TransferResult
    on_event: OnEvent


def begin(planning: Planning, records: Records, on_event: OnEvent) -> Begun:
    """Plan and fit, and transfer unless that was done before; returns the run that is begun."""
    from bot_dist.execute import create_executor

    recipe = planning.recipe
    on_event = recorded_in(Path(recipe.output) / "events.jsonl", on_event)
    with create_executor(recipe.cluster) as executor:
        reading = with_copy(planning, executor, on_event)
        plan, adapted = reading.fitted(executor, on_event)
        on_event(Planned(digest=plan.digest))
        if (done := _already_transferred(recipe, plan)) is None:
            done = transfer_by(plan, reading.recipe, reading.source, executor, on_event, adapted)
    return Begun(recipe=recipe, reading=reading, records=records, plan=plan, transferred=done, on_event=on_event)


def end(begun: Begun, at_once: int = 1) -> PipelineResult:
    """Do all that comes after the transfer, beside others, if there are so many ``at_once``; returns the facts."""
    from bot_dist.plan import summarise
    from bot_dist.report.html import write_report

    recipe, records, on_event = begun.recipe, begun.records, begun.on_event
    output = Path(recipe.output)
    again = begun.reading.recipe.model_copy(update={"overwrite": True})  # of what an earlier attempt may have begun
    if (trained := records.load_result("pretrain", PretrainResult)) is None:
        source, _ = begun.reading.opened
        result = pretrain(again, on_event, fresh=recipe.overwrite, at_once=at_once, source=source)
        trained = records.save("pretrain", result)
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
    """Texts that the source and the model that was made of it write."""
    from bot_dist.pipeline.sampling import sample_texts

    recipe = begun.reading.recipe
    made = recipe.trained_url if recipe.train.steps else recipe.transferred_url
    return sample_texts(recipe, made, f"{recipe.output}/samples", on_event)


def check_run(planning: Planning) -> int:
    """The number of CPUs that a run takes, once nothing is found wrong with it before anything is read or written."""
    from bot_dist.formats.export_folder import ExportFolder

    recipe = planning.recipe
    check_places(recipe, trains=True)
    for written in (recipe.transferred_url, recipe.trained_url):
        keep_apart(recipe.source, written)
    plan = planning.draft
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
    """The measurements of an earlier run of the same plan, if it is committed."""
    provenance = None if recipe.overwrite else committed_provenance(recipe.transferred_url)
    if provenance is None:
        return None
    if provenance.get("plan", {}).get("digest") != plan.digest:
        raise CheckpointExistsError(
            f"{label(recipe.transferred_url)} holds a checkpoint of another plan; give another output or --overwrite"
        )
    url = label(absolute(recipe.transferred_url))
    return TransferResult.from_json({**provenance["transfer"], "url": url}, url)
