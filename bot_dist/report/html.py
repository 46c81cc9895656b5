"""The report of a run: one self-contained HTML file."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from bot_dist.report.plots import energy_bars, loss_curves, shrinking
from bot_dist.report.shrinking import HEADINGS, Stages, cells, prediction_errors, ranges, ranking_lines, stage_rows
from bot_dist.storage.disk import write_whole
from bot_dist.units import count, duration, size

_STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1f2328, #d8dce2); --page: light-dark(#fff, #14161a);
  --line: light-dark(#d9dce1, #333842); --soft: light-dark(#f4f5f7, #1d2026); --link: light-dark(#0b62a8, #7bbcf0); }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 1.5rem auto; padding: 0 1rem;
  color: var(--ink); background: var(--page); }
h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; }
a { color: var(--link); }
.verdict { font-size: 1.05rem; border-left: .3rem solid #2a86c0; background: var(--soft); padding: .6rem 1rem; }
.verdict p { margin: .3rem 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .9rem; }
th, td { padding: .2rem .7rem .2rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
td.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
pre, blockquote { background: var(--soft); padding: .7rem; margin: .5rem 0; overflow-x: auto; }
blockquote { white-space: pre-wrap; overflow-wrap: anywhere; }
img { max-width: 100%; height: auto; }
"""


def write_report(path: Path, facts: dict[str, Any]) -> Path:
    """Write ``facts`` (what ``pipeline.run`` returns) to ``path``, and the loss curves beside it as
    ``loss_curves.png``. Returns ``path``."""
    curves = loss_curves(facts["pretrain"]["runs"])
    write_whole(path.parent / "loss_curves.png", curves)
    sections = [
        _header(facts),
        f'<div class="verdict">{"".join(f"<p>{html.escape(line)}</p>" for line in verdict(facts))}</div>',
        "<h2>Loss curves</h2>",
        _image(curves, "training and held-out loss of every run by optimizer step"),
        _losses(facts["pretrain"]),
        *_samples(facts.get("samples", {})),
        "<h2>Stages</h2>",
        _stages(facts),
        _export(facts["export"]),
        "<h2>The transfer</h2>",
        _modules(facts["plan"]),
        *_notes(facts.get("notes", ())),
    ]
    if stages := facts["transfer"].get("calibrate"):
        sections += ["<h2>How it was shrunk</h2>", *_shrinking(stages)]
    if facts["transfer"]["energy_kept"]:
        sections += ["<h2>Energy kept</h2>", _image(energy_bars(facts["transfer"]["energy_kept"]), "energy kept")]
    sections += ["<h2>How to repeat it</h2>", _repeat(facts)]
    _write(path, facts["recipe"]["source"], sections)
    return path


def _notes(notes: Sequence[str]) -> Iterator[str]:
    """The notes of a plan, as a list."""
    if notes:
        yield f"<ul>{''.join(f'<li>{html.escape(note)}</li>' for note in notes)}</ul>"


def _write(path: Path, title: str, sections: Iterable[str]) -> None:
    body = "\n".join(sections)
    write_whole(
        path,
        f"<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>{html.escape(f'bot_dist: {title}')}</title><style>{_STYLE}</style>"
        f"<body><main>{body}</main></body></html>\n",
    )


def write_index(path: Path, facts: dict[str, Any]) -> Path:
    """Write the table of a family's members that are done (facts by name under ``"members"``, and the ``"recipe"``),
    with links to their reports. Returns ``path``."""
    recipe = facts["recipe"]
    headings = ("member", "target", "parameters", "held-out loss (after step)", "scratch", "transfer, s", "pretrain, s")
    rows = [(name, *_member(member)) for name, member in facts["members"].items()]
    links = " · ".join(
        f'<a href="{html.escape(name)}/report.html">{html.escape(name)}</a>' for name in facts["members"]
    )
    waiting = [name for name in recipe["family"] if name not in facts["members"]]
    _write(
        path,
        f"family of {recipe['source']}",
        [
            f"<h1>{html.escape(recipe['source'])}</h1><p>{links}</p>",
            table(headings, rows),
            f"<p>Not done yet: {html.escape(', '.join(waiting))}.</p>" if waiting else "",
            f"<pre>{html.escape(yaml.safe_dump(recipe, sort_keys=False))}</pre>",
        ],
    )
    return path


def _member(facts: dict[str, Any]) -> Sequence[str]:
    runs = {run["name"]: run["held_out"] for run in facts["pretrain"]["runs"]}
    losses = [", ".join(map(_held_out, runs.get(name, ()))) for name in ("transferred", "scratch")]
    sizes = ", ".join(f"{name} {size}" for name, size in facts["recipe"]["target"].items())
    seconds = (f"{facts[stage][key]:.1f}" for stage, key in (("transfer", "seconds"), ("pretrain", "total_s")))
    return sizes, f"{facts['plan']['n_target']:,}", *losses, *seconds


