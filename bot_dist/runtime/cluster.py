"""Connecting to Ray: a running cluster where there is one, else one embedded in this process."""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import sys
from collections.abc import Iterator
from typing import Any

from bot_dist.errors import RunError
from bot_dist.recipe import ClusterConfig


@contextlib.contextmanager
def connected(config: ClusterConfig, cpus: int) -> Iterator[None]:
    """Ray, connected for the time of the block. An embedded cluster has at least ``cpus`` CPUs, and goes with it.

    Raises RunError when the address answers nothing.
    """
    address = config.address or os.environ.get("RAY_ADDRESS")
    if not address:
        _protect()
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    embedded: dict[str, Any] = {
        "num_cpus": max(cpus, os.cpu_count() or 1),
        "include_dashboard": True,
        "dashboard_host": "127.0.0.1",
    }
    try:
        ray.init(
            address=address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **({} if address else embedded),
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(f"Ray at {address or 'this machine'} can't be reached: {error}") from None
    try:
        yield
    finally:
        ray.shutdown()


def _protect() -> None:
    """An embedded Ray listens on every interface: let it take only what knows this process's token.

    Ray reads these when it is first imported; in a process that has imported it before, its own default stands.
    """
    if "ray" not in sys.modules and "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


def device_of(config: ClusterConfig) -> str:
    """``cuda`` or ``cpu``, as the configuration and the connected cluster have it."""
    if config.device != "auto":
        return config.device
    if config.executor == "local":
        import torch

        return "cuda" if torch.cuda.is_available() else "cpu"
    import ray

    return "cuda" if ray.cluster_resources().get("GPU", 0) >= config.tensor * config.data else "cpu"
