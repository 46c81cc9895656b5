"""Checks of finished checkpoints: is a store whole, and are two checkpoints the same?

Both take an optional ``on_event``, called with every event as it happens; by default events are logged.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from bot_dist.events import OnEvent, log
from bot_dist.events.checkpoints import DiffDone, DiffRead, DiffStarted, VerifyDone, VerifyRead, VerifyStarted
from bot_dist.recipe import ClusterConfig, ExecutorName
from bot_dist.units import duration, size
from bot_dist.urls import absolute, label

if TYPE_CHECKING:
    from bot_dist.formats.diff import Diff
    from bot_dist.store import CheckpointReader, Damage
    from bot_dist.store.verification import Part, Verification


def verify(
    url: str,
    on_event: OnEvent = log,
    *,
    quick: bool = False,
    actors: int | None = None,
    cluster: ClusterConfig | None = None,
) -> Verification:
    """Read every chunk and file of a committed store and of the operators that it was made with, and tell what is
    damaged or missing, and what is foreign.

    ``quick`` looks at existence and sizes only. Else threads of this process read; or, when ``cluster.address``
    (also RAY_ADDRESS) names a cluster, its actors; or ``actors`` of them, on an embedded cluster where none is named.
    """
    from bot_dist.store import CheckpointReader, verification

    reader = CheckpointReader(absolute(url))
    reader.storage.refuse_links()
    operators, unopened = verification.operator_stores(reader)
    stores = {"": reader, **operators}
    if quick:
        damages = {folder: verification.verify_sizes(store) for folder, store in stores.items()}
        every = (stored for store in stores.values() for stored in store.manifest.parameters.values())
        read = f"sizes of {sum(1 for stored in every for _ in stored.shards()):,} shards, no contents"
    else:
        damages, read = _verify_contents(stores, on_event, cluster or ClusterConfig(), actors)
        for folder, store in stores.items():
            damages[folder] += verification.verify_beside(store)
    damaged = damages.pop("")
    for folder in operators:
        damaged += verification.within(folder, damages[folder])
    damaged += unopened
    on_event(VerifyDone(url=label(reader.url), damaged=len(damaged)))
    return verification.Verification(damaged=damaged, foreign=verification.foreign_files(reader), read=read)


class _Task(NamedTuple):
    """A part of a store that one worker verifies at a time."""

    folder: str
    part: Part

    def __str__(self) -> str:
        return f"{self.folder}: {self.part}" if self.folder else str(self.part)


def _verify(stores: Mapping[str, CheckpointReader], task: _Task) -> list[Damage]:
    from bot_dist.store.verification import verify_part

    return verify_part(stores[task.folder], task.part)


def _verify_contents(
    stores: Mapping[str, CheckpointReader], on_event: OnEvent, cluster: ClusterConfig, actors: int | None
) -> tuple[dict[str, list[Damage]], str]:
    """Verify the contents of stores: the damages in the arrays of each, in the manifest's order; and a phrase that
    tells how much was read, by whom and how fast."""
    from bot_dist.execute import create_executor
    from bot_dist.store.verification import parts

    executor_name: ExecutorName = "local"
    if cluster.address or os.environ.get("RAY_ADDRESS") or actors:
        executor_name = "ray" if cluster.executor == "local" else cluster.executor
    by_task: dict[int, list[Damage]] = {}
    with create_executor(cluster.model_copy(update={"executor": executor_name})) as executor:
        n = executor.at_once(actors)
        started = time.perf_counter()
        tasks = [_Task(folder, part) for folder, reader in stores.items() for part in parts(reader, n)]
        read = sum(task.part.nbytes for task in tasks)
        on_event(VerifyStarted(bytes=read))

        def on_result(number: int, damages: list[Damage]) -> None:
            by_task[number] = damages
            on_event(VerifyRead(bytes=tasks[number].part.nbytes))

        executor.run_tasks(functools.partial(_verify, stores), tasks, on_result, n)
    damaged: dict[str, list[Damage]] = {folder: [] for folder in stores}
    for number, task in enumerate(tasks):
        damaged[task.folder] += by_task[number]
    seconds = time.perf_counter() - started
    return damaged, f"{size(read)} by {n} {executor.workers} in {duration(seconds)}, {size(read / seconds)}/s"


def diff(first: str, second: str, on_event: OnEvent = log, *, quick: bool = False) -> Diff:
    """Compare two stores, or any two sources: configuration, parameters and values. ``quick`` reads no values, and
    leaves undecided what digests don't tell."""
    from bot_dist.execute.process import default_threads
    from bot_dist.formats.diff import diff_metadata, diff_values
    from bot_dist.formats.open import open_source

    a, b = open_source(first), open_source(second)
    difference = diff_metadata(a, b)
    if difference.undecided and not quick:
        on_event(DiffStarted(elements=sum(difference.undecided.values())))
        difference = diff_values(a, b, difference, default_threads(), lambda n: on_event(DiffRead(elements=n)))
    on_event(DiffDone(differing=len(difference.parameters) + len(difference.config)))
    return difference