def _header(facts: dict[str, Any]) -> str:
    recipe = facts["recipe"]
    sizes = ", ".join(f"{name} {size}" for name, size in recipe["target"].items()) or "all sizes kept"
    return f"<h1>{html.escape(recipe['source'])}</h1><p>Target: {html.escape(sizes)}.</p>"


def verdict(facts: Mapping[str, Any]) -> list[str]:
    """The outcome of a run beside its source, and its cost, in a sentence or two each."""
    plan, transfer, pretrain = facts["plan"], facts["transfer"], facts["pretrain"]
    return [
        f"{count(plan['n_source'])} parameters became {count(plan['n_target'])} "
        f"({plan['n_target'] / plan['n_source']:.0%}); a token's forward pass takes "
        f"{count(plan['flops_target'], 'FLOP')} instead of {count(plan['flops_source'], 'FLOP')} at context "
        f"{plan['context']}.",
        _gave(pretrain["runs"], _source_when_fitted(transfer)),
        _cost(facts),
    ]


def _gave(runs: Sequence[Mapping[str, Any]], source_when_fitted: float | None) -> str:
    """Held-out losses, in a sentence or two."""
    held_out = {run["name"]: run["held_out"] for run in runs}
    first, last = held_out["transferred"][0], held_out["transferred"][-1]
    text = f"Its held-out loss is {last['loss']:.3f}"
    if last["step"]:
        text += f" after {last['step']} steps, and was {first['loss']:.3f} before them"
    if "scratch" in held_out:
        text += f"; trained from scratch alike, it is {held_out['scratch'][-1]['loss']:.3f}"
    if "source" in held_out:
        source = held_out["source"][0]["loss"]
        return f"{text}. The source's own is {source:.3f}: {_apart(last['loss'] - source)}."
    if source_when_fitted is not None:
        return (
            f"{text}. The source's own was not measured there; on the calibration text it is {source_when_fitted:.3f}."
        )
    return f"{text}. The source's own was not measured (train.source_loss: true does)."


def _apart(difference: float) -> str:
    return f"the target's is {abs(difference):.3f} {'above' if difference > 0 else 'below'} it"


def _source_when_fitted(transfer: Mapping[str, Any]) -> float | None:
    return next((row.loss for row in stage_rows(transfer.get("calibrate") or ()) if row.name == "source"), None)


def _cost(facts: Mapping[str, Any]) -> str:
    transfer, pretrain, export = facts["transfer"], facts["pretrain"], facts["export"]
    parts = {
        "fitting": transfer.get("fitting_s", 0.0),
        "transfer": transfer["seconds"],
        "training": pretrain["total_s"],
        "export": export["seconds"],
    }
    each = ", ".join(f"{name} {duration(s)}" for name, s in parts.items() if s >= 0.05)
    peak = max((n for run in pretrain["runs"] for n in run["peak_rss_bytes"]), default=0)
    return (
        f"It took {duration(sum(parts.values()))}: {each or 'nothing to speak of'}. "
        f"Resident were at most {size(max(transfer['actor_peak_rss_bytes']))} in a shard actor, and {size(peak)} in a "
        "training worker."
    )


def _losses(pretrain: dict[str, Any]) -> str:
    rows = [
        (
            run["name"],
            f"{run['n_parameters']:,}",
            ", ".join(map(_held_out, run["held_out"])),
            f"{run['load_s']:.1f}",
            f"{run['first_step_s']:.1f}" if run["first_step_s"] is not None else "–",
            f"{run['tokens_per_s']:,.0f}" if run["tokens_per_s"] is not None else "–",
            f"{run['mfu']:.1%}" if run["mfu"] is not None else "–",
            ", ".join(f"{n / 1e6:.0f}" for n in run["bytes_read"]),
            ", ".join(f"{n / 1e6:.0f}" for n in run["peak_rss_bytes"]),
        )
        for run in pretrain["runs"]
    ]
    return table(
        (
            "run",
            "parameters",
            "held-out loss (after step)",
            "load, s",
            "first step, s",
            "tokens/s",
            "MFU",
            "MB read per rank",
            "peak MB per rank",
        ),
        rows,
    )


def _samples(samples: Mapping[str, Sequence[str]]) -> Iterator[str]:
    """Texts that models wrote, side by side by who wrote them."""
    if samples:
        yield "<h2>What they write</h2><p>From where documents begin, at temperature 1, from the same numbers.</p>"
    for name, texts in samples.items():
        yield f"<h3>The {html.escape(name)}</h3>"
        yield from (f"<blockquote>{html.escape(text)}</blockquote>" for text in texts)


