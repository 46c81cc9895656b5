"""The output of ``plan``: every step that a transfer would take, and the time that it would need."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from rich.table import Table

from bot_dist.cli import terminal
from bot_dist.cli.show.plain import shape
from bot_dist.units import count, size
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.plan import Simulation, TransferPlan
    from bot_dist.recipe import Recipe

SHOWN_ACTORS = 8


def show_plan(plan: TransferPlan, recipe: Recipe) -> None:
    """Every module, and the sums that matter."""
    from bot_dist.plan import summarise

    summary = summarise(plan, recipe.train.context)
    table = Table(title=f"{label(recipe.source)} → {label(recipe.transferred_url)}", title_justify="left")
    for heading in ("module", "source", "target"):
        table.add_column(heading, no_wrap=True)
    table.add_column("operator per axis", min_width=24)
    for heading in ("read", "written", "peak", "steps") if terminal.console.wide else ():
        table.add_column(heading, justify="right", no_wrap=True)
    for row in summary.rows:
        operators = ", ".join(f"{axis} {operator}" for axis, operator in row.operators.items()) or "keep"
        numbers = (size(row.bytes_read), size(row.bytes_written), size(row.peak_bytes), str(row.steps))
        table.add_row(
            row.name,
            shape(row.source_shape),
            shape(row.target_shape),
            operators + (f", scale ×{row.scale:g}" if row.scale != 1 else ""),
            *(numbers if terminal.console.wide else ()),
        )
    terminal.console.print(table)
    terminal.console.print(
        f"all: {size(summary.bytes_read)} read, {size(summary.bytes_written)} written, in {summary.steps} steps"
    )
    before, after = (count(n, "FLOP") for n in (summary.flops_source, summary.flops_target))
    terminal.console.print(
        f"parameters {summary.n_source:,} → {summary.n_target:,}; forward per token {before} → {after} "
        f"(context {summary.context})"
    )
    if summary.function_kept is not None:
        terminal.console.print(f"function kept: {summary.function_kept}", markup=False)
    for note in plan.notes:
        terminal.console.print(f"note: {note}")
    terminal.console.print(
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
    terminal.console.print(table)
    if len(actors) > SHOWN_ACTORS:
        terminal.console.print(
            f"… and {len(actors) - SHOWN_ACTORS} actors that take {actors[-1].total_s:.3g} s and more"
        )
    terminal.console.print(f"the whole takes {actors[0].total_s:.3g} s, limited by {simulation.limit}")
