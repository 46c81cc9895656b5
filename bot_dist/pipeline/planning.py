"""Planning from a recipe: its source is opened once, what shrinking takes from it is fitted, and all is planned."""

from __future__ import annotations

import functools
import hashlib
import json
import re
import time
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot_dist.baselines.make_weights import MADE_VERSION
from bot_dist.errors import SourceError
from bot_dist.events import OnEvent
from bot_dist.fit.calibration_data import calibration_data, check_kind_of_data, names_data, writing
from bot_dist.model import Model, Weight, model_of
from bot_dist.pipeline.places import keep_apart
from bot_dist.pipeline.planned_fit import Fitting
from bot_dist.recipe import Recipe, refuse_family
from bot_dist.tensors import Mesh
from bot_dist.urls import absolute

if TYPE_CHECKING:
    from bot_dist.baselines import Baseline, Rule
    from bot_dist.data.calibration_samples import CalibrationData
    from bot_dist.execute import Executor
    from bot_dist.fit import Adapted
    from bot_dist.fit.cost import CalibrationCost
    from bot_dist.fit.own_text_cost import Writing
    from bot_dist.formats.restored import MallatSource
    from bot_dist.formats.source import Source
    from bot_dist.plan import OperatorTable, SourceModule, TransferPlan


class Planning:
    """A recipe that is being planned, with its source, which is opened here unless it is ``opened`` already.

    It is planned by the rule of a ``baseline``, where one is given, in place of ours. Raises SourceError for a source
    that can't be read."""

    def __init__(
        self, recipe: Recipe, baseline: Baseline | None = None, *, opened: tuple[Source, Model] | None = None
    ) -> None:
        self.recipe = refuse_family(recipe)
        self.baseline = baseline
        self.opened = opened or open_checked(recipe)
        """The source that the recipe names, and its model."""
        self._opened, self._model = self.opened
        check_kind_of_data(recipe, self._model)
        self._mallat: MallatSource | None = None
        self._notes: list[str] = []
        self._made: Source | None = None
        self._cost: CalibrationCost | None = None
        if baseline is None:
            self._mallat, self._notes = _with_details(recipe, self._opened, self._model)
        self._notes = [*self._opened.provenance().get("notes", ()), *self._notes]

    @property
    def source(self) -> Source:
        """The source that a transfer by the plan reads."""
        return self._made or self._mallat or self._opened

    @cached_property
    def draft(self) -> TransferPlan:
        """The plan; where something is to be fitted, one that says where. Reads no weight and writes nothing."""
        from bot_dist.formats.companions import check_companions
        from bot_dist.formats.configuration import check_configuration
        from bot_dist.formats.tokenizer import check_files

        plan = self._planned(None)
        check_configuration(plan.target.config, "the target")
        check_files(absolute(self.recipe.source))
        check_companions(absolute(self.recipe.source))
        return plan

    @cached_property
    def calibration_flops(self) -> float:
        """FLOPs that fitting takes, at most, measuring what it has come to left out."""
        _ = self.draft
        written = self._writing.flops if self._writing else 0.0
        return written + (self._cost.flops if self._cost else 0.0)

    @cached_property
    def adapts(self) -> bool:
        """Whether axes that shrink do so by what is fitted to the source."""
        return self._mallat is None and self.baseline is None and _adapts(self.recipe)

    @cached_property
    def rule(self) -> Rule | None:
        """The baseline's, where one is given."""
        if self.baseline is None:
            return None
        return self.baseline(self._model, self._model.resized(self.recipe.target))

    def make(self, executor: Executor, on_event: OnEvent) -> dict[str, Any] | None:
        """Make what the plan reads, where the rule of a baseline makes it by other means than operators; what is known
        of it."""
        from bot_dist.baselines.make_weights import make_weights
        from bot_dist.formats.open import open_source

        if self.rule is None or self.rule.make is None:
            return None
        folder = Path(_beside(self.recipe, "made"))
        facts = make_weights(
            self.rule,
            self.recipe,
            self._opened,
            self._model,
            data=functools.partial(self._data, executor, on_event) if names_data(self.recipe) else None,
            folder=folder,
            statistics_folder=self._folder,
            executor=executor,
            on_event=on_event,
        )
        self._made = open_source(str(folder))
        return {**facts, "of": self._opened.provenance()}

    def fitted(self, executor: Executor, on_event: OnEvent) -> tuple[TransferPlan, Adapted | None]:
        """The plan with all that is fitted to the source's statistics, and what that is; None where nothing is."""
        _ = self.draft  # whatever is wrong with it is said before anything is fitted
        started = time.perf_counter()
        if not self.adapts or (adapted := self._adapted(executor, on_event)) is None:
            return self.draft, None
        adapted.seconds = time.perf_counter() - started
        return self._planned(adapted), adapted

    @cached_property
    def optimizer_step(self) -> int | None:
        """The number of steps that AdamW had taken whose moments are carried along; None where none are: the source has
        none, or details restore its weights, which have none of their moments."""
        from bot_dist.store import CheckpointReader

        if self.recipe.transfer.moments == "none" or self.baseline is not None or self._mallat is not None:
            return None
        return self._opened.optimizer_step if isinstance(self._opened, CheckpointReader) else None

    @cached_property
    def _known(self) -> dict[str, SourceModule]:
        return known(self.source, self._mallat.model if self._mallat else self._model)

    @cached_property
    def _folder(self) -> str:
        """The folder in which statistics are kept, and a text that the source has written."""
        return self.recipe.calibrate.folder or _beside(self.recipe, "calibration")

    @cached_property
    def _writing(self) -> Writing | None:
        """The plan by which the source writes a text; None where it is to write none."""
        if not self.adapts and not (self.baseline is not None and names_data(self.recipe)):
            return None
        return writing(self.recipe, self._model, sum(module.nbytes for module in self._known.values()))

    def _data(self, executor: Executor, on_event: OnEvent) -> CalibrationData | None:
        """The data that are run through the source."""
        return calibration_data(self.recipe, self._opened, self._model, self._writing, self._folder, executor, on_event)

    def _adapted(self, executor: Executor, on_event: OnEvent) -> Adapted | None:
        from bot_dist.fit import Adaptation
        from bot_dist.storage.folder import Storage
        from bot_dist.store import is_vacant
        from bot_dist.store.manifest import OPERATORS

        url = absolute(self.recipe.transferred_url)
        keep_apart(self.recipe.source, url)
        is_vacant(Storage(url))
        adaptation = Adaptation(
            self.recipe,
            self._opened,
            self._model,
            self._known,
            self._data(executor, on_event),
            operators_url=f"{url}/{OPERATORS}",
            moments=self.optimizer_step is not None,
            folder=self._folder,
            executor=executor,
            on_event=on_event,
        )
        return adaptation.run() if adaptation.stages else None

    def _planned(self, adapted: Adapted | None) -> TransferPlan:
        from bot_dist.operators import origins
        from bot_dist.plan import adaptive, averages, basis_of, growing, make_plan, placed, shrinking, target_model

        recipe, model, notes = self.recipe, self._model, self._notes
        fitted: OperatorTable | None = None
        layers: tuple[int, ...] = ()
        if self._mallat is not None:
            model = target = self._mallat.model
        elif self.adapts:
            resized = model.resized(recipe.target)
            basis = basis_of(model, resized, recipe.transfer.basis)
            axes = shrinking(model, resized, recipe.transfer)
            grown = growing(model, resized, recipe.transfer)
            layers = adapted.layers if adapted else ()
            if adapted is None and "layer" in axes:  # for now: which they are, statistics will tell
                layers = tuple(origins(model.sizes["layer"], recipe.target["layers"]).tolist())
            rotated = "embed" in (*axes, *grown) and basis == "rotation"
            target = target_model(model, recipe.target, recipe.transfer, rotated=rotated, layers=layers)
            fitting = Fitting(
                recipe=recipe,
                model=model,
                target=target,
                shrunk=axes,
                grown=grown,
                basis=basis,
                writing=self._writing,
            )
            fitted = adaptive(
                model,
                target,
                basis,
                [*axes, *grown] if adapted is None else adapted.axes,
                sequential=fitting.sequential if adapted is None else adapted.sequential,
                averaged=averages(model, target, recipe.transfer),
            )
            if adapted is not None:
                fitted = placed(fitted, adapted.stored)
            notes = notes + fitting.notes(adapted)
            if axes or grown:
                self._cost = fitting.cost
        elif self.rule is not None:
            return self._by_rule(self.rule)
        else:
            target = target_model(model, recipe.target, recipe.transfer)
            notes = notes + _averaged_notes(recipe, model, target)
        if self.optimizer_step is not None:
            notes = [*notes, f"AdamW's moments are carried along, as they are after {self.optimizer_step:,} steps"]
        return make_plan(
            model,
            target,
            recipe.transfer,
            Mesh(tensor=recipe.cluster.tensor, data=recipe.cluster.data),
            modules=self._known,
            source_id=_identified(self.source.provenance()),
            whole_rows=self.source.whole_rows,
            details=self._mallat.details if self._mallat else None,
            fitted=fitted,
            layers=layers,
            notes=notes,
            optimizer_step=self.optimizer_step,
        )

    def _by_rule(self, rule: Rule) -> TransferPlan:
        """The plan by a baseline's operators, of the source or of what the rule makes of it (which need not be there
        yet)."""
        from bot_dist.plan import SourceModule, make_plan, target_model

        model, modules, whole_rows = self._model, self._known, self.source.whole_rows
        identity: dict[str, Any] = {"source": self._opened.provenance()}
        if rule.made is not None:
            model, whole_rows = rule.made, True
            identity["made"] = [MADE_VERSION, rule.name, rule.made.config]
            sizes = {w: model.weight_layers(w) * model.parameter(w).size for w in model.weights}
            modules = {w.name: SourceModule(nbytes=4 * n, dtype="float32") for w, n in sizes.items()}
        transfer = self.recipe.transfer.model_copy(update={"depth": rule.depth})
        wanted = {"layers": self._model.resized(self.recipe.target).sizes["layer"]}
        target = target_model(model, wanted if rule.made else self.recipe.target, transfer, layers=rule.layers)
        return make_plan(
            model,
            target,
            transfer,
            Mesh(tensor=self.recipe.cluster.tensor, data=self.recipe.cluster.data),
            modules=modules,
            source_id=_identified(identity),
            whole_rows=whole_rows,
            fitted=rule.operators,
            layers=rule.layers,
            literal=True,
            exact=rule.exact,
            notes=[*self._notes, f"by the rule of a baseline: {rule.name}"],
        )


