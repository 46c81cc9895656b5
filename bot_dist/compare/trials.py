"""A comparison: one source, several ways to the same target, all trained alike and measured against scratch."""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import re
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot_dist.baselines import Baseline, baseline
from bot_dist.compare.ranking import at_best, best_rates, markdown, notes, rows, table
from bot_dist.compare.recipe import SCRATCH, SOURCE, UNTIED_SCRATCH, ComparisonRecipe, MethodConfig, PretrainConfig
from bot_dist.compare.result_cache import STATES, Bench, Contents, Plain
from bot_dist.compare.results import ComparisonResult, ResultsTable, SourceFacts, TrialResult
from bot_dist.compare.savings import Curve
from bot_dist.errors import InputError
from bot_dist.events import OnEvent, log
from bot_dist.fit.stages import FIT_VERSION
from bot_dist.formats.open import open_source
from bot_dist.parsing import parse_object
from bot_dist.pipeline.planning import Planning
from bot_dist.pipeline.pretrain import check_inserted
from bot_dist.pipeline.transfer import transfer
from bot_dist.pipeline.versions import versions
from bot_dist.plan import TransferPlan
from bot_dist.recipe import OWN_TEXT, CalibrateConfig, Recipe, TextConfig, TrainConfig
from bot_dist.report.shrinking import ranking_lines
from bot_dist.storage.disk import check_lasting, write_whole
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointReader
from bot_dist.store.manifest import MANIFEST
from bot_dist.train.driver import TrainRun, check
from bot_dist.urls import absolute, label


def compare(recipe: ComparisonRecipe, on_event: OnEvent = log) -> ComparisonResult:
    """Make the source if it has to be made, the target in every way, train all, and write ``comparison.json``, ``.md``
    and ``.png`` into ``recipe.output``. Returns the facts, which are in the JSON.

    What is there and was decided by the same is taken again (see ``bench``). Raises InputError, before anything is
    trained, for what can be seen to be wrong with the recipe, its texts and the plans of its methods.
    """
    from bot_dist.report.plots import comparison_curves

    caches = {"calibrate.folder": recipe.calibrate.folder, "train.token_cache": recipe.train.token_cache}
    check_lasting({"output": recipe.output, **caches})
    output = Path(recipe.output).resolve()
    bench = Bench(output, recipe.cluster, on_event)
    source = recipe.source
    if recipe.pretrain is not None:
        source = _untrained(recipe.pretrain, output / "untrained")
    assert source is not None, "a recipe names a source, or one to train"
    drafts = _trials(recipe, source, recipe.seeds[0])
    check(recipe.train, {trial.name: trial.plan.target.config for trial in drafts}, source)
    for trial in drafts:
        if not trial.scratch and recipe.methods[trial.method].train.inserted is not None:
            check_inserted(trial.recipe, trial.plan.inserted_layers)
        bench.key(trial)  # reads the texts
    pretrained = None
    if recipe.pretrain is not None:
        (pretrained,) = bench.results([SourceTraining(train=recipe.pretrain.train, config_url=source)])
        source = _last_state(pretrained) or pretrained["saved_url"]
    (measured,) = bench.results([SourceLoss(train=drafts[0].train, url=source)])
    loss = measured["held_out"][0]["loss"]
    results, rates = _trained(bench, recipe, source)
    chosen = at_best(results, rates)
    headings, lines = table(rows(chosen, recipe.target_loss), tuned=len(recipe.rates) > 1)
    facts = ComparisonResult(
        recipe=recipe.public(),
        source=SourceFacts(
            url=label(source),
            held_out_loss=loss,
            held_out_accuracy=measured["held_out"][0]["accuracy"],
            pretrained=pretrained,
        ),
        results=tuple(results),
        learning_rates=rates,
        table=ResultsTable(headings=headings, lines=lines),
        notes=(*notes(chosen, recipe.rates), *(r.diverged for r in results if r.diverged)),
        versions=versions(),
        command=label(" ".join(sys.argv)),
        machine=machine(),
        date=time.strftime("%Y-%m-%d %H:%M:%S"),
    )
    write_whole(output / "comparison.json", json.dumps(facts.to_json(), indent=1))
    write_whole(output / "comparison.md", markdown(headings, lines))
    curves = comparison_curves(
        [r.to_json() for r in chosen], loss, per="token" if recipe.train.images is None else "image"
    )
    write_whole(output / "comparison.png", curves)
    return facts


