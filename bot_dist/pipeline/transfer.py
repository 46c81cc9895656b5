"""Transferring a source into a store: by the plan of a recipe, or by one that is made already."""

from __future__ import annotations

import contextlib
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
        return transfer_by(planning.recipe, planning.source, plan, on_event, adapted, made)


def with_copy(recipe: Recipe, on_event: OnEvent = log) -> Recipe:
    """The recipe that reads ``import_to``, where one is asked for. The source is imported to it, unless it is there.

    Raises CheckpointExistsError when it holds something else, unless ``recipe.overwrite``.
    """
    if recipe.import_to is None:
        return recipe
    limits = recipe.transfer.model_dump(include={"memory_limit", "allow_nonfinite", "moments"})
    here = recipe.model_dump(include={"source", "output", "cluster", "overwrite"})
    plain = make_recipe({**here, "transfer": limits, "target_url": recipe.import_to})
    planning = Planning(plain)
    held = committed_provenance(recipe.import_to)
    if held is None or held.get("plan", {}).get("digest") != planning.draft.digest:
        transfer_by(plain, planning.source, planning.draft, on_event)
    return recipe.model_copy(update={"source": recipe.import_to})


def transfer_by(
    recipe: Recipe,
    source: Source,
    plan: TransferPlan,
    on_event: OnEvent,
    adapted: Adapted | None = None,
    made: dict[str, Any] | None = None,
) -> TransferResult:
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
        url, stored_parameters(plan), config=plan.target.config, attempt=attempt, overwrite=recipe.overwrite
    )
    tally = Tally(plan, on_event)
    tally.run(recipe.cluster, source, url, attempt)
    companions.save(writer.url)
    unchanged = source.provenance() if made is None else made["of"]
    if open_source(absolute(recipe.source)).provenance() != unchanged:
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
        **tally.report(),
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
    writer.commit(tally.digests, provenance, overwrite=recipe.overwrite)
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
    """Where a committed store came from; None where there is none."""
    from bot_dist.storage.folder import Storage
    from bot_dist.store import CheckpointReader

    return CheckpointReader(url).manifest.provenance if Storage(url).exists("manifest.json") else None
