"""Comparisons: FLOPs saved, tables, recipes, what decides a result, and the tokenizer that needs no training."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.compare import result_cache as bench
from bot_dist.compare import trials as compare
from bot_dist.compare.ranking import at_best, best_rates, markdown, notes, rows, table
from bot_dist.compare.recipe import ComparisonRecipe
from bot_dist.compare.result_cache import Bench
from bot_dist.compare.results import TrialResult
from bot_dist.compare.savings import Curve, flops_saved
from bot_dist.data.byte_tokenizer import save_byte_tokenizer
from bot_dist.errors import BotDistError, InputError, RecipeError
from bot_dist.events import Event, OnEvent
from bot_dist.events.training import JobBegun, RunDone
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.model import model_of
from bot_dist.recipe import ClusterConfig, TrainConfig, validated
from bot_dist.report.plots import comparison_curves
from bot_dist.train.driver import TrainRun

RECIPE: dict[str, Any] = {
    "pretrain": {
        "model_type": "gpt2",
        "sizes": {"layers": 3, "embed": 24, "mlp": 96, "heads": 3, "head_dim": 8, "context": 16},
        "train": {"text": ["{folder}/text.txt"], "steps": 2, "workers": 1, "context": 16, "batch": 4},
    },
    "output": "{folder}/run",
    "target": {"layers": 2, "embed": 16, "mlp": 40, "heads": 2},
    "methods": {"selection": {"baseline": "weight-selection"}, "ours": {}},
    "train": {"text": ["{folder}/text.txt"], "steps": 4, "workers": 1, "context": 16, "batch": 4},
}


@pytest.fixture
def recipe(tmp_path: Path) -> Callable[..., ComparisonRecipe]:
    """A comparison of pico models, with overrides."""
    (tmp_path / "text.txt").write_text("It was the best of times, it was the worst of times. " * 20)
    data = json.loads(json.dumps(RECIPE).replace("{folder}", str(tmp_path)))
    return lambda **overrides: validated(ComparisonRecipe, data, overrides, "recipe")


def test_what_is_recorded_makes_the_recipe_again(recipe: Callable[..., ComparisonRecipe]) -> None:
    whole = recipe(**{"methods.paper": {"transfer": {"preset": "paper-gpt-l2s"}}, "seeds": [1, 2]})
    again = validated(ComparisonRecipe, json.loads(json.dumps(whole.public())), {}, "recorded")
    assert again == whole
    assert again.methods["paper"].transfer.wavelet == "coif3"


def curve(*losses: float, per_step: float = 10.0, before: float = 0.0) -> Curve:
    return Curve(steps=[0, 100, 200, 400], losses=losses, flops_per_step=per_step, flops_before=before)


def test_flops_are_counted_until_the_loss_that_scratch_ends_at() -> None:
    scratch = curve(5.0, 4.0, 3.0, 2.0)
    assert flops_saved(scratch, scratch) == 0
    assert flops_saved(curve(3.0, 2.5, 1.5, 1.0), scratch) == pytest.approx(1 - 150 / 400)  # halfway from 100 to 200
    assert flops_saved(curve(3.0, 2.5, 1.5, 1.0, before=400.0), scratch) == pytest.approx(1 - 190 / 400)
    assert flops_saved(curve(3.0, 2.5, 1.5, 1.0, per_step=20.0), scratch) == pytest.approx(1 - 300 / 400)
    assert flops_saved(curve(1.9, 2.5, 1.5, 1.0), scratch) == 1  # there before the first step
    assert flops_saved(curve(3.0, 2.9, 2.8, 2.1), scratch) is None
    late = curve(5.0, 4.0, 3.0, 2.0, before=30)
    assert [late.loss_after(flops) for flops in (20, 30, 780, 9999)] == [None, 5, 4.25, 2]
    # At a loss that scratch passes on its way, and at one that it does not reach.
    assert flops_saved(curve(5.0, 5.0, 5.0, 3.0), scratch, loss=3.5) == pytest.approx(1 - 350 / 150)
    assert flops_saved(curve(3.0, 2.5, 1.5, 1.0), scratch, loss=1.5) == pytest.approx(1 - 200 / 400)  # at least


def result(method: str, seed: int, *losses: float, parameters: int = 1000, **facts: Any) -> TrialResult:
    made = Curve(steps=[0, 100, 200, 400][: len(losses)], losses=losses, flops_per_step=1.0)
    found = {"method": method, "seed": seed, "scratch": False, "n_parameters": parameters, "notes": [], "curve": made}
    return TrialResult(**{**found, "learning_rate": 1e-3, "accuracy": None, "diverged": None, **facts})


def with_flops(found: TrialResult, **flops: float) -> TrialResult:
    return dataclasses.replace(found, curve=dataclasses.replace(found.curve, **flops))


def test_a_start_that_is_not_finite_has_a_row_and_no_curve() -> None:
    lost = result("ours", 0, diverged="run 'ours': held-out loss is nan at step 0")
    results = [result("scratch", 0, 5, 4, 3, 2.0, scratch=True), lost]
    assert table(rows(results))[1][1][2:] == [*["diverged"] * 4, "–", "never reached"]
    assert comparison_curves([r.to_json() for r in results], 1.5).startswith(b"\x89PNG")


def test_a_table_has_a_row_per_method_over_its_seeds() -> None:
    results = [
        result("scratch", 0, 5, 4, 3, 2.0, scratch=True),
        result("scratch, head untied", 0, 5, 4, 3, 2.5, scratch=True, parameters=1200),
        result("ours", 0, 3, 2.5, 2, 1.5, parameters=1200, notes=["the head is untied"]),
        result("theirs", 0, 4, 3, 2, 1.5),
        result("scratch", 1, 5, 4, 3, 2.0, scratch=True),
        result("scratch, head untied", 1, 5, 4, 3, 2.5, scratch=True, parameters=1200),
        result("ours", 1, 3, 2.5, 2, 1.9, parameters=1200, notes=["the head is untied"]),
        result("theirs", 1, 4, 3, 2.4, 2.2),
    ]
    results[2] = with_flops(results[2], flops_before=100.0)
    headings, lines = table(rows(results))
    assert headings == [
        "start",
        "parameters",
        *(f"loss at {step}" for step in (0, 100, 200, 400)),
        "at equal FLOPs",
        "FLOPs saved",
    ]
    assert lines == [
        ["scratch", "1,000", "5.000", "4.000", "3.000", *["2.000 ± 0.000"] * 2, "–"],
        ["scratch, head untied", "1,200", "5.000", "4.000", "3.000", *["2.500 ± 0.000"] * 2, "–"],
        ["ours", "1,200", "3.000", "2.500", "2.000", "1.700 ± 0.283", "1.825 ± 0.106", "62.5% ± 17.7%"],
        ["theirs", "1,000", "4.000", "3.000", "2.200", *["1.850 ± 0.495"] * 2, "never reached (1 of 2 seeds)"],
    ]
    assert notes(results) == [
        "ours: the head is untied",
        "each method is measured against the model from scratch of as many parameters",
    ]
    alone = rows(results[:4], target_loss=2.4)
    assert [line[-1] for line in table(alone)[1]] == ["–", "–", "45.0%", "50.0%"]
    images = rows([dataclasses.replace(r, accuracy=0.9 + r.seed / 10) for r in results])
    assert [line[-2:] for line in table(images)[1]][2] == ["95.0% ± 7.1%", "62.5% ± 17.7%"]
    assert table(images)[0][-2:] == ["right at 400", "FLOPs saved"]
    assert [line[2] for line in table(alone, tuned=True)[1]] == ["0.001"] * 4
    assert markdown(["a", "b"], [["c", "1"]]) == "| a | b |\n| --- | ---: |\n| c | 1 |\n"


def test_the_source_may_be_trained_on_beside_what_is_made_of_it(
    recipe: Callable[..., ComparisonRecipe], tmp_path: Path
) -> None:
    made = recipe(**{"methods.same": {"target": {}}})
    source = compare._untrained(made.pretrain, tmp_path / "untrained")  # type: ignore[arg-type]
    *scratch, _, _, same = compare._trials(made, source, 0)
    assert same.plan.target.config == same.plan.source.config
    assert all(trial.plan.target.sizes["layer"] == 2 for trial in scratch)
    results = [
        result("scratch", 0, 5, 4, 3, 2.0, scratch=True),
        result("same", 0, 3, 2.5, 2, 1.5, parameters=500),
    ]
    results[1] = with_flops(results[1], flops_per_step=0.5)
    assert table(rows(results))[1][1][-2:] == ["1.500", "75.0%"]
    assert notes(results) == ["same: of another size, measured against scratch"]


def test_what_diverges_has_lost() -> None:
    results = [
        result("scratch", 0, 5, 4, 3, 2.0, scratch=True),
        result("scratch", 1, 5, 4, 3, 2.0, scratch=True),
        result("ours", 0, 3, 2.5, 2, 1.5),
        result("ours", 1, 3, 1.0, diverged="run 'ours': loss is nan at step 150"),
        result("ours", 0, 3, 1.2, learning_rate=1e-2, diverged="run 'ours': loss is nan at step 120"),
    ]
    assert best_rates(results) == {"scratch": 1e-3, "ours": 1e-3}
    assert table(rows(results[:4]))[1][1] == ["ours", "1,000", "3.000", "1.750", *["diverged"] * 2, "–", LOST_ONE]
    assert table(rows([*results[:2], results[4]]))[1][1] == [
        "ours",
        "1,000",
        "3.000",
        "1.200",
        *["diverged"] * 2,
        "–",
        LOST,
    ]


LOST, LOST_ONE = "never reached", "never reached (1 of 2 seeds)"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"source": "somewhere"}, "give a source"),
        ({"pretrain": None}, "give a source"),
        ({"methods": {}}, "methods"),
        ({"methods": {"scratch": {}}}, "'scratch' is always there"),
        ({"target": {"layer": 3}}, "target: there is no size 'layer'; did you mean 'layers'"),
        ({"pretrain.sizes": {"embd": 3}}, r"pretrain\.sizes: there is no size 'embd'; did you mean 'embed'"),
        ({"methods": {"a": {"target": {"head": 3}}}}, r"a\.target: there is no size 'head'; did you mean 'head"),
        ({"methods": {"a": {"baselin": "x"}}}, r"unknown key 'methods\.a\.baselin'; did you mean 'baseline'"),
        ({"methods": {"a": {"transfer": {"depht": "even"}}}}, r"unknown key 'methods\.a\.transfer\.depht'"),
        ({"methods": {"a": {"baseline": "weight-election"}}}, "unknown baseline 'weight-election'; did you mean"),
        ({"methods": {"a": {"baseline": "weight-selection", "transfer": {"depth": "even"}}}}, "leave transfer and"),
        ({"pretrain.train.step": 3}, r"unknown key 'pretrain\.train\.step'"),
        ({"train.seed": 3}, r"train\.seed is not for comparisons; give seeds"),
        ({"pretrain.train.scratch": False}, r"pretrain\.train\.scratch is not for comparisons"),
        ({"train.steps": 0}, r"train\.steps is 0"),
        ({"seeds": []}, "seeds"),
        ({"seeds": [-1]}, r"seeds\.0"),
        ({"pretrain.train.steps": 0}, r"pretrain\.train\.steps is 0"),
        ({"methods.ours.transfer": {"moments": "auto"}}, "'ours' carries AdamW's moments along, and the source is"),
        ({"train.learning_rate": 1e-3, "learning_rates": [1e-3, 1e-4]}, "give learning_rates, or train.learning_rate"),
        ({"learning_rates": [1e-3, 1e-3]}, "one is named twice"),
        ({"seeds": [0, 1, 0]}, "seeds: one is named twice"),
        ({"learning_rates": [0]}, "greater than 0"),
        ({"only": ["our"]}, "only: there is no method 'our'; did you mean 'ours'"),
        ({"methods": {"a": {"target": {}}}}, "all have targets of their own"),
        ({"methods": {"a": {"train": {"steps": 4}}}}, r"unknown key 'methods\.a\.train\.steps'"),
    ],
)
def test_what_is_wrong_with_a_recipe_is_named(
    overrides: dict[str, Any], message: str, recipe: Callable[..., ComparisonRecipe]
) -> None:
    with pytest.raises(RecipeError, match=message):
        recipe(**overrides)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"pretrain.model_type": "gpt3"}, "unknown 'gpt3'; did you mean"),
        ({"pretrain.fields": {"n_layers": 3}}, "gpt2 has no field 'n_layers'; did you mean 'n_layer'"),
        ({"pretrain.sizes": {"kv_heads": 3}}, "'kv_heads' does not exist in family 'gpt2'"),
        ({"target.layers": 5}, "weight selection only shrinks"),
        ({"methods": {"a": {"transfer": {"wavelet": "haarr"}}}}, "haarr"),
        ({"train.context": 32}, "n_positions=16"),
        ({"train.text": ["{folder}/none.txt"]}, "none.txt"),
    ],
)
def test_what_is_wrong_is_said_before_the_source_is_trained(
    overrides: dict[str, Any],
    message: str,
    recipe: Callable[..., ComparisonRecipe],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    overrides = json.loads(json.dumps(overrides).replace("{folder}", str(tmp_path)))
    monkeypatch.setattr(bench, "pretrain", lambda *_, **__: pytest.fail("it is trained"))
    with pytest.raises(InputError, match=message):
        compare.compare(recipe(**overrides))


class Training:
    """In the place of ``pretrain``: remembers what it is asked for, and fails at the runs that it is told to."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []
        self.fails_at = ""

    def __call__(self, runs: list[TrainRun], *, on_event: OnEvent, **_: Any) -> None:
        self.asked.append([run.name for run in runs])
        for run in runs:
            if run.name == self.fails_at:
                raise BotDistError("worker 0 died")
            losses = [{"step": step, "loss": 3.0 - step / 100} for step in (0, 2, 4)]
            measured = {"name": run.name, "tokens_per_step": 64, "held_out": losses, "saved_url": run.save_url}
            on_event(RunDone(run=run.name, result=measured))