@dataclass(frozen=True, kw_only=True)
class SourceTraining:
    """The source, trained from the family's own initialisation."""

    train: TrainConfig
    config_url: str
    """Its tokenizer lies beside it."""
    name: str = SOURCE

    @property
    def tokenizer_url(self) -> str:
        return str(Path(self.config_url).parent)

    def decides(self, contents: Contents) -> dict[str, Any]:
        return {"model": self._config()}

    def _config(self) -> dict[str, Any]:
        return parse_object(Path(self.config_url).read_bytes(), self.config_url)

    def begin(self, folder: str, start: str) -> TrainRun:
        config, url = self._config(), f"{folder}/source.zarr"
        return TrainRun(name=self.name, config=config, url=None, steps=self.train.steps, save_url=url, overwrite=True)

    def result(self, start: str, training: Plain) -> Plain:
        return training


@dataclass(frozen=True, kw_only=True)
class SourceLoss:
    """The source, measured on the text that its targets are trained on."""

    train: TrainConfig
    url: str
    name: str = SOURCE

    @property
    def tokenizer_url(self) -> str:
        return self.url

    def decides(self, contents: Contents) -> dict[str, Any]:
        return {"source": open_source(absolute(self.url)).provenance()}

    def begin(self, folder: str, start: str) -> TrainRun:
        return TrainRun(name=self.name, config=open_source(absolute(self.url)).config, url=self.url, steps=0)

    def result(self, start: str, training: Plain) -> Plain:
        return training


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One start of the target, and its training."""

    method: str
    recipe: Recipe
    """Recipe of the trial's transfer and training; its output is where the job's folder will be."""
    plan: TransferPlan
    adapts: bool
    """Whether the plan still lacks the operators that are fitted to the calibration data."""
    makes: bool
    """Whether a baseline makes what the plan reads, from the calibration data or what is trained on."""
    baseline: Baseline | None
    calibration_flops: float
    """FLOPs that fitting takes, at most."""
    scratch: bool = False
    """Whether it starts from the family's own initialisation; the plan says of which model."""

    @property
    def name(self) -> str:
        return f"{self.method}, seed {self.train.seed}, learning rate {self.train.learning_rate:g}"

    @property
    def train(self) -> TrainConfig:
        return self.recipe.train

    def at(self, learning_rate: float) -> Trial:
        """The same, trained at another learning rate."""
        train = self.train.model_copy(update={"learning_rate": learning_rate})
        return dataclasses.replace(self, recipe=self.recipe.model_copy(update={"train": train}))

    @property
    def tokenizer_url(self) -> str:
        """Beside the configuration of a source that is not trained yet."""
        return self.recipe.source.removesuffix("/config.json")

    def decides(self, contents: Contents) -> dict[str, Any]:
        model = self.plan.target.config
        if self.scratch:
            return {"model": model}
        decisive: dict[str, Any] = {"source": self.plan.source_id, "model": model, "plan": self.plan.digest}
        if self.adapts:
            decisive["fit"] = FIT_VERSION
            decisive["transfer"] = self.recipe.transfer.model_dump()
        if self.makes:
            train = self.train.model_dump(include={"batch", "context", "seed", "held_out"})
            decisive["learned on"] = {**train, "data": contents(self.train)}
        if self.adapts or self.makes:
            calibrate = self.recipe.calibrate
            decisive["calibrate"] = {
                **calibrate.model_dump(exclude={"text", "column", "document_limit", "folder", "allow_mismatch"}),
                "text": calibrate.text == OWN_TEXT or (contents(calibrate) if calibrate.text else None),
            }
            if self.train.images is not None:
                decisive["images"] = contents(self.train)
        return decisive

    def begin(self, folder: str, start: str) -> TrainRun:
        run = TrainRun(
            name=self.name, config=self.plan.target.config, url=None, steps=self.train.steps, may_diverge=True
        )
        if self.scratch:
            return run
        recipe = self._transfer(start)
        if not Storage(recipe.transferred_url).exists(MANIFEST):  # it may be there for another learning rate
            transfer(recipe, baseline=self.baseline)
        made = CheckpointReader(recipe.transferred_url)  # tells of which layers it is made, a draft of the plan can't
        inserted = tuple(made.manifest.provenance["plan"]["inserted_layers"])
        return dataclasses.replace(run, config=made.config, url=recipe.transferred_url, inserted=inserted)

    def result(self, start: str, training: Plain) -> Plain:
        model = self.plan.target
        context = model.tokens_per_sample(self.train.context)
        transfer = {} if self.scratch else self._transferred(start)
        curve = Curve(
            steps=[held_out["step"] for held_out in training["held_out"]],
            losses=[held_out["loss"] for held_out in training["held_out"]],
            flops_per_step=float(training["tokens_per_step"] * model.training_flops_per_token(context)),
            flops_before=self.calibration_flops + transfer.get("made", {}).get("flops", 0.0),
        )
        kept = TrialResult(
            method=self.method,
            seed=self.train.seed,
            learning_rate=self.train.learning_rate,
            scratch=self.scratch,
            n_parameters=model.n_parameters,
            notes=[] if self.scratch else [*self.plan.notes, *ranking_lines(transfer.get("calibrate", ()))],
            curve=curve,
            accuracy=None if training["diverged"] else training["held_out"][-1]["accuracy"],
            diverged=training["diverged"],
            transfer=transfer,
            training=training,
        )
        return kept.to_json()

    def _transfer(self, start: str) -> Recipe:
        return self.recipe.model_copy(update={"output": start})

    def _transferred(self, start: str) -> Plain:
        """The report of the transfer, as its store keeps it."""
        report: Plain = CheckpointReader(self._transfer(start).transferred_url).manifest.provenance["transfer"]
        return report


