"""Transferring a source into a store: by the plan of a recipe, or by one that is made already."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from bot_dist.errors import InputError, SourceError
from bot_dist.events import OnEvent, log
from bot_dist.events.transfer import TransferCommitted
from bot_dist.pipeline.places import check_places, keep_apart
from bot_dist.pipeline.planning import Planning
from bot_dist.pipeline.results import TransferResult
from bot_dist.pipeline.versions import versions
from bot_dist.recipe import Recipe, make_recipe
from bot_dist.urls import absolute, label

if TYPE_CHECKING:
    from bot_dist.baselines import Baseline
    from bot_dist.execute import Executor
    from bot_dist.fit import Adapted
    from bot_dist.formats.source import Source
    from bot_dist.plan import TransferPlan
    from bot_dist.store import StoredParameter


def plan_transfer(recipe: Recipe) -> TransferPlan:
    """Read the source's index, and plan. Nothing is written and no weight is read: what a transfer fits to the source's
    statistics is named, and which layers it keeps is not known."""
    return Planning(recipe).draft


def transfer(recipe: Recipe, on_event: OnEvent = log, baseline: Baseline | None = None) -> TransferResult:
    """Transfer the source into the store at ``recipe.transferred_url`` and commit it; resume an unfinished transfer.
    ``baseline`` puts a rule of others in the place of ours.

    Returns what was measured, which is in the store's manifest, too. Raises CheckpointExistsError when the target holds
    a committed store, unless ``recipe.overwrite``.
    """
    return transfer_planned(plan_scale(recipe, baseline), on_event)


def plan_scale(recipe: Recipe, baseline: Baseline | None = None) -> Planning:
    """The planning of a transfer. Raises InputError, before anything is read, where what it writes would not last."""
    check_places(recipe)
    return Planning(recipe, baseline)


def transfer_planned(planning: Planning, on_event: OnEvent = log) -> TransferResult:
    """Transfer as ``transfer`` does, by what ``plan_scale`` gives, whose plan may be known already."""
    from bot_dist.execute import create_executor
    from bot_dist.storage.filesystems import check_writable
    from bot_dist.store import check_target

    recipe = planning.recipe
    check_writable(absolute(recipe.transferred_url))
    keep_apart(recipe.source, absolute(recipe.transferred_url))
    check_target(absolute(recipe.transferred_url), overwrite=recipe.overwrite)
    with create_executor(recipe.cluster) as executor:
        executor.check()
        planning = with_copy(planning, executor, on_event)
        plan, adapted = planning.fitted(executor, on_event)
        made = planning.make(executor, on_event)
        return transfer_by(plan, planning.recipe, planning.source, executor, on_event, adapted, made)


def with_copy(planning: Planning, executor: Executor, on_event: OnEvent) -> Planning:
    """The planning that reads ``import_to``, where one is asked for. The source is imported to it, unless it is there.

    Raises CheckpointExistsError when it holds something else, unless ``recipe.overwrite``.
    """
    recipe = planning.recipe
    if recipe.import_to is None:
        return planning
    limits = recipe.transfer.model_dump(include={"memory_limit", "allow_nonfinite", "moments"})
    here = recipe.model_dump(include={"source", "output", "cluster", "overwrite"})
    plain = make_recipe({**here, "transfer": limits, "target_url": recipe.import_to})
    importing = Planning(plain, opened=planning.opened)
    held = committed_provenance(recipe.import_to)
    if held is None or held.get("plan", {}).get("digest") != importing.draft.digest:
        transfer_by(importing.draft, plain, importing.source, executor, on_event)
    return Planning(recipe.model_copy(update={"source": recipe.import_to}), planning.baseline)


def transfer_by(
    plan: TransferPlan,
    recipe: Recipe,
    source: Source,
    executor: Executor,
    on_event: OnEvent,
    adapted: Adapted | None = None,
    made: dict[str, Any] | None = None,
) -> TransferResult:
    """Transfer by a plan; ``made`` holds facts of a ``source`` that a baseline has made of the recipe's. Raises
    InputError for a source without weights, SourceError where the source changes meanwhile."""
    from bot_dist.execute.run_plan import PlanRun
    from bot_dist.formats.companions import read_companions
    from bot_dist.formats.open import open_source
    from bot_dist.formats.sources.config_only import Shapes
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
        url, stored_parameters(plan), config=plan.target.config, attempt=attempt, overwrite=recipe.overwrite
    )
    plan_run = PlanRun(plan, on_event)
    plan_run.run(executor, source, url, attempt)
    companions.save(writer.url)
    unchanged = source.provenance() if made is None else made["of"]
    if open_source(absolute(recipe.source)).provenance() != unchanged:  # opened again, to see what is there now
        writer.discard()
        raise SourceError(f"{label(recipe.source)} was changed while it was read; nothing is kept, run it again")
    result = TransferResult(
        url=label(url),
        seconds=time.perf_counter() - started,
        tokenizer=companions.tokenizer,
        notes=companions.notes,
        sizes={"source": plan.source.sizes, "target": plan.target.sizes},
        calibrate=None if adapted is None else tuple(adapted.stages),
        fitting_s=None if adapted is None else adapted.seconds,
        made=made,
        **plan_run.report(),
    )
    report = result.to_json()
    del report["url"]  # a store may be moved
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
        exact = source.moments_exact and plan.optimizer_state_exact
        provenance["moments"] = {"optimizer_step": plan.optimizer_step, "exact": exact}
    if adapted is not None:
        provenance["operators"] = adapted.stores()
    writer.commit(plan_run.digests, provenance, overwrite=recipe.overwrite)
    on_event(TransferCommitted(url=label(url), report=report))
    return result


def stored_parameters(plan: TransferPlan) -> list[StoredParameter]:
    """The target's parameters as the plan lays them out."""
    from bot_dist.store import StoredParameter

    return [
        StoredParameter(
            parameter=p, dtype=m.dtype, shard=m.shard, chunk=m.chunk, learning_rate_factor=m.learning_rate_factor
        )
        for m in plan.modules
        for p in plan.written(m)
    ]


def committed_provenance(url: str) -> dict[str, Any] | None:
    """The provenance of a committed store; None where there is none."""
    from bot_dist.storage.folder import Storage
    from bot_dist.store import CheckpointReader

    return CheckpointReader(url).manifest.provenance if Storage(url).exists("manifest.json") else None
