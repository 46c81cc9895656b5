"""Transfers adapted to the source, stage by stage: statistics, a fit, the next axis on the model made so far.

A stage's model is the source seen through the plan so far, so nothing is stored between stages but operators; what
comes out is one plan.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from bot_dist.data.calibration_samples import CalibrationData, Samples
from bot_dist.errors import CalibrationError
from bot_dist.events import OnEvent
from bot_dist.events.calibrate import LossMeasured
from bot_dist.execute import ALONE, Executor
from bot_dist.execute.lazy_source import TransformedSource
from bot_dist.fit.axis_fits import Apart, AxisFit, ByReader, Coordinates, Given, Lifted, Rotation
from bot_dist.fit.candidates import (
    Candidate,
    Ranking,
    best_of,
    candidates,
    measurable,
    options_of,
    stages_of,
    wanted_of,
)
from bot_dist.fit.growing import Lengthened, SpreadCoordinates, SpreadUnits
from bot_dist.fit.sequential_fit import Sequential
from bot_dist.fit.stage_facts import CandidateResult, StageFacts
from bot_dist.fit.statistics import Statistics, statistics
from bot_dist.fit.suitable import check_understood
from bot_dist.fit.weight_only import WeightStatistics
from bot_dist.formats.source import Source
from bot_dist.model import Model, Weight
from bot_dist.operators import Fitted, lifting, origins, spec_to_json
from bot_dist.plan import (
    ORDER,
    FittedName,
    OperatorTable,
    SourceModule,
    TransferPlan,
    adaptive,
    averages,
    basis_of,
    growing,
    make_plan,
    operators,
    owner_of,
    placed,
    shrinking,
    target_model,
)
from bot_dist.recipe import Recipe
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointReader, OperatorWriter, stored_operators
from bot_dist.store.manifest import MANIFEST, digest
from bot_dist.tensors import Mesh

FIT_VERSION = 10
"""Raised when the same statistics come to give other operators, or other facts about them."""


@dataclass(kw_only=True)
class Adapted:
    """The operators that have been fitted so far, and the target and facts that belong to them."""

    axes: list[str] = field(default_factory=list)
    target: dict[str, int] = field(default_factory=dict)
    stored: dict[str, Fitted] = field(default_factory=dict)
    layers: tuple[int, ...] = ()
    """Layers of the source that are kept; empty for all."""
    sequential: bool = False
    """Whether what is written into the residual stream is corrected."""
    stages: list[StageFacts] = field(default_factory=list)
    """Facts for the report, in order."""
    seconds: float = 0.0
    """Seconds that the fit took."""

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
        executor: Executor = ALONE,
        moments: bool = False,
    ) -> None:
        self.recipe, self.source, self.model, self.modules, self.data = recipe, source, model, modules, data
        self.operators_url, self.folder, self.executor, self.on_event = operators_url, folder, executor, on_event
        self.moments = moments
        """Whether AdamW's moments are carried along."""
        target = model.resized(recipe.target)
        self.basis = basis_of(model, target, recipe.transfer.basis)
        self.grown = growing(model, target, recipe.transfer)
        self.averaged = averages(model, target, recipe.transfer)
        self.ridge = recipe.transfer.ridge
        shrunk = shrinking(model, target, recipe.transfer)
        self.stages = [*stages_of(model, recipe, shrunk), *([tuple(self.grown)] if self.grown else [])]
        """The axes that are fitted, in order: those that shrink, then those that grow."""
        self.done = Adapted()
        self._ranks = data is not None and len(data.held_out) > 0 and measurable(model)

    def run(self) -> Adapted:
        """Fit all stages. Raises InputError where the source does not understand the samples or they are not finite,
        PlanError where nothing fits."""
        self._measure()
        for axes in self.stages:
            self._stage(axes)
        return self.done

    def target(self) -> Model:
        """The model as shrunk so far."""
        rotated = "embed" in self.done.axes and self.basis == "rotation"
        options, layers = self.done.target, self.done.layers
        return target_model(self.model, options, self.recipe.transfer, rotated=rotated, layers=layers)

    def plan(self) -> TransferPlan:
        """The plan from the source to the model as shrunk so far."""
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

    def _table(self, target: Model, axes: list[str]) -> OperatorTable:
        return adaptive(self.model, target, self.basis, axes, sequential=self.done.sequential, averaged=self.averaged)

    def _now(self) -> tuple[Source, Model]:
        if not self.done.target:
            return self.source, self.model
        plan = self.plan()
        return TransformedSource(plan, self.source), plan.target

    def _stage(self, axes: tuple[str, ...]) -> None:
        """Fit some axes, in whichever of the ways that are tried loses least."""
        tried = candidates(self.model, self.recipe, axes, data=self.data is not None, ranks=self._ranks)
        source, model = self._now()
        stage_statistics = self._stage_statistics(source, model, axes, tried)
        before = self.done

        def fit(candidate: Candidate) -> Adapted:
            self.done = copy.deepcopy(before)
            given = Given(
                source=source,
                model=model,
                statistics=stage_statistics,
                ridge=self.ridge,
                predicts=candidate.predicts,
                averaged=self.averaged,
            )
            self._fit_stage(given, axes, candidate)
            self._measure(f", {candidate.name}" if len(tried) > 1 else "")
            return self.done

        if len(tried) > 1:
            self._rank(tried, fit, self._ranking(stage_statistics, axes, tried))
        else:
            fit(tried[0])

    def _rank(self, tried: Sequence[Candidate], fit: Callable[[Candidate], Adapted], ranking: Ranking) -> None:
        """Be done with the best of several, which is known where it was found out before."""
        made: dict[str, Adapted] = {}
        if (results := ranking.load()) is None:
            results, errors = [], []
            for candidate in tried:
                started, loss = time.perf_counter(), None
                try:
                    made[candidate.name] = fit(candidate)
                    loss = made[candidate.name].stages[-1].loss
                except CalibrationError as error:
                    errors.append(error)
                seconds, failed = time.perf_counter() - started, "" if loss is not None else str(errors[-1])
                results.append(CandidateResult(name=candidate.name, loss=loss, seconds=seconds, failed=failed))
            if len(errors) == len(tried):
                raise errors[0]
            ranking.save(results)
        chosen = best_of(results)
        (best,) = (candidate for candidate in tried if candidate.name == chosen)
        self.done = made[best.name] if best.name in made else fit(best)
        self.done.stages[-1] = replace(self.done.stages[-1], candidates=tuple(results), chosen=chosen)

    def _ranking(
        self, stage_statistics: Statistics | WeightStatistics, axes: tuple[str, ...], tried: Sequence[Candidate]
    ) -> Ranking:
        """The file of a stage's ranking, named by all that decides it."""
        assert self.data is not None
        recipe = self.recipe
        key = digest(
            {
                "version": FIT_VERSION,
                "statistics": stage_statistics.digest,
                "held_out": self.data.held_out.digest,
                "source": digest(self.source.provenance()),
                "stores": self.done.stores(),
                "layers": self.done.layers,
                "target": recipe.target,
                "axes": axes,
                "transfer": recipe.transfer.model_dump(),
                "candidates": [candidate.name for candidate in tried],
            }
        )
        return Ranking(Path(self.folder) / f"ranking-{key}.json")

    def _stage_statistics(
        self, source: Source, model: Model, axes: tuple[str, ...], tried: Sequence[Candidate]
    ) -> Statistics | WeightStatistics:
        """The statistics that the fits of a stage are made from."""
        if self.data is None:
            return WeightStatistics(source, model)
        permuted = self.basis == "permutation" and "embed" not in self.grown
        needed = wanted_of(model, axes, tried, permuted=permuted)
        stage_statistics = self._statistics(source, model, self.data.fitted, needed, f"for {', '.join(axes)}")
        if not self.done.stages:  # nothing was held out that the source was measured on
            self._check_understood(stage_statistics.loss)
        return stage_statistics

    def _fit_stage(self, given: Given, axes: tuple[str, ...], candidate: Candidate) -> None:
        grows = {*axes} <= {*self.grown}  # the last stage; what grows by other means is there, too
        self.done.target |= self.recipe.target if grows else options_of(self.recipe.target, axes)
        facts: dict[str, Any] = {}
        if "layer" in axes:
            similarity = given.statistics.similarity
            self.done.layers = self._kept_layers(similarity, self.done.target["layers"])
            facts["layer"] = {"similarity": similarity.tolist(), "kept": [*self.done.layers]}
        widths = [axis for axis in axes if axis != "layer"]
        if widths or candidate.sequential:
            facts |= self._fit_widths(given, widths, sequential=candidate.sequential)
        sizes = _changed_sizes(given.model, self.target())
        self.done.stages.append(StageFacts(axes=axes, sizes=sizes, facts=facts))

    def _kept_layers(self, similarity: np.ndarray, n_target: int) -> tuple[int, ...]:
        """The blocks that change the residual stream most; evenly spread ones where that is asked for, or half of them
        go, or nothing tells them apart; of pairs that become one the first."""
        n, depth = len(similarity), self.recipe.transfer.depth
        if depth == "even" or (depth == "auto" and 2 * n_target <= n) or np.ptp(similarity) == 0:
            return tuple(origins(n, n_target).tolist())
        if depth == "pairs":
            return lifting.paired(1 - similarity, n_target)
        return tuple(sorted(np.argsort(similarity, kind="stable")[:n_target].tolist()))

    def _fit_widths(self, given: Given, axes: list[str], *, sequential: bool) -> dict[str, Any]:
        """Fit the operators along some axes and store them; the facts of each."""
        every = range(self.model.sizes["layer"])
        kept = self.done.layers or every
        seen = every if given.model.sizes["layer"] == len(every) else kept
        position = {layer: i for i, layer in enumerate(seen) if layer in kept}
        if self.recipe.transfer.depth == "pairs":  # what becomes one block has its operators
            position = {layer: int(np.searchsorted(seen, layer, side="right")) - 1 for layer in every}
        self.done.axes += axes
        self.done.sequential = sequential
        target = self.target()
        fits = {axis: self._fit(given, target, axis) for axis in axes}
        fit = self._sequential(given, fits) if sequential else Apart(fits)
        wanted = operators(self._table(target, axes))

        def matrix(name: str, layer: int) -> Any:
            spec = wanted[name]
            if spec.per_layer and layer not in position:  # of the source, and left out
                return spec.placeholder
            place, of = position[layer] if spec.per_layer else 0, FittedName.parse(name)
            return given.stored_gain(of.owner, place) if spec.takes_nothing else fit.matrix(of, place)

        key = digest(
            {
                "version": FIT_VERSION,
                "statistics": given.statistics.digest,
                "operators": {name: spec_to_json(spec) for name, spec in wanted.items()},
                "ridge": given.ridge,
                "predicts": given.predicts,
                "layers": self.done.layers,
                "undone": self.recipe.transfer.keep_details,
                "moments": self.moments,
            }
        )
        url = f"{self.operators_url}/{'-'.join(axes or ['write'])}-{key[:16]}"
        if not Storage(url).exists(MANIFEST):  # else an earlier attempt has made them
            undone, moments = self.recipe.transfer.keep_details, self.moments
            writer = OperatorWriter(url, wanted, layers=len(every), attempt=key, undone=undone, moments=moments)
            with fit:
                fit.run()
                for name, layer in writer.places():
                    writer.write(name, layer, matrix(name, layer))
                writer.commit({"axes": axes, "source": given.source.provenance(), "facts": fit.facts()})
        self.done.stored |= stored_operators(url, wanted, key)
        facts: dict[str, Any] = CheckpointReader(url).manifest.provenance["facts"]
        return facts

    def _fit(self, given: Given, target: Model, axis: str) -> AxisFit:
        sizes, rotated = target.sizes, self.basis == "rotation"
        if axis == "embed":
            if axis in self.grown:
                return (Lengthened if rotated else SpreadCoordinates)(given=given, n_target=sizes["embed"])
            return (Rotation if rotated else Coordinates)(given=given, n_target=sizes["embed"])

        def of(reader: Weight) -> AxisFit:
            if axis in self.grown:
                return SpreadUnits(given=given, axis=axis, reader=reader, sizes=sizes)
            if axis == "mlp":
                return Lifted(given=given, axis=axis, reader=reader, n_target=sizes["mlp"])
            kv_heads = sizes.get("kv_heads", 0)
            return Lifted(given=given, axis=axis, reader=reader, n_target=target.attention_width, kv_target=kv_heads)

        return ByReader(fits={owner_of(reader.name): of(reader) for reader in given.model.readers(*ORDER[axis])})

    def _sequential(self, given: Given, fits: Mapping[str, AxisFit]) -> Sequential:
        assert self.data is not None
        return Sequential(
            given,
            fits,
            self.done.layers or tuple(range(self.model.sizes["layer"])),
            samples=self.data.fitted,
            folder=self.folder,
            executor=self.executor,
            on_event=self.on_event,
        )

    def _statistics(
        self, source: Source, model: Model, samples: Samples, wanted: tuple[str, ...], purpose: str
    ) -> Statistics:
        """Statistics of one pass over the samples, whose events tell its ``purpose``."""
        return statistics(
            source,
            model,
            samples,
            wanted,
            self.folder,
            executor=self.executor,
            purpose=purpose,
            on_event=self.on_event,
        )

    def _measure(self, how: str = "") -> None:
        """The held-out loss of the model as it is now; ``how`` its last stage was fitted is part of its name."""
        if self.data is None or not len(self.data.held_out):
            return
        name = "+".join(self.done.stages[-1].axes) + how if self.done.stages else "source"
        purpose = f"loss after {name}" if self.done.stages else "loss of source"
        loss = self._statistics(*self._now(), self.data.held_out, (), purpose).loss
        if self.done.stages:
            self.done.stages[-1] = replace(self.done.stages[-1], loss=loss)
        else:
            self._check_understood(loss)
            self.done.stages.append(StageFacts(axes=(), sizes={}, facts={}, loss=loss))
        self.on_event(LossMeasured(after=name, loss=loss))

    def _check_understood(self, loss: float | None) -> None:
        assert self.data is not None
        if not self.recipe.calibrate.allow_mismatch:
            check_understood(loss, self.model, self.source.url, self.data.named)


def _changed_sizes(before: Model, after: Model) -> dict[str, tuple[int, int]]:
    """Axes whose size a stage has changed: size before and after, by axis."""
    return {name: (n, after.sizes[name]) for name, n in before.sizes.items() if after.sizes[name] != n}