def _held_out(measured: Mapping[str, Any]) -> str:
    accuracy = "" if measured["accuracy"] is None else f"; {measured['accuracy']:.1%} right"
    return f"{measured['loss']:.3f} ({measured['step']}{accuracy})"


def _stages(facts: dict[str, Any]) -> str:
    transfer, pretrain, export = facts["transfer"], facts["pretrain"], facts["export"]
    saved = sum(run["n_parameters"] * 4 for run in pretrain["runs"] if run["saved_url"])
    rows = [
        ("fitting", transfer.get("fitting_s", 0.0), 0, 0),
        ("transfer", transfer["seconds"], transfer["bytes_read"], transfer["bytes_written"]),
        ("pretrain", pretrain["total_s"], sum(sum(run["bytes_read"]) for run in pretrain["runs"]), saved),
        ("export", export["seconds"], export["weight_bytes"], export["weight_bytes"]),
    ]
    text = [(name, f"{s:.1f}", f"{read / 1e6:.1f}", f"{written / 1e6:.1f}") for name, s, read, written in rows]
    peaks = ", ".join(f"{n / 1e6:.0f}" for n in transfer["actor_peak_rss_bytes"])
    return (
        table(("stage", "seconds", "MB read", "MB written"), text)
        + f"<p>Transfer steps: {transfer['steps']} in {transfer['steps_seconds']:.1f} s, "
        f"{transfer['gb_per_s']:.2f} GB/s; "
        f"{transfer['steps_resumed']} were found done. Peak resident MB per shard actor: {peaks}.</p>"
    )


def _export(export: dict[str, Any]) -> str:
    text = f"<p>Exported to {html.escape(str(export['folder']))}."
    if "logits" in export:
        logits = export["logits"]
        text += (
            f" transformers loads it with {len(logits['missing_keys'])} missing and "
            f"{len(logits['unexpected_keys'])} unexpected keys; its logits differ from the trained model's by at most "
            f"{logits['max_abs_difference']:.2e} (largest |logit| {logits['max_abs_logit']:.1f})."
        )
    return text + "</p>"


def _modules(plan: dict[str, Any]) -> str:
    rows = [
        (
            row["name"],
            "×".join(map(str, row["source_shape"])),
            "×".join(map(str, row["target_shape"])),
            ", ".join(f"{axis} {operator}" for axis, operator in row["operators"].items()) or "keep",
            f"{row['bytes_read'] / 1e6:.2f}",
            f"{row['bytes_written'] / 1e6:.2f}",
            f"{row['peak_bytes'] / 1e6:.2f}",
        )
        for row in plan["rows"]
    ]
    kept = plan["function_kept"]
    told = f"<p>The source's function is kept: {html.escape(kept)}.</p>" if kept else ""
    return told + table(("module", "source", "target", "operator per axis", "MB read", "MB written", "peak MB"), rows)


def _shrinking(stages: Stages) -> Iterator[str]:
    if (picture := shrinking(stages)) is not None:
        yield _image(picture, "how it was shrunk")
    yield table(HEADINGS, [cells(row) for row in stage_rows(stages)])
    for line in ranking_lines(stages):
        yield f"<p>{html.escape(line)}.</p>"
    for stage in stages:
        if layers := stage["facts"].get("layer"):
            similarity = ", ".join(f"{value:.3f}" for value in layers["similarity"])
            yield (
                f"<p>Kept blocks {ranges(layers['kept'])}. Mean cosine between the hidden states before and after each "
                f"block: {similarity}.</p>"
            )
    if errors := prediction_errors(stages):
        yield "<p>Share that stays unexplained, of the energy of what each norm sees or each map puts out:</p>"
        rows = [(str(i), *_numbers(errors, i)) for i in range(max(map(len, errors.values())))]
        yield table(
            ("block", *(f"{name} (outside blocks)" if len(e) == 1 else name for name, e in errors.items())), rows
        )


def _numbers(by_block: Mapping[str, Sequence[float]], block: int) -> Iterator[str]:
    for values in by_block.values():
        yield f"{values[block]:.4f}" if block < len(values) else ""


def _repeat(facts: dict[str, Any]) -> str:
    recipe = yaml.safe_dump(facts["recipe"], sort_keys=False)
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    return (
        f"<pre>{html.escape(facts['command'])}</pre><p>{html.escape(facts['date'])}, {html.escape(facts['machine'])}; "
        f"{html.escape(versions)}.</p><pre>{html.escape(recipe)}</pre>"
    )


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{html.escape(alt)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table; every cell but a row's first is right-aligned when it looks like a number."""
    head = "".join(f"<th>{html.escape(h)}</th>" for h in headings)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>{body}</table></div>'


def _cell(text: str) -> str:
    number = text.replace(",", "").replace(".", "").isdigit()
    return f"<td{' class=number' if number else ''}>{html.escape(text)}</td>"
