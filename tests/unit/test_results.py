"""Results of public functions: typed, one screen when shown, escaped in a notebook, and the same after JSON."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest

import bot_dist
from bot_dist.compare.results import ComparisonResult, ResultsTable, SourceFacts, TrialResult
from bot_dist.compare.savings import Curve
from bot_dist.errors import CheckpointError
from bot_dist.events.training import HeldOut, TrainingStep
from bot_dist.fit.stage_facts import CandidateResult, StageFacts
from bot_dist.formats.check_export import LogitsCheck
from bot_dist.formats.diff import Diff, Difference, Values
from bot_dist.formats.export_result import ExportResult
from bot_dist.pipeline.results import FamilyResult, PipelineResult, TransferResult
from bot_dist.plan.summary import ModuleRow, PlanSummary
from bot_dist.results import MOST_ROWS, Result, Shown
from bot_dist.store import Damage
from bot_dist.store.verification import Verification
from bot_dist.train.results import PretrainResult, RunResult

STAGE = StageFacts(
    axes=("embed",),
    sizes={"embed": (24, 12)},
    facts={"embed": {"kept": 12}},
    loss=3.0,
    candidates=(
        CandidateResult(name="block by block", loss=3.0, seconds=2.0),
        CandidateResult(name="one pass", loss=None, seconds=1.0, failed="singular"),
    ),
    chosen="block by block",
)
TRANSFER = TransferResult(
    url="runs/small.zarr",
    seconds=3.0,
    tokenizer=True,
    notes=("a <note>",),
    sizes={"source": {"embed": 24, "layer": 3}, "target": {"embed": 12, "layer": 3}},
    steps_seconds=1.0,
    bytes_read=10_000_000,
    bytes_written=1_000_000,
    gb_per_s=0.01,
    steps=8,
    steps_resumed=2,
    actor_peak_rss_bytes=(100_000_000,),
    energy_kept={"mlp.up": 0.5},
    calibrate=(STAGE,),
    fitting_s=1.5,
)
RUN = RunResult(
    name="transferred",
    steps=2,
    n_parameters=1_200_000,
    tokens_per_step=64,
    losses=[TrainingStep(step=1, loss=3.0, learning_rate=1e-3, seconds=0.1)],
    held_out=[HeldOut(step=0, loss=3.5), HeldOut(step=2, loss=2.5)],
    load_s=0.1,
    first_step_s=None,
    bytes_read=[4_800_000],
    peak_rss_bytes=[90_000_000],
    digest="d",
    trained_digest=None,
    probe_path=None,
    saved_url=None,
)
PRETRAIN = PretrainResult(runs=[RUN], workers=2, device="cpu", startup_s=2.0, total_s=9.0, tokens=None)
EXPORT = ExportResult(
    folder="runs/export",
    files=("config.json", "model.safetensors"),
    n_parameters=9,
    weight_bytes=36,
    tokenizer=True,
    logits=LogitsCheck(missing_keys=[], unexpected_keys=[], max_abs_difference=1e-7, max_abs_logit=9.0),
)
MODULE = ModuleRow(
    name="embed",
    source_shape=(64, 24),
    target_shape=(64, 12),
    operators={"embed": "haar 24 → 12"},
    scale=1.0,
    bytes_read=1,
    bytes_written=1,
    peak_bytes=1,
    steps=1,
)
PLAN = PlanSummary(
    rows=(MODULE,),
    n_source=10,
    n_target=5,
    flops_source=100,
    flops_target=50,
    context=16,
    function_kept=None,
    actor_bytes=(2,),
    actor_peak=(1,),
)
PIPELINE = PipelineResult(
    recipe={"source": "s"},
    plan=PLAN,
    transfer=TRANSFER,
    pretrain=PRETRAIN,
    export=EXPORT,
    samples={"source": ["To be"]},
    versions={"torch": "2"},
    command="c",
    machine="m",
    date="d",
    report="runs/report.html",
)
TRIAL = TrialResult(
    method="ours",
    seed=0,
    learning_rate=1e-3,
    scratch=False,
    n_parameters=9,
    notes=[],
    curve=Curve(steps=[0, 8], losses=[3.5, 2.5], flops_per_step=1.0),
    accuracy=None,
    diverged=None,
)
COMPARISON = ComparisonResult(
    recipe={},
    source=SourceFacts(url="s", held_out_loss=3.0, held_out_accuracy=None, pretrained=None),
    results=(TRIAL,),
    learning_rates={"ours": 1e-3},
    table=ResultsTable(headings=["method", "0", "8"], lines=[["ours", "3.5", "2.5"]]),
    notes=(),
    versions={},
    command="c",
    machine="m",
    date="d",
)
DIFF = Diff(
    config={"hidden_size": (24, 12)},
    parameters=[
        Difference(name="a", what="only in the first"),
        Difference(name="b", what="", values=Values(elements=2, max_abs=0.5, relative=0.1)),
    ],
    by_digests=1,
    by_reading=0,
    undecided={},
)
VERIFICATION = Verification(damaged=[Damage(name="a", chunk="0.0", problem="is damaged")], foreign={"x": 3}, read="all")
RESULTS = [
    (STAGE, "held-out loss 3.000, kept"),
    (TRANSFER, "embed 24 → 12"),
    (PRETRAIN, "held-out loss 3.500 after 0 steps, 2.500 after 2 steps; 1.2 M parameters"),
    (EXPORT, "0 missing, 0 unexpected keys"),
    (PIPELINE, "Its held-out loss is 2.500 after 2 steps"),
    (FamilyResult(members={"small": PIPELINE}, report="runs/report.html"), "small"),
    (COMPARISON, "0: 3.5; 8: 2.5"),
    (TRIAL, "3.500, 2.500"),
    (DIFF, "2 values, by at most 0.5"),
    (VERIFICATION, "a, chunk 0.0: is damaged"),
]


@pytest.mark.parametrize(("result", "shown"), RESULTS, ids=lambda value: type(value).__name__)
def test_a_result_is_short_when_shown_and_the_same_after_json(result: Result, shown: str) -> None:
    text, page = repr(result), result._repr_html_()
    assert text.splitlines()[0] == type(result).__name__
    assert shown in " ".join(text.split())
    assert len(text.splitlines()) < 40
    assert max(map(len, text.splitlines())) <= 120
    assert page.count("<table>") == page.count("</table>") == 1
    assert type(result).from_json(json.loads(json.dumps(result.to_json())), "a file") == result


def test_a_notebook_shows_texts_of_strangers_as_texts() -> None:
    assert "a &lt;note&gt;" in TRANSFER._repr_html_()
    assert "<note>" not in TRANSFER._repr_html_()


def test_a_screen_is_enough() -> None:
    class Long(Shown):
        def rows(self) -> Any:
            return ((f"row {i}", "word " * 500) for i in range(1000))

    lines = repr(Long()).splitlines()
    assert len(lines) == 1 + 3 * MOST_ROWS + 1
    assert lines[-1].split(maxsplit=1) == ["…", f"{1000 - MOST_ROWS} more"]


def test_what_is_kept_has_the_keys_that_it_always_had() -> None:
    plain = dataclasses.replace(TRANSFER, calibrate=None, fitting_s=None).to_json()
    assert not plain.keys() & {"calibrate", "fitting_s", "made"}
    assert {"calibrate", "fitting_s"} <= TRANSFER.to_json().keys()
    assert "logits" not in dataclasses.replace(EXPORT, logits=None).to_json()
    assert PIPELINE.to_json()["pretrain"]["runs"][0]["diverged"] is None
    assert PIPELINE.to_json()["transfer"] == TRANSFER.to_json()


def test_a_store_of_an_earlier_version_recorded_less() -> None:
    recorded = TRANSFER.to_json()
    for later in ("notes", "sizes", "detail_energy", "overflowed", "url"):
        del recorded[later]
    assert TransferResult.from_json(recorded, "a store").steps == TRANSFER.steps
    del recorded["steps"]
    with pytest.raises(CheckpointError, match="a store does not record what this version does: steps: field required"):
        TransferResult.from_json(recorded, "a store")


def test_a_plan_and_a_checkpoint_are_shown(pico_llama: Any) -> None:
    source = pico_llama()
    recipe = {"source": source.url, "output": ".", "target": {"embed": 12}}
    text = repr(bot_dist.plan_transfer(bot_dist.make_recipe(recipe, {"transfer.analysis": "wavelet"})))
    assert "embed 24 → 12" in text
    assert len(text.splitlines()) < 60
    assert source.url in repr(bot_dist.Checkpoint(source.url))
