"""``bot_dist plan``: what a transfer would do."""

from __future__ import annotations

from typing import Annotated

import typer

from bot_dist.cli.options import AsJson, Overrides, RecipeOrSource, TransferOptions
from bot_dist.cli.recipes import errors_name_options, recipe_of_arguments


def plan(
    source: RecipeOrSource,
    options: TransferOptions,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="Simulate on a cluster of these GB/s, joined by commas: storage_gb_s=100 (of all), network_gb_s=12.5 "
            "(of a node), device_gb_s=1500; also actors_per_node=8, request_s=0.1.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
    overrides: Overrides = None,
) -> None:
    """Show what a transfer would do, without doing it. A model's config.json alone is enough."""
    from bot_dist.cli.show.plain import show_json
    from bot_dist.cli.show.plan import plan_json, show_plan, show_simulation
    from bot_dist.pipeline.pretrain import check_training
    from bot_dist.pipeline.run import check_data, plan_run
    from bot_dist.plan import parse_hardware, simulate

    resolved = recipe_of_arguments(source, None, options, overrides, family=True)
    cluster = parse_hardware(hardware) if hardware is not None else None
    plans = []
    with errors_name_options(source):
        plannings = plan_run(resolved)
    for planning in plannings.values():
        member = planning.recipe
        with errors_name_options(source):
            planned = planning.draft
            check_data(member)
        if member.train.text or member.train.images:
            check_training(member, planned)
        simulated = simulate(planned, cluster) if cluster is not None else None
        if as_json:
            plans.append(plan_json(planned, member, simulated))
            continue
        show_plan(planned, member)
        if simulated is not None:
            show_simulation(simulated)
    if as_json:
        show_json(plans if resolved.family else plans[0])