def _identified(provenance: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(provenance, sort_keys=True).encode()).hexdigest()[:32]


def open_checked(recipe: Recipe) -> tuple[Source, Model]:
    """The recipe's source and its model, which it is checked to hold. Raises SourceError and FamilyError."""
    from bot_dist.formats.open import open_source

    url = absolute(recipe.source)
    if re.fullmatch(r"[\w.-]+/[\w.-]+", recipe.source) and not Path(url).parent.exists():
        raise SourceError(f"{recipe.source}: no such file or folder; for the hub's model write hf://{recipe.source}")
    source = open_source(url)
    model = model_of(source.config)
    source.check(model)
    return source, model


def known(source: Source, model: Model) -> dict[str, SourceModule]:
    """Facts that a plan must know of the source's weights, by name."""
    from bot_dist.plan import SourceModule

    return {
        w.name: SourceModule(
            nbytes=sum(source.storage_bytes(model.parameter(w, i)) for i in range(model.weight_layers(w))),
            dtype=_dtype(source, model, w),
            learning_rate_factor=source.learning_rate_factor(model.parameter(w)),
        )
        for w in model.weights
    }


def _adapts(recipe: Recipe) -> bool:
    """Whether axes that shrink do so by what is fitted to the source."""
    transfer = recipe.transfer
    if transfer.analysis != "auto":
        return transfer.analysis == "adaptive"
    return bool(transfer.fitted) or not transfer.averaged_for


