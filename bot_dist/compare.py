"""A comparison: one source, several ways to the same target, all trained alike and measured against scratch.

What is done is kept in the output folder under a key of everything that decides it, so that a comparison goes on where
it was left, and one with other methods takes again what is there.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bot_dist import pipeline
from bot_dist.checkpoint import CheckpointReader
from bot_dist.convert.open import open_source
from bot_dist.convert.storage import read_file, resolve_all
from bot_dist.evaluate.baselines import BASELINES, Baseline
from bot_dist.evaluate.comparison import SCRATCH, ComparisonRecipe, PretrainConfig
from bot_dist.evaluate.ranking import markdown, notes, rows, table
from bot_dist.evaluate.savings import TRAINING, Curve
from bot_dist.families import model_of
from bot_dist.plan import TransferPlan
from bot_dist.planning import OnEvent, Planning
from bot_dist.recipe import ClusterConfig, Recipe, TrainConfig
from bot_dist.train.driver import TrainRun, check, pretrain
from bot_dist.urls import absolute, label

Result = dict[str, Any]


def compare(recipe: ComparisonRecipe, on_event: OnEvent = pipeline.ignore) -> dict[str, Any]:
    """Make the source if it has to be made, the target in every way, train all, and write ``comparison.json``, ``.md``
    and ``.png`` into ``recipe.output``. Returns what is in the JSON.

    Raises InputError, before anything is trained, for what can be seen to be wrong with the recipe, the plans of its
    methods and its texts.
    """
    from bot_dist.evaluate.plots import comparison_curves
    from bot_dist.runtime.cluster import connected

    output = Path(recipe.output).resolve()
    bench = Bench(output=output, cluster=recipe.cluster, on_event=on_event)
    source = recipe.source if recipe.pretrain is None else _untrained(recipe.pretrain, output / "untrained")
    assert source is not None, "a recipe without a source to take has one to train"
    check(recipe.train, {trial.name: trial.plan.target.config for trial in _trials(recipe, source)})
    with connected(recipe.cluster, recipe.workers):
        pretrained = None
        if recipe.pretrain is not None:
            pretrained = bench.source(recipe.pretrain.train, source)
            source = pretrained["saved_url"]
        trials = _trials(recipe, source)
        loss = bench.source_loss(source, trials[0].recipe.train)
        results = [bench.trial(trial) for trial in trials]
    headings, lines = table(rows(results, recipe.target_loss))
    facts = {
        "recipe": recipe.public(),
        "source": {"url": label(source), "held_out_loss": loss, "pretrained": pretrained},
        "results": results,
        "table": {"headings": headings, "lines": lines},
        "notes": notes(results),
        "versions": pipeline.versions(),
        "command": label(" ".join(sys.argv)),
        "machine": machine(),
        "date": time.strftime("%Y-%m-%d %H:%M:%S"),
    }
    (output / "comparison.json").write_text(json.dumps(facts, indent=1))
    (output / "comparison.md").write_text(markdown(headings, lines))
    (output / "comparison.png").write_bytes(comparison_curves(results, loss))
    return facts


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One start of the target, and its training."""

    method: str
    recipe: Recipe
    """Of its transfer and its training."""
    plan: TransferPlan
    baseline: Baseline | None = None
    scratch: bool = False
    """Whether it starts from the family's own initialisation, and the plan only says of which model."""

    @property
    def seed(self) -> int:
        return self.recipe.train.seed

    @property
    def name(self) -> str:
        return self.method if self.seed == 0 else f"{self.method}, seed {self.seed}"

    def decides(self) -> dict[str, Any]:
        """All that its result depends on."""
        recipe = self.recipe
        start = None
        if not self.scratch:
            transfer = recipe.transfer.model_dump(exclude={"memory_limit"})
            calibrate = {**recipe.calibrate.model_dump(exclude={"text"}), "text": _text(recipe.calibrate.text)}
            start = {"plan": self.plan.digest, "transfer": transfer, "calibrate": calibrate}
        model = self.plan.target.config
        return {"source": self.plan.source_id, "model": model, "start": start, "train": _decisive(recipe.train)}

    def flops_before(self, report: Mapping[str, Any]) -> float:
        """Of the passes over the calibration text, from what the transfer reported. What solves and applies operators
        is not counted: it does not grow with tokens."""
        config = self.recipe.calibrate
        passes = sum(bool(stage["axes"]) for stage in report.get("calibrate", ()))
        return float(passes * config.tokens * self.plan.source.flops_per_token(config.context))


def _trials(recipe: ComparisonRecipe, source: str) -> list[Trial]:
    """All trainings of the target: per seed from scratch, head tied and not if the methods give both, then the methods.
    Everything is planned; raises what planning raises."""
    trials = []
    for seed in recipe.seeds:
        methods = [_trial(recipe, source, name, seed) for name in recipe.methods]
        by_tied = {trial.plan.target.tied: trial for trial in methods}
        for tied, trial in sorted(by_tied.items(), reverse=True):
            name = SCRATCH if tied or len(by_tied) == 1 else f"{SCRATCH}, head untied"
            trials.append(dataclasses.replace(trial, method=name, baseline=None, scratch=True))
        trials += methods
    return trials


