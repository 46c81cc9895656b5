"""What is shown of a shrinking that was fitted to its source: from the recorded facts alone."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from bot_dist.cli import progress
from bot_dist.events.calibrate import BlockDone, LossMeasured, PassStarted, TakenUp
from bot_dist.report.html import verdict, write_report
from bot_dist.report.plots import shrinking
from bot_dist.report.shrinking import losses, prediction_errors, ranges, ranking_lines, spectrum, stage_rows
from bot_dist.units import count, duration

SOURCE: dict[str, Any] = {"axes": [], "sizes": {}, "facts": {}, "loss": 3.0}
LAYER: dict[str, Any] = {
    "axes": ["layer"],
    "sizes": {"layer": (4, 2)},
    "facts": {"layer": {"similarity": [0.1, 0.9, 0.8, 0.2], "kept": (0, 3)}},
    "loss": 3.5,
}
EMBED: dict[str, Any] = {
    "axes": ["embed"],
    "sizes": {"embed": (4, 2)},
    "facts": {
        "embed": {
            "spectrum": [0.5, 0.3, 0.15, 0.05],
            "kept": 2,
            "energy_kept": 0.8,
            "errors": {"attn.norm": [0.1, 0.3], "norm": [0.2]},
        }
    },
    "loss": 4.25,
}
MLP: dict[str, Any] = {
    "axes": ["mlp"],
    "sizes": {"mlp": (8, 4)},
    "facts": {"mlp": {"kept": 4, "errors": {"mlp.down": [0.01, 0.02]}}},
    "loss": 4.5,
}
STAGES = [SOURCE, LAYER, EMBED, MLP]


def unmeasured(stages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The same without held-out losses, which is without an entry of the source."""
    return [{key: value for key, value in s.items() if key != "loss"} for s in stages if s["axes"]]


def test_rows_say_what_became_of_every_stage() -> None:
    source, layer, embed, mlp = stage_rows(STAGES)
    assert stage_rows(json.loads(json.dumps(STAGES))) == [source, layer, embed, mlp]
    assert (source.name, source.sizes, source.loss, source.mean_error) == ("source", "", 3.0, None)
    assert layer.sizes == "layer 4 → 2 (without blocks 1–2)"
    assert (embed.energy_kept, embed.worst_error, embed.worst) == (0.8, 0.3, "attn.norm, block 1")
    assert embed.mean_error == pytest.approx(0.2)
    assert (mlp.energy_kept, mlp.worst, mlp.loss) == (None, "mlp.down, block 1", 4.5)


def test_what_has_one_value_is_of_no_block() -> None:
    facts = {"embed": {**EMBED["facts"]["embed"], "errors": {"attn.norm": [0.1, 0.1], "norm": [0.2]}}}
    assert stage_rows([{**EMBED, "facts": facts}])[0].worst == "norm"


def test_series_for_pictures() -> None:
    assert spectrum(STAGES) == ([0.5, 0.3, 0.15, 0.05], 2)
    assert spectrum([SOURCE, MLP]) is None
    assert prediction_errors(STAGES) == {"attn.norm": [0.1, 0.3], "norm": [0.2], "mlp.down": [0.01, 0.02]}
    assert losses(STAGES) == [("source", 3.0), ("layer", 3.5), ("embed", 4.25), ("mlp", 4.5)]
    assert losses(unmeasured(STAGES)) == []


@pytest.mark.parametrize(("indices", "text"), [([], ""), ([3], "3"), ([0, 1, 2, 5, 7, 8], "0–2, 5, 7–8")])
def test_ranges(indices: list[int], text: str) -> None:
    assert ranges(indices) == text


RANKED = {
    **MLP,
    "candidates": [
        {"name": "block by block", "loss": 4.75, "seconds": 3.0, "failed": ""},
        {"name": "one pass", "loss": 4.5, "seconds": 1.0, "failed": ""},
        {"name": "ridge 0", "loss": None, "seconds": 0.5, "failed": "singular"},
    ],
    "chosen": "one pass",
}


def test_of_several_fits_it_is_said_which_is_kept_and_by_how_much() -> None:
    assert ranking_lines(STAGES) == []
    assert ranking_lines([SOURCE, RANKED]) == [
        "mlp: of 3 fits one pass is kept, for its loss of 4.500 on windows that none was fitted to; block by block "
        "+0.250, ridge 0 failed"
    ]


def width_of(png: bytes | None) -> int:
    assert png is not None
    assert png.startswith(b"\x89PNG")
    return int.from_bytes(png[16:20], "big")


def test_a_picture_has_a_panel_for_each_thing_that_there_is() -> None:
    three, two, one = (width_of(shrinking(s)) for s in (STAGES, unmeasured([EMBED]), unmeasured([MLP])))
    assert three == pytest.approx(3 * one, abs=3)
    assert two == pytest.approx(2 * one, abs=3)
    assert shrinking(unmeasured([LAYER])) is None


def facts_of_a_run(**transfer: Any) -> dict[str, Any]:
    """Of the least that a report is written of."""
    run = {
        "name": "transferred",
        "n_parameters": 9,
        "losses": [],
        "held_out": [{"step": 0, "loss": 4.5, "accuracy": None}],
        "steps": 0,
    }
    run |= {
        "load_s": 0.0,
        "first_step_s": None,
        "bytes_read": [0],
        "peak_rss_bytes": [0],
        "saved_url": None,
        "tokens_per_s": None,
        "mfu": None,
    }
    moved = {"seconds": 0.0, "steps_seconds": 0.0, "bytes_read": 0, "bytes_written": 0, "gb_per_s": 0.0}
    moved |= {"steps": 1, "steps_resumed": 0, "actor_peak_rss_bytes": [0], "energy_kept": {}}
    sums = {
        "rows": [],
        "n_source": 1,
        "n_target": 1,
        "flops_source": 0,
        "flops_target": 0,
        "context": 1,
        "function_kept": "exactly",
    }
    return {
        "recipe": {"source": "s", "target": {}, "transfer": {"wavelet": "haar", "gain": "auto", "depth": "auto"}},
        "plan": sums,
        "transfer": {**moved, **transfer},
        "pretrain": {"runs": [run], "total_s": 0.0},
        "export": {"folder": "f", "seconds": 0.0, "weight_bytes": 0},
        "versions": {},
        "command": "c",
        "machine": "m",
        "date": "d",
    }


