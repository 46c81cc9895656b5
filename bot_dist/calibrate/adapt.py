"""Transfers adapted to the source, stage by stage: statistics, a fit, the next axis on the model made so far.

A stage's model is the source seen through the plan so far, so nothing is stored between stages but operators; what
comes out is one plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bot_dist.calibrate.fit import Apart, AxisFit, Coordinates, Given, Lifted, Rotation
from bot_dist.calibrate.growing import Lengthened, SpreadCoordinates, SpreadUnits
from bot_dist.calibrate.samples import CalibrationData, Samples
from bot_dist.calibrate.sequential_fit import Sequential
from bot_dist.calibrate.statistics import Statistics, statistics
from bot_dist.calibrate.weight_only import WeightStatistics
from bot_dist.checkpoint import CheckpointReader, write_operators
from bot_dist.checkpoint.manifest import digest
from bot_dist.convert.source import Source
from bot_dist.errors import FamilyError, InputError
from bot_dist.families import Model
from bot_dist.plan import (
    ORDER,
    Fitted,
    SourceModule,
    TransferPlan,
    adaptive,
    averages,
    basis_of,
    growing,
    make_plan,
    operators,
    placed,
    sequential_refused,
    shrinking,
    target_model,
)
from bot_dist.recipe import Recipe
from bot_dist.runtime.crew import Crew
from bot_dist.runtime.transformed import TransformedSource
from bot_dist.sharding import Mesh
from bot_dist.wavelets import OperatorSpec, lifting, origins

OnEvent = Callable[[dict[str, Any]], None]

FIT_VERSION = 9
"""Raised when the same statistics come to give other operators, or other facts about them."""
OPTIONS = {"layer": ("layers",), "embed": ("embed",), "heads": ("heads", "kv_heads"), "mlp": ("mlp",)}
"""The target's options that belong to each axis."""


@dataclass(kw_only=True)
class Adapted:
    """What has been fitted so far."""

    axes: list[str] = field(default_factory=list)
    target: dict[str, int] = field(default_factory=dict)
    stored: dict[str, OperatorSpec] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    """Of the source, that are kept; empty for all."""
    sequential: bool = False
    """Whether what is written into the residual stream is corrected."""
    stages: list[dict[str, Any]] = field(default_factory=list)
    """Facts for the report, in order."""
    seconds: float = 0.0
    """That it took."""

    def stores(self) -> dict[str, str]:
        """Names of the stores that hold the operators, and the digest of each one's manifest."""
        urls = sorted({spec.handle.rpartition("#")[0] for spec in self.stored.values()})
        return {url.rpartition("/")[2]: CheckpointReader(url).manifest.digest for url in urls}


