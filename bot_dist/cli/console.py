"""What the verbs show of their results: tables and lines, from plain data; and the same as JSON."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from bot_dist.cli.progress import accuracy
from bot_dist.cli.terminal import console, warn
from bot_dist.recipe import commented, members_of
from bot_dist.units import count, size
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.compare.recipe import ComparisonRecipe
    from bot_dist.formats.describe import Description
    from bot_dist.formats.diff import Diff
    from bot_dist.plan import Simulation, TransferPlan
    from bot_dist.recipe import Recipe
    from bot_dist.store import Manifest
    from bot_dist.store.summary import OperatorRow
    from bot_dist.store.verification import Verification

SHOWN_ACTORS = 8
SHOWN_DIGEST = 12
"""Characters of a digest that tell it from others."""
MOST_FOREIGN = 10
"""Files that are no part of a store, named one by one."""


def show_recipe(recipe: Recipe | ComparisonRecipe) -> None:
    """As YAML that can be run again, every key under what it does."""
    print(commented(type(recipe), recipe.public()), end="")


def show_plan(plan: TransferPlan, recipe: Recipe) -> None:
    """Every module, and the sums that matter."""
    from bot_dist.plan import summarise

    summary = summarise(plan, recipe.train.context)
    table = Table(title=f"{label(recipe.source)} → {label(recipe.transferred_url)}", title_justify="left")
    for heading in ("module", "source", "target"):
        table.add_column(heading, no_wrap=True)
    table.add_column("operator per axis", min_width=24)
    for heading in ("read", "written", "peak", "steps") if console.wide else ():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.rows:
        operators = ", ".join(f"{axis} {operator}" for axis, operator in row.operators.items()) or "keep"
        numbers = (size(row.bytes_read), size(row.bytes_written), size(row.peak_bytes), str(row.steps))
        table.add_row(
            row.name,
            shape(row.source_shape),
            shape(row.target_shape),
            operators + (f", scale ×{row.scale:g}" if row.scale != 1 else ""),
            *(numbers if console.wide else ()),
        )
    console.print(table)
    console.print(
        f"all: {size(summary.bytes_read)} read, {size(summary.bytes_written)} written, in {summary.steps} steps"
    )
    before, after = (count(n, "FLOP") for n in (summary.flops_source, summary.flops_target))
    console.print(
        f"parameters {summary.n_source:,} → {summary.n_target:,}; forward per token {before} → {after} "
        f"(context {summary.context})"
    )
    if summary.function_kept is not None:
        console.print(f"function kept: {summary.function_kept}", markup=False)
    for note in plan.notes:
        console.print(f"note: {note}")
    console.print(
        f"mesh: tensor {plan.mesh.tensor} × data {plan.mesh.data}; bytes per actor "
        f"{', '.join(size(n) for n in summary.actor_bytes[:8])}{' …' if plan.mesh.size > 8 else ''}; peak tensors per "
        f"actor {size(max(summary.actor_peak))} of {size(plan.memory_limit)}"
    )


def plan_json(plan: TransferPlan, recipe: Recipe, simulation: Simulation | None = None) -> dict[str, Any]:
    """A plan as plain data."""
    from bot_dist.plan import summarise

    simulated = {"simulation": dataclasses.asdict(simulation)} if simulation is not None else {}
    return {
        "source": label(recipe.source),
        "target_url": label(recipe.transferred_url),
        "digest": plan.digest,
        "notes": list(plan.notes),
        "mesh": dataclasses.asdict(plan.mesh),
        "memory_limit": plan.memory_limit,
        **dataclasses.asdict(summarise(plan, recipe.train.context)),
        **simulated,
    }


def show_json(data: Any) -> None:
    """Plain data on standard output, whatever else is silenced."""
    print(json.dumps(data, indent=1))


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
    for note in report.get("notes", ()):  # stores of earlier versions have none
        console.print(f"note: {note}", markup=False)
    for name, n in report["overflowed"].items():
        warn(f"warning: {name}: {n:,} values are too large for its dtype and became infinite")


def show_shrinking(stages: Sequence[Mapping[str, Any]]) -> None:
    """Every stage of a shrinking that was fitted to its source."""
    from bot_dist.report.shrinking import HEADINGS, cells, ranking_lines, stage_rows

    table = Table(title="shrunk stage by stage", title_justify="left")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in stage_rows(stages):
        table.add_row(*cells(row))
    console.print(table)
    for line in ranking_lines(stages):
        console.print(line)


def show_pretrain(result: dict[str, Any]) -> None:
    table = Table(title=f"held-out loss, {result['workers']} workers on {result['device']}", title_justify="left")
    for heading in ("run", "parameters", "loss by step", "load", "first step", "tokens/s, MFU", "peak memory per rank"):
        table.add_column(heading, overflow="fold")
    for run in result["runs"]:
        table.add_row(
            run["name"],
            f"{run['n_parameters']:,}",
            "  ".join(f"{h['step']}: {h['loss']:.3f}{accuracy(h)}" for h in run["held_out"]),
            f"{run['load_s']:.1f} s",
            f"{run['first_step_s']:.1f} s" if run["first_step_s"] is not None else "–",
            f"{run['tokens_per_s']:,.0f}, {run['mfu']:.1%}" if run["tokens_per_s"] is not None else "–",
            ", ".join(size(n) for n in run["peak_rss_bytes"]),
        )
    console.print(table)


def show_export(report: dict[str, Any]) -> None:
    console.print(f"exported {report['source']} in {report['seconds']:.1f} s to {report['folder']}")
    for note in report.get("notes", ()):
        console.print(f"note: {note}", markup=False)
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
        console.print(f"note: {note}")
    console.print(
        f"curves, table and all that it takes to repeat it: {output}/comparison.{{png,md,json}}", markup=False
    )


def show_verification(url: str, found: Verification) -> None:
    for damage in found.damaged:
        console.print(str(damage))
    foreign = list(found.foreign.items())
    for name, n in foreign[:MOST_FOREIGN]:
        console.print(f"note: {name} ({size(n)}) is no part of the store")
    if more := foreign[MOST_FOREIGN:]:
        console.print(f"note: so are {len(more)} more files ({size(sum(n for _, n in more))})")
    verdict = f"{len(found.damaged)} damaged or missing" if found.damaged else "intact"
    console.print(f"{label(url)}: {verdict} ({found.read})")


def show_diff(first: str, second: str, found: Diff) -> None:
    if found.config:
        table = Table(title_justify="left")
        for heading in ("configuration", "first", "second"):
            table.add_column(heading, overflow="fold")
        for key, pair in found.config.items():
            table.add_row(key, *("–" if value is None else str(value) for value in pair))
        console.print(table)
    if found.parameters:
        table = Table(title_justify="left")
        for heading in ("parameter", "difference"):
            table.add_column(heading, overflow="fold")
        for heading in ("elements", "max |difference|", "relative norm"):
            table.add_column(heading, justify="right", overflow="fold")
        for difference in found.parameters:
            numbers = (f"{v.elements:,}", f"{v.max_abs:.3g}", f"{v.relative:.3g}") if (v := difference.values) else ()
            table.add_row(difference.name, difference.what or "values", *numbers)
        console.print(table)
    equal = f"{found.by_digests} parameters equal by their digests, {found.by_reading} by reading both"
    left = f", {len(found.undecided)} not compared" if found.undecided else ""
    differing = {"parameters": len(found.parameters), "keys of config.json": len(found.config)}
    verdict = "no difference" if found.equal else ", ".join(f"{n} {what} differ" for what, n in differing.items() if n)
    console.print(f"{label(first)}, {label(second)}: {verdict} ({equal}{left})")


def show_description(found: Description) -> None:
    """Family, sizes, losses, configuration, and one row per module."""
    table = Table(title=found.url, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("module", "axes", "dtype", "tensors", "bytes"):
        numeric = heading in ("tensors", "bytes")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "axes")
    for row in found.modules:
        axes = ", ".join(f"{axis} {n}" for axis, n in row.axes.items())
        table.add_row(row.name, axes, ", ".join(row.dtypes), str(row.tensors), size(row.nbytes))
    console.print(table)
    show_facts(_described(found))


def _described(found: Description) -> Iterator[tuple[str, str]]:
    yield "format", found.format
    yield "family", f"{found.family}, {found.n_parameters:,} parameters, {size(found.nbytes)}"
    yield "sizes", ", ".join(f"{name} {n}" for name, n in found.sizes.items())
    if found.losses:
        yield "held-out loss", ", ".join(f"{when}: {loss:.3f}" for when, loss in found.losses.items())
    yield "config", ", ".join(f"{key}={json.dumps(value)}" for key, value in found.config.items())


def show_facts(lines: Iterable[tuple[str, str]]) -> None:
    """A heading and a text each."""
    for heading, text in lines:
        console.print(f"{heading:<14} {text}")


def show_store(found: Description, manifest: Manifest) -> None:
    """One row per module, the sums, what the model is, and the provenance."""
    from bot_dist.store.summary import provenance_lines, store_rows, store_totals

    table = Table(title=found.url, title_justify="left", box=box.SIMPLE_HEAD)
    layout = ("shard", "chunk") if console.wide else ()
    for heading in ("module", "axes", "dtype", *layout, "arrays", "bytes", "energy"):
        numeric = heading in ("arrays", "bytes", "energy")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "axes")
    for row in store_rows(manifest):
        stored = row.stored
        table.add_row(
            row.name,
            ", ".join(f"{a} {n}" for a, n in zip(stored.parameter.axes, stored.parameter.sizes, strict=True)),
            stored.dtype,
            *((shape(stored.shard), shape(stored.chunk)) if console.wide else ()),
            str(row.arrays),
            size(row.nbytes),
            f"{row.energy_kept:.1%}" if row.energy_kept is not None else "–",
        )
    console.print(table)
    totals = store_totals(manifest)
    held = f"{totals.arrays:,} in {totals.shards:,} shards of {totals.chunks:,} chunks, {size(totals.nbytes)}"
    show_facts(
        [
            ("arrays", held),
            ("files", ", ".join(manifest.files) or "none"),
            ("digest", manifest.digest),
            *_described(found),
            *provenance_lines(manifest),
        ]
    )
    if stages := manifest.provenance.get("transfer", {}).get("calibrate"):
        show_shrinking(stages)


def show_operators(url: str, rows: Sequence[OperatorRow]) -> None:
    """One row per operator that was fitted for a store."""
    if not rows:
        console.print(f"{label(url)} holds no fitted operators")
        return
    for store, held in itertools.groupby(rows, key=lambda row: row.store):
        table = Table(title=f"{label(url)}/{store}", title_justify="left", box=box.SIMPLE_HEAD)
        stored = ("dtype", "bytes", "digest") if console.wide else ()
        for heading in ("operator", "kind", "shape", "layers", *stored, "used for"):
            numeric = heading in ("layers", "bytes")
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "used for")
        for row in held:
            table.add_row(
                row.name,
                row.kind,
                shape(row.shape) or "–",
                str(row.layers) if row.layers is not None else "all",
                *((row.dtype, size(row.nbytes), f"{row.digest[:SHOWN_DIGEST]}…") if console.wide else ()),
                ", ".join(f"{module}:{axis}" for module, axis in row.used_for) or "–",
            )
        console.print(table)


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest, but for the digests of the chunks."""
    return {**manifest.contents(), "digest": manifest.digest}


def shape(sizes: Sequence[int]) -> str:
    return "×".join(map(str, sizes))
