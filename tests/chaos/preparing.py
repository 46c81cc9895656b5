"""What runs of each kind need: sources, an S3 server behind a proxy, Ray, nodes to lose."""

from __future__ import annotations

import contextlib
import logging
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from bot_dist.execute.ray.cluster import connected
from bot_dist.recipe import ClusterConfig
from tests.chaos.arena import Arena
from tests.chaos.cases import RECIPES, Case, all_made
from tests.chaos.endings import Ending
from tests.chaos.faults import KINDS
from tests.chaos.proxy import FaultyProxy
from tests.chaos.seaweed import s3_server

MEMORY = Path("/dev/shm")
"""Many small files are synced: on a disk that is most of the time, and no fault is easier to find there."""


@contextlib.contextmanager
def prepared(folder: Path, needs: str, cases: list[Case]) -> Iterator[Arena]:
    """An arena with what the ``needs`` of a kind name."""
    with contextlib.ExitStack() as stack:
        proxy = stack.enter_context(_proxied(folder)) if "s3" in needs else None
        cluster = stack.enter_context(_cluster()) if needs == "nodes" else None
        if needs == "ray and s3":
            ray.shutdown()  # a cluster that is there has another environment
        if "ray" in needs:
            stack.enter_context(connected(ClusterConfig(), cpus=4))
        yield Arena(folder, cases, proxy, cluster)


def run_one(kind: str, seed: int, arena: Arena) -> Ending:
    """One run in a folder of its own. The same seed disturbs it in the same way."""
    with tempfile.TemporaryDirectory(dir=arena.folder, prefix="run-") as folder:
        own = Arena(Path(folder), arena.cases, arena.proxy, arena.cluster)
        return KINDS[kind].run(own, random.Random(f"{kind} {seed}"))


@contextlib.contextmanager
def with_cases(names: list[str] | None = None) -> Iterator[tuple[Path, list[Case]]]:
    """A folder in memory, and the cases."""
    with tempfile.TemporaryDirectory(dir=MEMORY, prefix="bot_dist-chaos-") as folder:
        yield Path(folder), all_made(Path(folder), names or RECIPES)


@contextlib.contextmanager
def _proxied(folder: Path) -> Iterator[FaultyProxy]:
    with (
        tempfile.TemporaryDirectory(dir=folder) as data,
        s3_server(Path(data)) as server,
        FaultyProxy(server.address) as proxy,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in server.environment(proxy.url).items():
            patch.setenv(name, value)
        patch.setenv("BOT_DIST_STORAGE_TIMEOUT_S", "0.5")
        yield proxy


@contextlib.contextmanager
def _cluster() -> Iterator[object]:
    """A Ray cluster whose head has one CPU; the runs add and remove other nodes."""
    from ray.cluster_utils import Cluster

    ray.shutdown()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 80 * 2**20})
    try:
        ray.init(address=cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