def test_a_report_tells_it_where_there_was_such_a_shrinking(tmp_path: Path) -> None:
    fitted = write_report(tmp_path / "fitted.html", facts_of_a_run(calibrate=STAGES)).read_text()
    for wanted in ("How it was shrunk", "embed 4 → 2", "80.00%", "30.00% (attn.norm, block 1)", "4.250"):
        assert wanted in fitted
    assert "Kept blocks 0, 3." in fitted
    assert "<td class=number>0.3000</td><td></td><td class=number>0.0200</td>" in fitted, "the second block's row"
    assert fitted.count("<img") == 2
    noted = {**facts_of_a_run(), "notes": ["fitted to <random> tokens"]}
    assert "<li>fitted to &lt;random&gt; tokens</li>" in write_report(tmp_path / "noted.html", noted).read_text()
    ranked = write_report(tmp_path / "ranked.html", facts_of_a_run(calibrate=[SOURCE, RANKED])).read_text()
    assert "of 3 fits one pass is kept" in ranked
    bare = write_report(tmp_path / "bare.html", facts_of_a_run(calibrate=unmeasured([LAYER]))).read_text()
    assert ("How it was shrunk" in bare, bare.count("<img")) == (True, 1)
    plain = write_report(tmp_path / "plain.html", facts_of_a_run()).read_text()
    assert "How it was shrunk" not in plain


def test_a_bar_per_pass_over_the_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = type(progress.console)(file=io.StringIO(), force_terminal=True, width=120, highlight=False)
    monkeypatch.setattr(progress, "console", terminal)
    embed, loss = "for embed", "loss after embed"
    with progress.progress() as on_event:
        for event in (
            PassStarted(purpose=embed, tokens=2048, blocks=3, windows=4, shares=1),
            BlockDone(purpose=embed, block=0, of=3, seconds=0.1),
            BlockDone(purpose=embed, block=1, of=3, seconds=0.2),
            TakenUp(purpose=loss, tokens=512, loss=4.25, url="u"),
            LossMeasured(after="embed", loss=4.25),
        ):
            on_event(event)
        bars = {task.description: task for task in on_event.shown.tasks}
    assert {name: (task.completed, task.total) for name, task in bars.items()} == {
        "calibrate, for embed": (2, 3),
        "calibrate, loss after embed": (1, 1),
    }
    assert bars["calibrate, for embed"].fields["note"] == "2,048 tokens"
    assert "found done" in bars["calibrate, loss after embed"].fields["note"]
    assert "held-out loss, after embed: 4.250" in terminal.file.getvalue()


def test_the_verdict_says_what_it_gave_beside_the_source_and_what_it_cost() -> None:
    facts = facts_of_a_run(calibrate=STAGES, seconds=100.0, fitting_s=3600.0)
    size, gave, cost = verdict(facts)
    assert size.startswith("1 parameters became 1 (100%)")
    assert gave == (
        "Its held-out loss is 4.500. The source's own was not measured there; on the calibration text it is 3.000."
    )
    assert cost.startswith("It took 1 h 2 min: fitting 1 h 0 min, transfer 1 min 40 s. Resident were at most 0 B")
    (run,) = facts["pretrain"]["runs"]
    source = run | {"name": "source", "held_out": [{"step": 0, "loss": 3.25, "accuracy": None}]}
    scratch = run | {"name": "scratch", "held_out": [{"step": 9, "loss": 6.0, "accuracy": None}]}
    trained = run | {"held_out": [*run["held_out"], {"step": 9, "loss": 3.0, "accuracy": None}]}
    facts["pretrain"]["runs"] = [source, trained, scratch]
    assert verdict(facts)[1] == (
        "Its held-out loss is 3.000 after 9 steps, and was 4.500 before them; trained from scratch alike, it is 6.000. "
        "The source's own is 3.250: the target's is 0.250 below it."
    )
    bare = facts_of_a_run()
    assert verdict(bare)[1].endswith("was not measured (train.source_loss: true does).")


def test_a_report_fits_narrow_and_dark_screens(tmp_path: Path) -> None:
    text = write_report(tmp_path / "report.html", facts_of_a_run()).read_text()
    assert "width=device-width" in text
    assert "light-dark(" in text
    assert text.count("<table>") == text.count('<div class="wide"><table>')


@pytest.mark.parametrize(
    ("n", "text"),
    [(0, "0"), (999, "999"), (134_515_008, "134.5 M"), (999_999, "1.0 M"), (2e18, "2.0 E"), (7e19, "70.0 E")],
)
def test_counts(n: float, text: str) -> None:
    assert count(n) == text


def test_units_join_their_prefix() -> None:
    assert count(139.4e9, "FLOP") == "139.4 GFLOP"
    assert count(12, "FLOP") == "12 FLOP"
    assert [duration(s) for s in (0.04, 59.94, 363, 7500)] == ["0.0 s", "59.9 s", "6 min 3 s", "2 h 5 min"]
    assert [duration(s) for s in (59.96, 119.7, 3599.7)] == ["1 min 0 s", "2 min 0 s", "1 h 0 min"], "no 60 s is left"