def _trained(bench: Bench, recipe: ComparisonRecipe, source: str) -> tuple[list[TrialResult], dict[str, float]]:
    """All results, and by method its best learning rate: found with the first seed, used with the others."""

    def results(trials: list[Trial]) -> list[TrialResult]:
        named = ((trial.name, kept) for trial, kept in zip(trials, bench.results(trials), strict=True))
        return [TrialResult.from_json(kept, f"the result of {name}") for name, kept in named]

    first, *others = recipe.seeds
    starts = _trials(recipe, source, first)
    tuned = results([trial.at(rate) for rate in recipe.rates for trial in starts])
    rates = best_rates(tuned)
    trials = [trial.at(rates[trial.method]) for seed in others for trial in _trials(recipe, source, seed)]
    return tuned + results(trials), rates


def _last_state(pretrained: Plain) -> str | None:
    """The source with AdamW's moments, where ``pretrain.train.save_every`` had its state saved at the end."""
    from bot_dist.train.state import state_name

    url = Path(pretrained["saved_url"]).parent / STATES / state_name(pretrained["steps"])
    return str(url) if Storage(str(url)).exists(MANIFEST) else None


def _trials(recipe: ComparisonRecipe, source: str, seed: int) -> list[Trial]:
    """The trainings of the target with a seed: from scratch, head tied and not if the methods give both, then the
    methods. Everything is planned; raises what planning raises."""
    methods = [_trial(recipe, source, name, seed) for name in recipe.methods_with(seed)]
    of_target = [trial for trial in methods if recipe.methods[trial.method].target is None]
    if not of_target:  # they are measured against scratch all the same
        of_target = [_trial(recipe, source, recipe.of_target[0], seed)]
    by_tied = {trial.plan.target.tied: trial for trial in of_target}
    train = recipe.train.model_copy(update={"seed": seed})
    scratch = [
        dataclasses.replace(
            by_tied[tied],
            method=SCRATCH if tied or not by_tied[tied].plan.source.tied else UNTIED_SCRATCH,
            recipe=by_tied[tied].recipe.model_copy(update={"train": train}),
            baseline=None,
            calibration_flops=0.0,
            scratch=True,
        )
        for tied in sorted(by_tied, reverse=True)
    ]
    return scratch + methods