def _beside(recipe: Recipe, name: str) -> str:
    """A folder that all nodes see: in the run's, or beside a store that was asked for by itself."""
    if recipe.target_url and "://" not in recipe.target_url:
        return f"{absolute(recipe.target_url)}.{name}"
    return str(Path(recipe.output).resolve() / name)


def _averaged_notes(recipe: Recipe, model: Model, target: Model) -> list[str]:
    """Notes for the user where axes shrink by averages that another setting asks for."""
    from bot_dist.plan import shrinking

    asked = recipe.transfer.averaged_for
    if recipe.transfer.analysis != "auto" or not asked:
        return []
    axes = shrinking(model, target, recipe.transfer)
    return [f"{', '.join(axes)}: averaged, not fitted to the source, for {asked} is asked for"] if axes else []


def _with_details(recipe: Recipe, source: Source, model: Model) -> tuple[MallatSource | None, list[str]]:
    """The source with its details, if it is a store that keeps what restores the target's sizes; else what the user
    should know about them."""
    from bot_dist.formats.restored import MallatSource
    from bot_dist.store import CheckpointReader

    details = source.details() if isinstance(source, CheckpointReader) else None
    target = model.resized(recipe.target, recipe.transfer.depth)
    if details is None or target.sizes == model.sizes or not isinstance(source, CheckpointReader):
        return None, []
    axes = details.restored(model, target) if recipe.transfer.use_details else frozenset()
    parted = details.parted(model, axes)
    if not axes or parted:
        why = f": they restore {', '.join(sorted(parted))} together only" if parted else ""
        return None, [f"the details that the source keeps are not used, and not kept in the target{why}"]
    notes = [f"details restore: {', '.join(sorted(axes))}"]
    if source.optimizer_step is not None and recipe.transfer.moments == "auto":
        notes.append("AdamW's moments are not carried along: what is dropped of them is not kept")
    if left := sorted(details.changed(model) - axes):
        notes.append(f"details of {', '.join(left)} are not kept in the target")
    return MallatSource(source, details.along(axes, model), details.restored_model(target, axes)), notes


def _dtype(source: Source, model: Model, weight: Weight) -> str:
    """The dtype that holds this weight of every layer."""
    import torch

    dtypes = [source.dtype(model.parameter(weight, i)) for i in range(model.weight_layers(weight))]
    return str(functools.reduce(torch.promote_types, dtypes)).removeprefix("torch.")