def _trial(recipe: ComparisonRecipe, source: str, name: str, seed: int) -> Trial:
    method = recipe.methods[name]
    made = Recipe(
        source=source,
        output=str(Path(recipe.output).resolve() / "trials" / f"{_slug(name)}-{seed}"),
        target=recipe.target,
        transfer=method.transfer.model_copy(update={"seed": seed}),
        cluster=recipe.cluster,
        calibrate=recipe.calibrate.model_copy(update={"text": recipe.calibrate.text or recipe.train.text}),
        train=recipe.train.model_copy(update={"seed": seed}),
        overwrite=True,
    )
    baseline = BASELINES[method.baseline] if method.baseline is not None else None
    return Trial(method=name, recipe=made, plan=Planning(made, baseline).draft, baseline=baseline)


def _untrained(pretrain: PretrainConfig, folder: Path) -> str:
    """Write configuration and tokenizer of the source that is to be trained; the URL of the configuration."""
    from bot_dist.convert.byte_tokenizer import save_byte_tokenizer
    from bot_dist.convert.tokenizer import load_tokenizer, save_tokenizer
    from bot_dist.evaluate.untrained import untrained_config

    folder.mkdir(parents=True, exist_ok=True)
    if pretrain.tokenizer == "bytes":
        save_byte_tokenizer(folder)
    else:
        save_tokenizer(absolute(pretrain.tokenizer), str(folder))
    config = untrained_config(pretrain.model_type, pretrain.sizes, pretrain.fields, load_tokenizer(str(folder)))
    path = folder / "config.json"
    path.write_text(json.dumps(config, indent=1))
    return str(path)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Where trainings run, one after the other; results are kept as soon as they are there."""

    output: Path
    cluster: ClusterConfig
    on_event: OnEvent

    def source(self, train: TrainConfig, config_url: str) -> Result:
        """The source, trained from the family's own initialisation."""
        folder = Path(config_url).parent
        config = json.loads(Path(config_url).read_text())
        files = {path.name: _sha256(path.read_bytes()) for path in folder.iterdir()}
        decides = {"files": files, "train": _decisive(train)}
        url = str(self.output / f"source-{_key(decides)}.zarr")
        run = TrainRun(name="source", config=config, url=None, steps=train.steps, save_url=url, overwrite=True)
        return self._kept("source", decides, lambda: self._train(run, train, str(folder)))

    def source_loss(self, url: str, train: TrainConfig) -> float:
        """The source's held-out loss on the text that the target is trained on."""
        source = open_source(absolute(url))
        run = TrainRun(name="source", config=source.config, url=url, steps=0)
        decides = {"source": source.provenance(), "train": _decisive(train)}
        loss: float = self._kept("source-loss", decides, lambda: self._train(run, train, url))["held_out"][0]["loss"]
        return loss

    def trial(self, trial: Trial) -> Result:
        """A start of the target, made and trained."""
        return self._kept(f"{_slug(trial.method)}-{trial.seed}", trial.decides(), lambda: self._tried(trial))

    def _tried(self, trial: Trial) -> Result:
        url, report, model = None, {}, trial.plan.target
        if not trial.scratch:
            report = pipeline.transfer(trial.recipe, baseline=trial.baseline)
            url = trial.recipe.transferred_url
            model = model_of(CheckpointReader(url).config)  # of which layers it is made, a draft of the plan can't tell
        train = trial.recipe.train
        run = TrainRun(name=trial.name, config=model.config, url=url, steps=train.steps)
        trained = self._train(run, train, trial.recipe.source)
        curve = Curve(
            steps=[h["step"] for h in trained["held_out"]],
            losses=[h["loss"] for h in trained["held_out"]],
            flops_per_step=float(TRAINING * trained["tokens_per_step"] * model.flops_per_token(train.context)),
            flops_before=trial.flops_before(report),
        )
        return {
            "method": trial.method,
            "seed": trial.seed,
            "scratch": trial.scratch,
            "n_parameters": model.n_parameters,
            "notes": [] if trial.scratch else [*trial.plan.notes],
            "curve": dataclasses.asdict(curve),
            "transfer": report,
            "training": trained,
        }

    def _train(self, run: TrainRun, train: TrainConfig, tokenizer_url: str) -> Result:
        result = pretrain(
            [run],
            train=train,
            cluster=self.cluster,
            tokenizer_url=tokenizer_url,
            output=str(self.output),
            on_event=lambda event: self.on_event({"stage": "pretrain", **event}),
        ).to_json()
        runs = result.pop("runs")
        return {**result, **runs[0]}

    def _kept(self, name: str, decides: dict[str, Any], make: Callable[[], Result]) -> Result:
        """The result under a key of what decides it; made, and kept in one piece, where it is not there."""
        path = self.output / "results" / f"{name}-{_key(decides)}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(".partial")
            partial.write_text(json.dumps({"decided_by": decides, **make()}, indent=1))
            partial.replace(path)
        result: Result = json.loads(path.read_text())
        return result


def _decisive(train: TrainConfig) -> dict[str, Any]:
    """What decides a training besides its start."""
    return {**train.model_dump(exclude={"text", "scratch", "source_loss"}), "text": _text(train.text)}


@functools.cache
def _text(patterns: tuple[str, ...]) -> list[str]:
    """Digests of the files that a text is made of."""
    return [_sha256(read_file(file)) for file in sorted({file for p in patterns for file in resolve_all(p)})]


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _key(decides: dict[str, Any]) -> str:
    return _sha256(json.dumps(decides, sort_keys=True).encode())[:12]


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def machine() -> str:
    """Processor, cores and system, for people."""
    cpus = Path("/proc/cpuinfo")
    models = re.findall(r"^model name\s*: (.*)$", cpus.read_text(), re.MULTILINE) if cpus.is_file() else []
    return f"{models[0] if models else platform.processor()}, {os.cpu_count()} cores, {platform.platform()}"