class Adaptation:
    """Fits what a recipe's target needs of a source."""

    def __init__(
        self,
        recipe: Recipe,
        source: Source,
        model: Model,
        modules: Mapping[str, SourceModule],
        data: CalibrationData | None,
        *,
        operators_url: str,
        folder: str,
        on_event: OnEvent,
        moments: bool = False,
    ) -> None:
        self.recipe, self.source, self.model, self.modules, self.data = recipe, source, model, modules, data
        self.operators_url, self.folder, self.on_event = operators_url, folder, on_event
        self.moments = moments
        """Whether AdamW's are carried along."""
        target = model.resized(recipe.target)
        self.basis = basis_of(model, target, recipe.transfer.basis)
        self.grown = growing(model, target, recipe.transfer)
        self.averaged = averages(model, target, recipe.transfer)
        self.ridge = recipe.transfer.ridge
        self.sequential = data is not None and follows(model, recipe)
        shrunk = shrinking(model, target, recipe.transfer)
        self.stages = [*_shrinking_stages(model, recipe, shrunk), *([tuple(self.grown)] if self.grown else [])]
        """The axes that are fitted, in order: those that shrink, then those that grow."""
        self.done = Adapted()

    def run(self) -> Adapted:
        """All stages. Raises InputError where the samples are too few or not finite, PlanError where nothing fits."""
        with Crew(self.recipe.cluster) as self._crew:
            for axes in self.stages:
                self._measure()
                self._stage(axes)
            self._measure()
        return self.done

    def target(self) -> Model:
        """The model as shrunk so far."""
        rotated = "embed" in self.done.axes and self.basis == "rotation"
        options, layers = self.done.target, self.done.layers
        return target_model(self.model, options, self.recipe.transfer, rotated=rotated, layers=layers)

    def plan(self) -> TransferPlan:
        """From the source to the model as shrunk so far."""
        target = self.target()
        return make_plan(
            self.model,
            target,
            self.recipe.transfer,
            Mesh(tensor=1, data=1),
            modules=self.modules,
            source_id=digest(self.source.provenance()),
            whole_rows=self.source.whole_rows,
            fitted=placed(self._table(target, self.done.axes), self.done.stored),
            layers=self.done.layers,
        )

    def _table(self, target: Model, axes: list[str]) -> Fitted:
        return adaptive(self.model, target, self.basis, axes, sequential=self.done.sequential, averaged=self.averaged)

    def _now(self) -> tuple[Source, Model]:
        if not self.done.target:
            return self.source, self.model
        plan = self.plan()
        return TransformedSource(plan, self.source), plan.target

    def _stage(self, axes: tuple[str, ...]) -> None:
        source, model = self._now()
        if self.data is None:
            found: Statistics | WeightStatistics = WeightStatistics(source, model)
        else:
            self._check_rank(axes)
            apart = [axis for axis in axes if axis == "embed" or not self.sequential]
            lifted = self.basis == "permutation" and "embed" not in self.grown and not self.sequential
            needed = _wanted(model, apart, lifted=lifted)
            found = self._statistics(source, model, self.data.fitted, needed, f"for {', '.join(axes)}")
        grows = {*axes} <= {*self.grown}  # the last stage; what grows by other means is there, too
        self.done.target |= self.recipe.target if grows else _options(self.recipe.target, axes)
        facts: dict[str, Any] = {}
        if "layer" in axes:
            self.done.layers = self._kept_layers(found.similarity, self.done.target["layers"])
            facts["layer"] = {"similarity": found.similarity.tolist(), "kept": [*self.done.layers]}
        widths = [axis for axis in axes if axis != "layer"]
        if widths or self.sequential:
            wanted = self.recipe.transfer.lifting
            predicts = wanted == "least-squares" or (wanted == "auto" and not self.sequential)
            given = Given(
                source=source,
                model=model,
                statistics=found,
                ridge=self.ridge,
                predicts=predicts,
                averaged=self.averaged,
            )
            facts |= self._fit_widths(given, widths)
        self.done.stages.append({"axes": [*axes], "sizes": _changed_sizes(model, self.target()), "facts": facts})

    def _kept_layers(self, similarity: np.ndarray, n_target: int) -> tuple[int, ...]:
        """The blocks that change the residual stream most; evenly spread ones where that is asked for, or half of them
        go, or nothing tells them apart; of pairs that become one the first."""
        n, depth = len(similarity), self.recipe.transfer.depth
        if depth == "even" or (depth == "auto" and 2 * n_target <= n) or np.ptp(similarity) == 0:
            return tuple(origins(n, n_target).tolist())
        if depth == "pairs":
            return lifting.paired(1 - similarity, n_target)
        return tuple(sorted(np.argsort(similarity, kind="stable")[:n_target].tolist()))

    def _fit_widths(self, given: Given, axes: list[str]) -> dict[str, Any]:
        """Fit the operators along some axes and store them; the facts of each."""
        every = range(self.model.sizes["layer"])
        kept = self.done.layers or every
        seen = every if given.model.sizes["layer"] == len(every) else kept
        position = {layer: i for i, layer in enumerate(seen) if layer in kept}
        if self.recipe.transfer.depth == "pairs":  # what becomes one block has its operators
            position = {layer: int(np.searchsorted(seen, layer, side="right")) - 1 for layer in every}
        self.done.axes += axes
        self.done.sequential = self.sequential
        target = self.target()
        fits = {axis: self._fit(given, target, axis) for axis in axes}
        fit = self._sequential(given, fits) if self.sequential else Apart(fits)
        wanted = operators(self._table(target, axes))

        def matrix(name: str, layer: int) -> Any:
            spec = wanted[name]
            if spec.per_layer and layer not in position:  # of the source, and left out
                return _any_operator(spec)
            found = given.stored_gain if spec.policy == "constant" else fit.matrix
            return found(name, position[layer] if spec.per_layer else 0)

        key = digest(
            {
                "version": FIT_VERSION,
                "statistics": given.statistics.digest,
                "operators": [repr(spec) for spec in wanted.values()],
                "ridge": given.ridge,
                "predicts": given.predicts,
                "layers": self.done.layers,
                "undone": self.recipe.transfer.keep_details,
                "moments": self.moments,
            }
        )
        url = f"{self.operators_url}/{'-'.join(axes or ['write'])}-{key[:16]}"
        with fit:
            self.done.stored |= write_operators(
                url,
                wanted,
                matrix,
                layers=len(every),
                attempt=key,
                undone=self.recipe.transfer.keep_details,
                moments=self.moments,
                provenance=lambda: {"axes": axes, "source": given.source.provenance(), "facts": fit.facts()},
            )
        # Recorded, not what the fits know now: an earlier attempt may have made the store.
        facts: dict[str, Any] = CheckpointReader(url).manifest.provenance["facts"]
        return facts

    def _check_rank(self, axes: tuple[str, ...]) -> None:
        """Raise InputError where there are fewer tokens than coordinates that are to predict others."""
        assert self.data is not None
        target = self.model.resized(self.recipe.target)
        sizes = {**target.sizes, "heads": target.attention_width}
        known = {**self.model.sizes, "heads": self.model.attention_width}
        for axis in axes:
            wanted = sizes.get(axis, 0)
            kept = axis != "layer" and wanted < known.get(axis, 0)
            if kept and self.data.fitted.n_positions < wanted:
                raise InputError(
                    f"calibrate.tokens: {self.data.fitted.n_positions:,} tokens can't tell {wanted:,} coordinates of "
                    f"'{axis}' apart; use at least {wanted:,}, better ten times as many"
                )

    def _fit(self, given: Given, target: Model, axis: str) -> AxisFit:
        sizes = target.sizes
        if axis in self.grown:
            if axis != "embed":
                return SpreadUnits(given=given, axis=axis, sizes=sizes)
            return (Lengthened if self.basis == "rotation" else SpreadCoordinates)(given=given, n_target=sizes["embed"])
        if axis == "embed":
            return (Rotation if self.basis == "rotation" else Coordinates)(given=given, n_target=sizes["embed"])
        if axis == "mlp":
            return Lifted(given=given, axis="mlp", n_target=sizes["mlp"])
        kv_heads = sizes.get("kv_heads", 0)
        return Lifted(given=given, axis="heads", n_target=target.attention_width, kv_target=kv_heads)

    def _sequential(self, given: Given, fits: Mapping[str, AxisFit]) -> Sequential:
        assert self.data is not None
        return Sequential(
            given,
            fits,
            self.done.layers or tuple(range(self.model.sizes["layer"])),
            samples=self.data.fitted,
            folder=self.folder,
            crew=self._crew,
            on_event=lambda event: self.on_event({"stage": "calibrate", **event, "purpose": "block by block"}),
        )

    def _statistics(
        self, source: Source, model: Model, samples: Samples, wanted: tuple[str, ...], purpose: str
    ) -> Statistics:
        """Of one pass over the samples, whose events tell its ``purpose``."""
        return statistics(
            source,
            model,
            samples,
            wanted,
            self.folder,
            crew=self._crew,
            on_event=lambda event: self.on_event({**event, "purpose": purpose}),
        )

    def _measure(self) -> None:
        """The held-out loss of the model as it is now."""
        if self.data is None or not len(self.data.held_out):
            return
        name = "+".join(self.done.stages[-1]["axes"]) if self.done.stages else "source"
        purpose = f"loss after {name}" if self.done.stages else "loss of source"
        loss = self._statistics(*self._now(), self.data.held_out, (), purpose).loss
        if self.done.stages:
            self.done.stages[-1]["loss"] = loss
        else:
            self.done.stages.append({"axes": [], "sizes": {}, "facts": {}, "loss": loss})
        self.on_event({"stage": "calibrate", "event": "loss", "after": name, "loss": loss})


