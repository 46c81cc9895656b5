"""Weights that a baseline makes where operators can't say its rule, written as a checkpoint that a plan then reads."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot_dist.errors import InputError
from bot_dist.events import OnEvent
from bot_dist.model import Model
from bot_dist.recipe import Recipe
from bot_dist.storage.disk import writing

if TYPE_CHECKING:
    from bot_dist.baselines.rule import Batch, Rule
    from bot_dist.data.calibration_samples import CalibrationData
    from bot_dist.execute import Executor
    from bot_dist.fit import Statistics
    from bot_dist.formats.source import Source

MADE_VERSION = 1
"""Raised when a rule comes to make other weights."""


def make_weights(
    rule: Rule,
    recipe: Recipe,
    source: Source,
    model: Model,
    *,
    data: Callable[[], CalibrationData | None] | None,
    folder: Path,
    statistics_folder: str,
    executor: Executor,
    on_event: OnEvent,
) -> dict[str, Any]:
    """Write the model that ``rule`` makes of ``source`` into ``folder``, as safetensors with its configuration.

    Returns what is known of it: ``flops`` that it took, and facts. Raises InputError where the rule takes statistics
    and there is no ``data``, or none that the source understands, and as the preparation of training data does, where
    it learns.
    """
    from safetensors.torch import save_file

    from bot_dist.baselines.rule import Given
    from bot_dist.storage.files import write_file
    from bot_dist.storage.localfile import PARTIAL

    assert rule.make is not None, rule
    assert rule.made is not None, rule
    target = rule.made

    def measured() -> Statistics:
        from bot_dist.fit import check_understood, default_wanted, statistics

        if data is None or (samples := data()) is None:
            wanted = "images" if model.family.objective == "image" else "text"
            raise InputError(
                f"{rule.name} takes statistics, and there is no {wanted} to take them on; name train.{wanted}"
            )
        taken = statistics(
            source,
            model,
            samples.fitted,
            default_wanted(model),
            statistics_folder,
            executor=executor,
            purpose=f"for {rule.name}",
            on_event=on_event,
        )
        if samples.named and not recipe.calibrate.allow_mismatch:
            check_understood(taken.loss, model, source.url, samples.named)
        return taken

    given = Given(
        source=source,
        model=model,
        target=target,
        seed=recipe.train.seed,
        context=recipe.train.context,
        calibration_context=recipe.calibrate.context,
        statistics=measured,
        batch=_batches(recipe, target),
    )
    made = rule.make(given)
    partial = folder / f"model{PARTIAL}"
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        save_file(made.weights, partial, metadata={"format": "pt"})
        partial.replace(folder / "model.safetensors")
    write_file(f"{folder}/config.json", json.dumps(target.config, indent=1).encode())
    return {"rule": rule.name, "flops": made.flops, **made.facts}


def _batches(recipe: Recipe, target: Model) -> Callable[[int], Batch]:
    """The batch of each step of a training by the recipe, prepared when the first one is asked for."""
    prepared: list[Callable[[int], Batch]] = []

    def prepare() -> Callable[[int], Batch]:
        from bot_dist.data.batches import Batches
        from bot_dist.train.driver import TrainRun, masking, samples_of
        from bot_dist.train.objectives import objective_of

        train = recipe.train
        runs = [TrainRun(name="made", config=target.config, url=None, steps=0)]
        samples = samples_of(runs, train, recipe.cluster, recipe.source, Path(recipe.output).resolve() / "train")
        batches: Batches[Any] = Batches(samples.train(), train.batch, train.seed)
        objective = objective_of(target, seed=train.seed, masking=masking(runs, recipe.source))
        return lambda step: objective.examples(batches.batch(step, 0, 1), step=step, first=0)

    def batch(step: int) -> Batch:
        if not prepared:
            prepared.append(prepare())
        return prepared[0](step)

    return batch
