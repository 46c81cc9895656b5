"""The executors there are, by the names that ``cluster.executor`` takes. A new one is a file, and its name here."""

from __future__ import annotations

from bot_dist.execute.executor import Executor
from bot_dist.execute.local import LocalExecutor
from bot_dist.execute.ray.executor import RayExecutor
from bot_dist.recipe import ClusterConfig, ExecutorName

EXECUTORS: dict[ExecutorName, type[Executor]] = {"local": LocalExecutor, "ray": RayExecutor}


def create_executor(config: ClusterConfig) -> Executor:
    """The executor that a configuration names, for use in a ``with``: what it starts ends there."""
    return EXECUTORS[config.executor](config)


ALONE = create_executor(ClusterConfig(executor="local"))
"""This process, for work that is too small to be worth another."""
