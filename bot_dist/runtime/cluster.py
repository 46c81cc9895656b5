"""Connecting to Ray: a running cluster where there is one, else one embedded in this process."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from bot_dist.errors import RunError
from bot_dist.recipe import ClusterConfig


@contextlib.contextmanager
def connected(config: ClusterConfig, cpus: int) -> Iterator[None]:
    """Ray, connected for the time of the block. An embedded cluster has at least ``cpus`` CPUs, and goes with it.

    Raises RunError when the address answers nothing.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = config.address or os.environ.get("RAY_ADDRESS")
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        else:
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")  # an embedded cluster listens on loopback only
            ray.init(
                num_cpus=max(cpus, os.cpu_count() or 1),
                include_dashboard=True,
                dashboard_host="127.0.0.1",
                log_to_driver=False,
                logging_level=logging.ERROR,
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(f"Ray at {address or 'this machine'} can't be reached: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def device_of(config: ClusterConfig) -> str:
    """``cuda`` or ``cpu``, as the configuration and the connected cluster have it."""
    if config.device != "auto":
        return config.device
    if config.executor == "local":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) >= config.tensor * config.data else "cpu"
