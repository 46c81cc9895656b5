"""The runs of a recipe with several targets: transferred one after the other, trained side by side."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping
from pathlib import Path

from bot_dist.events import Event, OnEvent, log
from bot_dist.pipeline.planning import Planning
from bot_dist.pipeline.records import Records
from bot_dist.pipeline.results import FamilyResult, PipelineResult
from bot_dist.pipeline.run import begin, check_run, end
from bot_dist.recipe import Recipe


def run_family(recipe: Recipe, plannings: Mapping[str, Planning], on_event: OnEvent = log) -> FamilyResult:
    """Every member of a family as ``run`` does it; events tell which (``member``), and come from several threads.

    All are planned before the first begins, transferred one after the other, and then trained, as many at once as
    ``cluster.side_by_side`` says. Returns the facts of each by name, and the index of their reports, which is
    written anew after each. Raises as ``run`` does, once the others are done; a signal stops all.
    """
    from bot_dist.execute.ray.cluster import connected
    from bot_dist.report.html import write_index
    from bot_dist.train.side_by_side import places, side_by_side

    cpus = max(check_run(planning) for planning in plannings.values())
    members = {name: planning.recipe for name, planning in plannings.items()}
    records = {name: Records(Path(member.output), member) for name, member in members.items()}
    recorded = {name: records[name].load_result("facts", PipelineResult) for name in members}
    before = {name: dataclasses.replace(facts, complete_before=True) for name, facts in recorded.items() if facts}
    done = dict(before)
    report = Path(recipe.output) / "report.html"
    with connected(recipe.cluster, cpus) if len(before) < len(members) else contextlib.nullcontext():
        begun = {
            name: begin(planning, records[name], functools.partial(_tell_member, on_event, name))
            for name, planning in plannings.items()
            if name not in before
        }

        def ended(name: str, facts: PipelineResult) -> None:
            done[name] = facts
            shown = {name: done[name].to_json() for name in members if name in done}
            write_index(report, {"recipe": recipe.public(), "members": shown})

        workers = max(member.train.workers for member in members.values())
        at_once = places(recipe.cluster, workers, len(begun))
        works = {name: functools.partial(end, one, at_once) for name, one in begun.items()}
        side_by_side(works, at_once, ended)
    return FamilyResult(
        members={name: done[name] for name in members},
        report=str(report),
        complete_before=len(before) == len(members),
    )


def _tell_member(on_event: OnEvent, name: str, event: Event) -> None:
    on_event(dataclasses.replace(event, member=name))