def _any_operator(spec: OperatorSpec) -> np.ndarray:
    """One that can be undone."""
    if spec.policy == "constant":
        return np.ones(())
    return np.arange(spec.n_target) if spec.selects else np.eye(spec.n_target, spec.n_source)


def _changed_sizes(before: Model, after: Model) -> dict[str, list[int]]:
    """What a stage has shrunk, by axis: size before and after."""
    return {name: [n, after.sizes[name]] for name, n in before.sizes.items() if after.sizes[name] != n}


def _options(target: Mapping[str, int], axes: Iterable[str]) -> dict[str, int]:
    """The target's options that belong to some axes."""
    return {key: target[key] for axis in axes for key in OPTIONS[axis] if key in target}


def follows(source: Model, recipe: Recipe) -> bool:
    """Whether what shrinks is fitted block by block to what the shrunk model computes, if there is a text."""
    if recipe.calibrate.passes != "sequential":
        return False
    return sequential_refused(source, source.resized(recipe.target), recipe.transfer) is None


def _shrinking_stages(model: Model, recipe: Recipe, axes: Sequence[str]) -> list[tuple[str, ...]]:
    """All axes at once, but after blocks that are merged in pairs, which share operators; or one after another, units
    first and blocks last (of the orders tried, the one that loses least), but together where the family has no model
    that is shrunk along one of them alone."""
    first = [axis for axis in axes if axis == "layer" and recipe.transfer.depth == "pairs"]
    others = [axis for axis in axes if axis not in first]
    if recipe.calibrate.passes != "each":
        return [tuple(stage) for stage in (first, others) if stage]
    target = recipe.target
    stages: list[tuple[str, ...]] = []
    done: dict[str, int] = {}
    waiting: list[str] = []
    for axis in (*first, *reversed(others)):
        waiting.append(axis)
        tried = {**done, **_options(target, waiting)}
        try:
            model.resized(tried)
        except FamilyError:
            continue
        stages.append(tuple(waiting))
        done, waiting = tried, []
    return [*stages, tuple(waiting)] if waiting else stages


def _wanted(model: Model, axes: Sequence[str], *, lifted: bool) -> tuple[str, ...]:
    """The statistics that the fits of these axes need; ``lifted``: what maps read of the residual stream, too."""
    found = []
    inner = {axis for name in axes if name != "embed" for axis in ORDER[name]}
    for weight in model.weights:
        reads = {use.axis for use in weight.uses if use.role == "read"}
        of_stream = model.family.norm_of(weight) and not weight.into_residual
        name = weight.name.removesuffix(".weight")
        norm = "embed" in axes and of_stream and not weight.name.endswith(".bias")
        first = lifted and "embed" in axes and model.family.read_with(weight) == name
        if norm or first or (weight.layered and weight.kind == "matrix" and reads & inner):
            found.append(name)
    return tuple(found)