def _trial(recipe: ComparisonRecipe, source: str, name: str, seed: int) -> Trial:
    method = recipe.methods[name]
    cold = {} if "moments" in method.transfer.model_fields_set else {"moments": "none"}  # as others begin
    own = {key: value for key, value in method.train if value is not None}
    tokens = recipe.train.token_cache or str(Path(recipe.output).resolve() / "tokens")
    made = Recipe(
        source=source,
        output=recipe.output,
        target=recipe.target if method.target is None else method.target,
        transfer=method.transfer.model_copy(update=cold),
        cluster=recipe.cluster,
        calibrate=_calibration(recipe, method),
        train=recipe.train.model_copy(update={"token_cache": tokens, **own, "seed": seed}),
        overwrite=True,
    )
    rule = baseline(method.baseline) if method.baseline is not None else None
    planning = Planning(made, rule)
    if any(module.random for module in planning.draft.modules):  # else all seeds have one start
        made = made.model_copy(update={"transfer": method.transfer.model_copy(update={"seed": seed, **cold})})
        planning = Planning(made, rule)
    return Trial(
        method=name,
        recipe=made,
        plan=planning.draft,
        adapts=planning.adapts,
        makes=planning.rule is not None and planning.rule.make is not None,
        baseline=rule,
        calibration_flops=planning.calibration_flops,
    )


def _calibration(recipe: ComparisonRecipe, method: MethodConfig) -> CalibrateConfig:
    own = {key: getattr(method.calibrate, key) for key in method.calibrate.model_fields_set}
    if recipe.calibrate.folder is None:  # of all methods
        own.setdefault("folder", str(Path(recipe.output).resolve() / "calibration"))
    if not (recipe.calibrate.text or method.calibrate.text):
        own |= {key: getattr(recipe.train, key) for key in TextConfig.model_fields}
    return recipe.calibrate.model_copy(update=own)


def _untrained(pretrain: PretrainConfig, folder: Path) -> str:
    """Write configuration and tokenizer of the source that is to be trained; the URL of the configuration."""
    from bot_dist.compare.untrained import family_of, labels, untrained_config, vocabulary
    from bot_dist.data.byte_tokenizer import save_byte_tokenizer
    from bot_dist.formats.beside import beside
    from bot_dist.formats.tokenizer import load_tokenizer, save_tokenizer

    objective = family_of(pretrain.model_type).objective
    Storage(str(folder)).remove("config.json", *beside(str(folder)).names("tokenizer"))  # of another tokenizer
    if objective == "image":
        from bot_dist.data.images import open_images

        if pretrain.train.images is None:
            raise InputError(
                f"pretrain.train.images: {pretrain.model_type} is trained on images; name a folder of them"
            )
        fields = labels(open_images(absolute(pretrain.train.images), pretrain.train.image_limit).classes)
    else:
        if pretrain.tokenizer == "bytes":
            save_byte_tokenizer(folder, masks=objective == "masked")
        else:
            save_tokenizer(absolute(pretrain.tokenizer), str(folder))
        fields = vocabulary(load_tokenizer(str(folder)))
    config = untrained_config(pretrain.model_type, pretrain.sizes, pretrain.fields, fields)
    path = folder / "config.json"
    write_whole(path, json.dumps(config, indent=1))
    return str(path)


def machine() -> str:
    """Processor, cores and system, for people."""
    cpus = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.*)$", cpus.read_text(), re.MULTILINE) if cpus.is_file() else []
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {platform.platform()}"
