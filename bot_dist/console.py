"""What the terminal shows: tables and progress bars, from plain data."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import yaml
from rich import box
from rich.console import Console, ConsoleOptions, RenderableType
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.segment import Segment
from rich.table import Table

from bot_dist.errors import presentable
from bot_dist.recipe import members_of
from bot_dist.units import size
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.checkpoint import Manifest
    from bot_dist.checkpoint.summary import OperatorRow
    from bot_dist.checkpoint.verification import Verification
    from bot_dist.convert.diff import Diff
    from bot_dist.evaluate.comparison import ComparisonRecipe
    from bot_dist.plan import Simulation, TransferPlan
    from bot_dist.recipe import Recipe

SHOWN_ACTORS = 8
SHOWN_DIGEST = 12
"""Characters of a digest that tell it from others."""
PIPE_WIDTH = 120
"""Columns where the output is no terminal."""
MOST_FOREIGN = 10
"""Files that are no part of a store, named one by one."""


class _Terminal(Console):
    """Escapes what is not printable in names and texts out of files, which could move the cursor or worse."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text, style, control = segment
            if control or text.isprintable() or text.strip("\n").isprintable():
                yield segment
            else:
                yield Segment("\n".join(presentable(line) for line in text.split("\n")), style)


console = _Terminal(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console = _Terminal(highlight=False, soft_wrap=True, width=PIPE_WIDTH)


def show_recipe(recipe: Recipe | ComparisonRecipe) -> None:
    console.print(yaml.safe_dump(recipe.public(), sort_keys=False), markup=False)


def show_plan(plan: TransferPlan, recipe: Recipe) -> None:
    """Every module, and the sums that matter."""
    from bot_dist.plan import summarise

    summary = summarise(plan, recipe.train.context)
    table = Table(title=f"{label(recipe.source)} → {label(recipe.transferred_url)}", title_justify="left")
    for heading in ("module", "source", "target"):
        table.add_column(heading, no_wrap=True)
    table.add_column("operator per axis")
    for heading in ("read", "written", "peak", "steps"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.rows:
        operators = ", ".join(f"{axis} {operator}" for axis, operator in row.operators.items()) or "keep"
        table.add_row(
            row.name,
            shape(row.source_shape),
            shape(row.target_shape),
            operators + (f", scale ×{row.scale:g}" if row.scale != 1 else ""),
            size(row.bytes_read),
            size(row.bytes_written),
            size(row.peak_bytes),
            str(row.steps),
        )
    table.add_section()
    total = (size(summary.bytes_read), size(summary.bytes_written), size(max(summary.actor_peak)), str(summary.steps))
    table.add_row("all", "", "", "", *total)
    console.print(table)
    console.print(
        f"parameters {summary.n_source:,} → {summary.n_target:,}; forward FLOPs per token "
        f"{summary.flops_source / 1e6:,.0f} M → {summary.flops_target / 1e6:,.0f} M (context {summary.context})"
    )
    for note in plan.notes:
        console.print(f"note: {note}", markup=False)
    console.print(
        f"mesh: tensor {plan.mesh.tensor} × data {plan.mesh.data}; bytes per actor "
        f"{', '.join(size(n) for n in summary.actor_bytes[:8])}{' …' if plan.mesh.size > 8 else ''}; peak tensors per "
        f"actor {size(max(summary.actor_peak))} of {size(plan.memory_limit)}"
    )


def show_simulation(simulation: Simulation) -> None:
    """The slowest actors, the sums, and what limits."""
    table = Table(title="simulated", title_justify="left")
    for heading in ("actor", "steps", "read", "written", "requests", "peak"):
        table.add_column(heading, justify="right", no_wrap=True)
    for limit in simulation.slowest.seconds:
        table.add_column(f"{limit} s", justify="right", no_wrap=True)
    table.add_column("limit")
    actors = sorted(simulation.actors, key=lambda actor: -actor.total_s)
    for actor in actors[:SHOWN_ACTORS]:
        table.add_row(
            str(actor.rank),
            str(actor.steps),
            size(actor.bytes_read),
            size(actor.bytes_written),
            str(actor.requests),
            size(actor.peak_bytes),
            *(f"{s:.3g}" for s in actor.seconds.values()),
            actor.limit,
        )
    console.print(table)
    if len(actors) > SHOWN_ACTORS:
        console.print(f"… and {len(actors) - SHOWN_ACTORS} actors that take {actors[-1].total_s:.3g} s and more")
    console.print(f"the whole takes {actors[0].total_s:.3g} s, limited by {simulation.limit}")


@contextmanager
def progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """Progress bars for the events of a run."""
    columns = (
        TextColumn("{task.description:<24}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield _Bars(bars)


class _Bars:
    """One bar per stage or training run, fed by events, of several members of a family at once."""

    def __init__(self, bars: Progress) -> None:
        self.bars = bars
        self.tasks: dict[str, TaskID] = {}
        self.bytes: dict[str, int] = {}
        self.started: dict[str, float] = {}
        self.member = ""
        self._lock = threading.Lock()

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"on_{event['stage']}_{event['event']}", None)
        with self._lock:
            self.member = event.get("member", "")
            if handler is not None:
                handler(event)

    def say(self, text: str, style: str | None = None) -> None:
        self.bars.console.print(self.named(text), style=style, markup=False)

    def named(self, name: str) -> str:
        return f"{self.member}: {name}" if self.member else name

    def bar(self, name: str, total: float) -> TaskID:
        if (name := self.named(name)) not in self.tasks:
            self.tasks[name] = self.bars.add_task(name, total=total, note="")
        return self.tasks[name]

    def start_bytes(self, name: str, total: float) -> None:
        self.bytes[self.named(name)], self.started[self.named(name)] = 0, time.perf_counter()
        self.bar(name, total)

    def add_bytes(self, name: str, n: int, advance: float) -> None:
        name = self.named(name)
        self.bytes[name] += n
        rate = self.bytes[name] / max(1e-9, time.perf_counter() - self.started[name]) / 1e9
        self.bars.update(self.tasks[name], advance=advance, note=f"{rate:.2f} GB/s")

    def calibration(self, event: dict[str, Any]) -> str:
        return f"calibrate, {event.get('purpose', 'statistics')}"

    def on_calibrate_start(self, event: dict[str, Any]) -> None:
        task = self.bar(self.calibration(event), event["blocks"])
        self.bars.update(task, note=f"{event['tokens']:,} tokens")

    def on_calibrate_block(self, event: dict[str, Any]) -> None:
        self.bars.update(self.tasks[self.named(self.calibration(event))], completed=event["block"] + 1)

    def on_calibrate_cached(self, event: dict[str, Any]) -> None:
        task = self.bar(self.calibration(event), 1)
        self.bars.update(task, completed=1, note=f"{event['tokens']:,} tokens, found done")

    def on_calibrate_loss(self, event: dict[str, Any]) -> None:
        if event["loss"] is not None:
            self.say(f"held-out loss, {_after(event['after'])}: {event['loss']:.3f}")

    def on_transfer_start(self, event: dict[str, Any]) -> None:
        self.start_bytes("transfer (steps)", event["steps"])

    def on_transfer_actor_died(self, event: dict[str, Any]) -> None:
        steps = ", ".join(event["steps"]) or "nothing"
        self.say(f"actor {event['rank']} died while doing {steps}; others go on, a new one starts ({event['why']})")

    def on_transfer_step(self, event: dict[str, Any]) -> None:
        self.add_bytes("transfer (steps)", event["bytes_read"] + event["bytes_written"], 1)

    def on_compare_begin(self, event: dict[str, Any]) -> None:
        self.say(f"to be trained: {event['job']}")

    def on_export_start(self, event: dict[str, Any]) -> None:
        self.start_bytes("export (MB)", round(event["bytes"] / 1e6))

    def on_export_written(self, event: dict[str, Any]) -> None:
        self.add_bytes("export (MB)", event["bytes"], event["bytes"] / 1e6)

    def on_verify_start(self, event: dict[str, Any]) -> None:
        self.start_bytes("verify (MB)", round(event["bytes"] / 1e6))

    def on_verify_read(self, event: dict[str, Any]) -> None:
        self.add_bytes("verify (MB)", event["bytes"], event["bytes"] / 1e6)

    def on_diff_start(self, event: dict[str, Any]) -> None:
        self.bar("diff (M elements)", round(event["elements"] / 1e6))

    def on_diff_read(self, event: dict[str, Any]) -> None:
        self.bars.update(self.tasks[self.named("diff (M elements)")], advance=event["elements"] / 1e6)

    def on_pretrain_tokens_damaged(self, event: dict[str, Any]) -> None:
        self.say(f"tokens are made again: {event['why']}", "yellow")

    def on_pretrain_tokenised(self, event: dict[str, Any]) -> None:
        task = self.bar("tokenise (MB of text)", round(event["of_bytes"] / 1e6))
        self.bars.update(task, completed=round(event["bytes"] / 1e6))

    def on_pretrain_resumed(self, event: dict[str, Any]) -> None:
        self.say(f"{event['run']}: goes on from step {event['step']} ({event['url']})")

    def on_pretrain_moments(self, event: dict[str, Any]) -> None:
        self.bars.console.print(f"{event['run']}: AdamW goes on after the source's {event['step']} steps", markup=False)

    def on_pretrain_state_passed(self, event: dict[str, Any]) -> None:
        found = f"{event['run']}: the state of step {event['step']} is passed over: {event['problem']}"
        self.say(found, "yellow")

    def on_pretrain_skipped(self, event: dict[str, Any]) -> None:
        found = f"{event['run']}: step {event['step']} is left out: its loss is {event['loss']:.4g}"
        self.say(found, "yellow")

    def on_pretrain_finished_before(self, event: dict[str, Any]) -> None:
        self.say(f"{event['run']}: its {event['steps']} steps were done before")

    def on_pretrain_step(self, event: dict[str, Any]) -> None:
        task = self.bar(f"pretrain {event['run']}", event["steps"])
        self.bars.update(task, completed=event["step"], note=_speed(event))

    def on_pretrain_held_out(self, event: dict[str, Any]) -> None:
        if event["steps"]:
            self.bar(f"pretrain {event['run']}", event["steps"])
        self.say(f"{event['run']}: held-out loss after {event['step']} steps: {event['loss']:.3f}{_accuracy(event)}")


def _after(stage: str) -> str:
    return "source" if stage == "source" else f"after {stage}"


def _speed(step: Mapping[str, Any]) -> str:
    return f"loss {step['loss']:.3f}, {step['tokens_per_s']:,.0f} tokens/s, MFU {step['mfu']:.1%}"


def _accuracy(held_out: Mapping[str, Any]) -> str:
    return "" if held_out["accuracy"] is None else f" ({held_out['accuracy']:.1%} right)"


def show_transfer(report: dict[str, Any], url: str) -> None:
    if stages := report.get("calibrate"):
        show_shrinking(stages)
    console.print(
        f"committed {label(url)}: {size(report['bytes_read'])} read, {size(report['bytes_written'])} written in "
        f"{report['steps_seconds']:.1f} s ({report['gb_per_s']:.2f} GB/s), {report['steps']} steps"
        + (f" of which {report['steps_resumed']} were found done" if report["steps_resumed"] else "")
        + f"; peak memory per actor {size(max(report['actor_peak_rss_bytes']))}"
    )
    if report["energy_kept"]:
        kept = ", ".join(f"{name} {share:.1%}" for name, share in report["energy_kept"].items())
        console.print(f"energy kept: {kept}")
    for name, n in report["overflowed"].items():
        console.print(f"warning: {name}: {n:,} values are too large for its dtype and became infinite", style="yellow")


def show_shrinking(stages: Sequence[Mapping[str, Any]]) -> None:
    """Every stage of a shrinking that was fitted to its source."""
    from bot_dist.evaluate.shrinking import HEADINGS, cells, stage_rows

    table = Table(title="shrunk stage by stage", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in stage_rows(stages):
        table.add_row(*cells(row))
    console.print(table)


def show_pretrain(result: dict[str, Any]) -> None:
    table = Table(title=f"held-out loss, {result['workers']} workers on {result['device']}", title_justify="left")
    for heading in ("run", "parameters", "loss by step", "load", "first step", "tokens/s, MFU", "peak memory per rank"):
        table.add_column(heading, overflow="fold")
    for run in result["runs"]:
        table.add_row(
            run["name"],
            f"{run['n_parameters']:,}",
            "  ".join(f"{h['step']}: {h['loss']:.3f}{_accuracy(h)}" for h in run["held_out"]),
            f"{run['load_s']:.1f} s",
            f"{run['first_step_s']:.1f} s" if run["first_step_s"] is not None else "–",
            f"{run['tokens_per_s']:,.0f}, {run['mfu']:.1%}" if run["tokens_per_s"] is not None else "–",
            ", ".join(size(n) for n in run["peak_rss_bytes"]),
        )
    console.print(table)


def show_export(report: dict[str, Any]) -> None:
    console.print(f"exported {report['source']} in {report['seconds']:.1f} s to {report['folder']}")
    for note in report.get("notes", ()):
        console.print(f"note: {note}")
    if "logits" in report:
        logits = report["logits"]
        console.print(
            f"transformers loads it: {len(logits['missing_keys'])} missing, {len(logits['unexpected_keys'])} "
            f"unexpected keys; logits differ from the trained model's by at most {logits['max_abs_difference']:.2e} "
            f"(max |logit| {logits['max_abs_logit']:.1f})"
        )


def show_run(facts: dict[str, Any], recipe: Recipe) -> None:
    """Of a family: every member, and the index."""
    if recipe.family:
        for name, member in members_of(recipe).items():
            console.rule(name, align="left")
            show_run(facts["members"][name], member)
        console.print(f"index: {facts['report']}")
        return
    if facts["complete_before"]:
        console.print(
            f"this run is complete: {facts['report']}\nstart over with --overwrite, or give another output "
            f"with --set output=DIR"
        )
        return
    show_transfer(facts["transfer"], recipe.transferred_url)
    show_pretrain(facts["pretrain"])
    show_export(facts["export"])
    console.print(f"report: {facts['report']}")


def show_trials(facts: dict[str, Any], output: str) -> None:
    """What a comparison came to."""
    source = facts["source"]
    title = f"held-out loss; the source, {source['url']}, has {source['held_out_loss']:.3f}"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    first, *others = facts["table"]["headings"]
    table.add_column(first, overflow="fold")
    for heading in others:
        table.add_column(heading, justify="right")
    for line in facts["table"]["lines"]:
        table.add_row(*line)
    console.print(table)
    for note in facts["notes"]:
        console.print(f"note: {note}", markup=False)
    console.print(
        f"curves, table and all that it takes to repeat it: {output}/comparison.{{png,md,json}}", markup=False
    )


def show_verification(url: str, found: Verification) -> None:
    for damage in found.damaged:
        console.print(str(damage), markup=False)
    foreign = list(found.foreign.items())
    for name, n in foreign[:MOST_FOREIGN]:
        console.print(f"note: {name} ({size(n)}) is no part of the store", markup=False)
    if more := foreign[MOST_FOREIGN:]:
        console.print(f"note: so are {len(more)} more files ({size(sum(n for _, n in more))})")
    verdict = f"{len(found.damaged)} damaged or missing" if found.damaged else "intact"
    console.print(f"{label(url)}: {verdict} ({found.read})", markup=False)


def show_diff(first: str, second: str, found: Diff) -> None:
    if found.config:
        table = Table("configuration", "first", "second", title_justify="left")
        for key, pair in found.config.items():
            table.add_row(key, *("–" if value is None else str(value) for value in pair))
        console.print(table)
    if found.parameters:
        table = Table("parameter", "difference", title_justify="left")
        for heading in ("elements", "max |difference|", "relative norm"):
            table.add_column(heading, justify="right")
        for difference in found.parameters:
            numbers = (f"{v.elements:,}", f"{v.max_abs:.3g}", f"{v.relative:.3g}") if (v := difference.values) else ()
            table.add_row(difference.name, difference.what or "values", *numbers)
        console.print(table)
    equal = f"{found.by_digests} parameters equal by their digests, {found.by_reading} by reading both"
    left = f", {len(found.undecided)} not compared" if found.undecided else ""
    verdict = (
        "no difference" if found.equal else f"{len(found.parameters)} parameters and {len(found.config)} keys differ"
    )
    console.print(f"{label(first)}, {label(second)}: {verdict} ({equal}{left})", markup=False)


def show_store(url: str, manifest: Manifest) -> None:
    """One row per module, the sums, and the provenance."""
    from bot_dist.checkpoint.summary import provenance_lines, store_rows, store_totals

    table = Table(title=label(url), title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("module", "axes", "dtype", "shard", "chunk", "arrays", "bytes", "energy"):
        numeric = heading in ("arrays", "bytes", "energy")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "axes")
    for row in store_rows(manifest):
        stored = row.stored
        table.add_row(
            row.name,
            ", ".join(f"{a} {n}" for a, n in zip(stored.parameter.axes, stored.parameter.sizes, strict=True)),
            stored.dtype,
            shape(stored.shard),
            shape(stored.chunk),
            str(row.arrays),
            size(row.nbytes),
            f"{row.energy_kept:.1%}" if row.energy_kept is not None else "–",
        )
    console.print(table)
    totals = store_totals(manifest)
    held = f"{totals.arrays:,} in {totals.shards:,} shards of {totals.chunks:,} chunks, {size(totals.nbytes)}"
    lines = [
        ("arrays", held),
        ("files", ", ".join(manifest.files) or "none"),
        ("digest", manifest.digest),
        *provenance_lines(manifest),
    ]
    for heading, text in lines:
        console.print(f"{heading:<14} {text}", markup=False)
    if stages := manifest.provenance.get("transfer", {}).get("calibrate"):
        show_shrinking(stages)


def show_operators(url: str, rows: Sequence[OperatorRow]) -> None:
    """One row per operator that was fitted for a store."""
    if not rows:
        console.print(f"{label(url)} holds no fitted operators", markup=False)
        return
    for store, held in itertools.groupby(rows, key=lambda row: row.store):
        table = Table(title=f"{label(url)}/{store}", title_justify="left", box=box.SIMPLE_HEAD)
        for heading in ("operator", "kind", "shape", "layers", "dtype", "bytes", "digest", "used for"):
            numeric = heading in ("layers", "bytes")
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "used for")
        for row in held:
            table.add_row(
                row.name,
                row.kind,
                shape(row.shape) or "–",
                str(row.layers) if row.layers is not None else "all",
                row.dtype,
                size(row.nbytes),
                f"{row.digest[:SHOWN_DIGEST]}…",
                ", ".join(f"{module}:{axis}" for module, axis in row.used_for) or "–",
            )
        console.print(table)


def show_operators_json(rows: Sequence[OperatorRow]) -> None:
    """The same as a JSON list of objects."""
    print(json.dumps([dataclasses.asdict(row) for row in rows], indent=1))


def show_manifest(manifest: Manifest) -> None:
    """The manifest as JSON, but for the digests of the chunks."""
    print(json.dumps({**manifest.contents(), "digest": manifest.digest}, indent=1))


def shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