class Job:
    """A job without a transfer."""

    def __init__(self, name: str, text: Path, steps: int = 4) -> None:
        self.name, self.tokenizer_url = name, str(text.parent)
        self.train = TrainConfig(text=(str(text),), steps=steps)

    def decides(self, digests: Any) -> dict[str, Any]:
        return {"start": self.name}

    def begin(self, folder: str, start: str) -> TrainRun:
        return TrainRun(name=self.name, config={}, url=None, steps=self.train.steps)

    def result(self, start: str, training: dict[str, Any]) -> dict[str, Any]:
        return training


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    made = Training()
    save_byte_tokenizer(tmp_path)
    monkeypatch.setattr(bench, "pretrain", made)
    monkeypatch.setattr(bench, "connected", lambda *_: contextlib.nullcontext())
    monkeypatch.setattr(bench, "places", lambda *_: 1)
    return made


def test_results_are_kept_and_taken_again(training: Training, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a text")

    events: list[Event] = []

    def results(*jobs: Job) -> list[str]:
        found = Bench(tmp_path / "run", ClusterConfig(), events.append).results(jobs)
        return [job["name"] for job in found]

    training.fails_at = "c"
    with pytest.raises(BotDistError, match="worker 0 died"):
        results(Job("a", text), Job("b", text), Job("c", text))
    training.fails_at = ""
    assert results(Job("a", text), Job("b", text), Job("c", text), Job("d", text)) == ["a", "b", "c", "d"]
    assert results(Job("d", text), Job("a", text)) == ["d", "a"]
    assert training.asked == [["a", "b", "c"], ["c", "d"]]
    assert [event.job for event in events if isinstance(event, JobBegun)] == ["a", "b", "c", "c", "d"]

    # Trained otherwise, or on another text, it is another result; the earlier one stays.
    results(Job("a", text, steps=5), Job("b", text))
    text.write_text("another text")
    results(Job("a", text))
    text.write_text("a text")
    results(Job("a", text), Job("a", text, steps=5))
    assert training.asked[2:] == [["a"], ["a"]]


def test_jobs_are_shared_out_over_what_the_cluster_has_room_for(
    training: Training, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that fails does not take others with it."""
    monkeypatch.setattr(bench, "places", lambda *_: 2)
    text = tmp_path / "text.txt"
    text.write_text("a text")
    jobs = [Job(name, text, steps) for name, steps in (("a", 4), ("b", 4), ("c", 4), ("d", 5))]
    training.fails_at = "c"
    with pytest.raises(BotDistError, match="worker 0 died"):
        Bench(tmp_path / "run", ClusterConfig(), lambda _: None).results(jobs)
    assert sorted(training.asked) == [["a", "c"], ["b"], ["d"]]
    training.fails_at = ""
    found = Bench(tmp_path / "run", ClusterConfig(), lambda _: None).results(jobs)
    assert [job["name"] for job in found] == ["a", "b", "c", "d"]
    assert training.asked[3:] == [["c"]]


def test_what_decides_a_trial(recipe: Callable[..., ComparisonRecipe], training: Training, tmp_path: Path) -> None:
    source = compare._untrained(recipe().pretrain, tmp_path / "untrained")  # type: ignore[arg-type]

    def decided(index: int, **overrides: Any) -> str:
        trial = compare._trials(recipe(**overrides), source, 0)[index]
        return Bench(tmp_path, ClusterConfig(), lambda _: None).key(trial)

    scratch, untied, selection, ours = range(4)
    trials = compare._trials(recipe(seeds=[7]), source, 7)
    assert [trial.name for trial in trials] == [
        "scratch, seed 7, learning rate 0.001",
        "scratch, head untied, seed 7, learning rate 0.001",
        "selection, seed 7, learning rate 0.001",
        "ours, seed 7, learning rate 0.001",
    ]
    assert [trial.plan.target.tied for trial in trials] == [True, False, True, False]
    assert {trial.train.seed for trial in trials} == {7}
    bench = Bench(tmp_path, ClusterConfig(), lambda _: None)
    assert (
        len({bench._start(trial) for trial in (trials[2], trials[2].at(1e-4), compare._trials(recipe(), source, 0)[2])})
        == 1
    )

    for index in (scratch, untied, selection, ours):
        assert decided(index) == decided(index, **{"cluster.address": "auto", "output": "elsewhere", "seeds": [0, 7]})
        assert decided(index) != decided(index, **{"train.learning_rate": 1e-4})
        assert decided(index) != decided(index, **{"target.mlp": 48})
    assert len({decided(index) for index in range(4)}) == 4
    assert decided(ours) != decided(ours, **{"calibrate.tokens": 64})
    assert decided(ours) != decided(ours, **{"methods.ours.calibrate": {"passes": "one"}})
    assert decided(selection) == decided(selection, **{"calibrate.tokens": 64})
    assert decided(ours) != decided(ours, **{"methods.ours.transfer": {"ridge": 0.1}})
    assert decided(scratch) == decided(scratch, **{"methods.ours.transfer": {"ridge": 0.1}})
    for kept in ("train.save_every", "train.keep", "train.accumulate"):
        assert decided(ours) == decided(ours, **{kept: 2})
    assert decided(ours) != decided(ours, **{"train.evaluate_every": 1})


def test_what_learns_on_training_data_depends_on_what_is_held_out(
    recipe: Callable[..., ComparisonRecipe], training: Training, tmp_path: Path
) -> None:
    sizes = {"layers": 4, "embed": 32, "mlp": 128, "heads": 4}
    learned = {"methods": {"ligo": {"baseline": "ligo"}}, "target": sizes}
    source = compare._untrained(recipe().pretrain, tmp_path / "untrained")  # type: ignore[arg-type]
    bench = Bench(tmp_path, ClusterConfig(), lambda _: None)

    def start(**overrides: Any) -> str:
        return bench._start(compare._trials(recipe(**learned, **overrides), source, 0)[-1])

    assert start() != start(**{"train.held_out": 9})


def test_another_tokenizer_makes_other_results(
    recipe: Callable[..., ComparisonRecipe], training: Training, tmp_path: Path
) -> None:
    source = compare._untrained(recipe().pretrain, tmp_path / "untrained")  # type: ignore[arg-type]

    def keys() -> list[str]:
        return [
            Bench(tmp_path, ClusterConfig(), lambda _: None).key(trial)
            for trial in compare._trials(recipe(), source, 0)
        ]

    before, path = keys(), Path(source).parent / "tokenizer.json"
    text = path.read_text()
    path.write_text(text.replace('"a":', '"swapped":').replace('"b":', '"a":').replace('"swapped":', '"b":'))
    assert path.read_text() != text
    assert not {*before} & {*keys()}


def test_a_seed_without_the_target_has_its_scratch(
    recipe: Callable[..., ComparisonRecipe], training: Training, tmp_path: Path
) -> None:
    made = recipe(seeds=[0, 1], methods={"ours": {"seeds": 1}, "same": {"target": {}}})
    source = compare._untrained(made.pretrain, tmp_path / "untrained")  # type: ignore[arg-type]
    assert [(t.method, t.train.seed) for t in compare._trials(made, source, 1)] == [
        ("scratch, head untied", 1),
        ("same", 1),
    ]


def test_methods_are_tuned_with_the_first_seed(
    recipe: Callable[..., ComparisonRecipe], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stand-in for training: at which rate each method ends lowest is known, and what is asked for is counted."""
    made = recipe(seeds=[3, 4, 5], learning_rates=[1e-4, 1e-3, 1e-2], **{"methods.ours": {"seeds": 1}})
    source = compare._untrained(made.pretrain, tmp_path / "untrained")  # type: ignore[arg-type]
    best = {"scratch": 1e-2, "scratch, head untied": 1e-2, "selection": 1e-3, "ours": 1e-4}
    asked: list[tuple[str, int, float]] = []

    class Trained:
        def results(self, trials: list[compare.Trial]) -> list[dict[str, Any]]:
            asked.extend((t.method, t.train.seed, t.train.learning_rate) for t in trials)
            return [
                result(
                    t.method,
                    t.train.seed,
                    *(5, 4, 3, 2 + abs(best[t.method] - t.train.learning_rate) + t.train.seed / 100),
                    learning_rate=t.train.learning_rate,
                    scratch=t.scratch,
                ).to_json()
                for t in trials
            ]

    results, rates = compare._trained(Trained(), made, source)  # type: ignore[arg-type]
    assert rates == best
    assert {*asked} == {(m, 3, rate) for m in best for rate in made.learning_rates} | {
        (m, seed, best[m]) for m in ("scratch", "selection") for seed in (4, 5)
    }
    assert len(asked) == len(results) == 4 * 3 + 2 * 2
    chosen = at_best(results, rates)
    assert [(row.method, len(row.last)) for row in rows(chosen)] == [
        *(("scratch", 3), ("scratch, head untied", 1), ("selection", 3), ("ours", 1))
    ]
    alone = recipe(seeds=[3], only=["selection"])
    assert [trial.method for trial in compare._trials(alone, source, 3)] == ["scratch", "selection"]
    assert notes(chosen, made.rates) == [
        "ours: best at 0.0001, the lowest of the learning rates",
        "scratch; scratch, head untied: best at 0.01, the highest of the learning rates",
    ]


def test_a_method_may_be_trained_otherwise(recipe: Callable[..., ComparisonRecipe], tmp_path: Path) -> None:
    made = recipe(**{"methods.plain": {"train": {"use_factors": False, "warmup": 2}}})
    source = compare._untrained(made.pretrain, tmp_path / "untrained")  # type: ignore[arg-type]
    trained = {t.method: (t.train.use_factors, t.train.warmup) for t in compare._trials(made, source, 0)}
    assert trained.pop("plain") == (False, 2)
    assert {*trained.values()} == {(True, 0)}


def test_a_new_source_is_of_the_sizes_that_are_named(recipe: Callable[..., ComparisonRecipe], tmp_path: Path) -> None:
    pretrain = recipe(**{"pretrain.fields": {"resid_pdrop": 0.0}}).pretrain
    config = json.loads(Path(compare._untrained(pretrain, tmp_path)).read_text())  # type: ignore[arg-type]
    sizes = {"layer": 3, "embed": 24, "mlp": 96, "qkv": 3, "heads": 3, "head_dim": 8, "vocab": 257, "position": 16}
    assert model_of(config).sizes == sizes
    assert (config["eos_token_id"], config["resid_pdrop"], config["architectures"]) == (256, 0.0, ["GPT2LMHeadModel"])


def test_a_masked_model_has_a_token_for_what_is_masked(recipe: Callable[..., ComparisonRecipe], tmp_path: Path) -> None:
    sizes = {"layers": 3, "embed": 24, "mlp": 96, "heads": 3, "head_dim": 8, "context": 16}
    pretrain = recipe(**{"pretrain.model_type": "bert", "pretrain.sizes": sizes}).pretrain
    config = json.loads(Path(compare._untrained(pretrain, tmp_path)).read_text())  # type: ignore[arg-type]
    assert (config["vocab_size"], config["architectures"]) == (258, ["BertForMaskedLM"])
    assert load_tokenizer(str(tmp_path)).mask_token_id == 257


def test_a_classifier_has_the_classes_of_its_images(recipe: Callable[..., ComparisonRecipe], tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        (tmp_path / "images" / name / "0.png").write_bytes(b"?")
    overrides: dict[str, Any] = {
        "pretrain.model_type": "vit",
        "pretrain.sizes": {"layers": 3, "embed": 24, "mlp": 96, "heads": 3, "head_dim": 8},
        "pretrain.fields": {"image_size": 8, "patch_size": 2},
        "pretrain.train.text": [],
        "train.text": [],
    }
    with pytest.raises(InputError, match="vit is trained on images"):
        compare._untrained(recipe(**overrides).pretrain, tmp_path / "untrained")  # type: ignore[arg-type]
    images = str(tmp_path / "images")
    made = recipe(**overrides, **{"pretrain.train.images": images, "train.images": images})
    source = compare._untrained(made.pretrain, tmp_path / "untrained")  # type: ignore[arg-type]
    config = json.loads(Path(source).read_text())
    assert (config["label2id"], config["architectures"]) == ({"cat": 0, "dog": 1}, ["ViTForImageClassification"])

    def decided() -> list[str]:
        bench = Bench(tmp_path, ClusterConfig(), lambda _: None)
        return [bench.key(trial) for trial in compare._trials(made, source, 0)]

    before = decided()
    (tmp_path / "images" / "dog" / "0.png").write_bytes(b"other")
    assert not {*before} & {*decided()}


def test_a_token_per_byte(tmp_path: Path) -> None:
    save_byte_tokenizer(tmp_path)
    tokenizer = load_tokenizer(str(tmp_path))
    text = "naïve  café\r\n\t— 'tis “🜁” \x00 1603;  \n"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(ids) == len(text.encode())
    assert len({*tokenizer(bytes(range(128)).decode())["input_ids"]}) == 128
    assert tokenizer.decode(ids) == text
    assert (len(tokenizer), tokenizer.eos_token_id) == (257, 256)
