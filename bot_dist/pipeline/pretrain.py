"""Continued pretraining of what a transfer has made, beside what it is measured against."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bot_dist.errors import InputError
from bot_dist.events import OnEvent, log
from bot_dist.pipeline.places import check_places, keep_apart
from bot_dist.pipeline.planning import open_checked
from bot_dist.recipe import InsertedConfig, Recipe

if TYPE_CHECKING:
    from bot_dist.formats.source import Source
    from bot_dist.plan import TransferPlan
    from bot_dist.train.results import PretrainResult


def pretrain(
    recipe: Recipe,
    on_event: OnEvent = log,
    *,
    fresh: bool | None = None,
    at_once: int = 1,
    source: Source | None = None,
) -> PretrainResult:
    """Continue pretraining from the transferred store; train the same model from scratch beside it, and measure the
    source's held-out loss, as the recipe asks. Returns what was measured.

    A run that was stopped goes on from its newest training state, unless ``fresh`` (None: ``recipe.overwrite``).
    ``at_once``: how many trainings, this one among them, share the cluster. ``source``: the recipe's, where it has been
    opened before."""
    from bot_dist.execute.ray.cluster import connected
    from bot_dist.formats.tokenizer import has_tokenizer
    from bot_dist.store import CheckpointReader
    from bot_dist.train.driver import TrainRun
    from bot_dist.train.driver import pretrain as run_training

    url = recipe.transferred_url
    check_places(recipe, trains=True)
    store = CheckpointReader(url)
    config, inserted = store.config, tuple(store.manifest.provenance.get("plan", {}).get("inserted_layers", ()))
    check_inserted(recipe, inserted)
    steps = recipe.train.steps
    for read in (recipe.source, url):
        keep_apart(read, recipe.trained_url)
    output = Path(recipe.output).resolve()
    runs = []
    if recipe.train.source_loss:
        source = source or open_checked(recipe)[0]
        runs.append(TrainRun(name="source", config=source.config, url=recipe.source, steps=0))
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
        return run_training(
            runs,
            train=recipe.train,
            cluster=recipe.cluster,
            tokenizer_url=tokenizer_url,
            output=str(output),
            on_event=on_event,
            fresh=recipe.overwrite if fresh is None else fresh,
            at_once=at_once,
        )


def check_training(recipe: Recipe, plan: TransferPlan) -> None:
    """Raise InputError where the model that a plan makes can't be trained as the recipe says."""
    from bot_dist.train import driver

    driver.check(recipe.train, {"transferred": plan.target.config}, recipe.source)
    check_inserted(recipe, plan.inserted_layers)


def check_inserted(recipe: Recipe, inserted: Sequence[int]) -> None:
    """Raise InputError where inserted blocks are to learn otherwise, and there are none."""
    if not inserted and recipe.train.inserted != InsertedConfig():
        raise InputError(
            "train.inserted is about blocks that a transfer has put in, and this one puts none in; leave it out, or "
            "grow target.layers with transfer.depth=identity"
        )
