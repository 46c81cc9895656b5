"""Connecting to Ray: a running cluster where there is one, else one embedded in this process."""

from __future__ import annotations

import contextlib
import ctypes
import ipaddress
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Iterator
from typing import Any, Literal

from bot_dist.errors import BotDistError, InputError, RunError
from bot_dist.recipe import ClusterConfig

PLACEMENT_TIMEOUT_S = 120
"""Seconds within which the cluster has to have room for actors, when there are none."""
START_TIMEOUT_S = 600
"""Seconds within which one of the actors has to start: many at once may load PyTorch from one shared file system."""
PROBE_TIMEOUT_S = 10
WAIT_S = 0.5
KEEP_S = 0.005


@contextlib.contextmanager
def connected(config: ClusterConfig, cpus: int) -> Iterator[None]:
    """Ray, connected for the time of the block. An embedded cluster has at least ``cpus`` CPUs, and goes with it; of a
    running one, nodes that are still joining are waited for as ``config.wait_s`` says. A cluster that this process has
    joined before is taken as it is.

    Raises RunError when the address answers nothing, InputError when anyone on the network may run code there.
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
        with _own_sigterm():
            ray.init(
                address=address or "local",
                log_to_driver=False,
                logging_level=logging.ERROR,
                **({} if address else embedded),
            )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise RunError(f"Ray at {address or 'this machine'} can't be reached: {error}") from None
    try:
        if address:
            if not config.allow_unauthenticated:
                _refuse_open()
            _wait_for(cpus, config.wait_s)
        yield
    finally:
        with _kept_sigterm():
            ray.shutdown()


def _protect() -> None:
    """Keep an embedded Ray to this machine, and let it take only what knows this process's token: by itself, it listens
    on every interface.

    Ray reads these when it is first imported; in a process that has imported it before, its own defaults stand.
    """
    if "ray" in sys.modules:
        return
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # loopback, as on machines where Ray has no cluster
    if "RAY_AUTH_MODE" not in os.environ:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)


@contextlib.contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep what this process does on SIGTERM through ``ray.init``, which puts a plain exit in its place."""
    if threading.current_thread() is not threading.main_thread():  # there, Ray leaves it alone
        yield
        return
    own = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:  # the signal came while Ray's handler was in place
        signal.signal(signal.SIGTERM, own)
        signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        signal.signal(signal.SIGTERM, own)


@contextlib.contextmanager
def _kept_sigterm() -> Iterator[None]:
    """Keep what this process does on SIGTERM through ``ray.shutdown``.

    Ray 2.60 puts the system's own in its place early on (``RayLog::UninstallSignalAction`` in
    ``src/ray/util/logging.cc``), death at once, and the rest of the shutdown, the stopping of servers, takes a second.
    Blocking the signal in this thread is no help: another one of the process would take it. So it is put back every few
    milliseconds.
    """
    libc = ctypes.CDLL(None)
    kept = ctypes.create_string_buffer(256)  # a struct sigaction, which is shorter
    libc.sigaction(signal.SIGTERM, None, kept)
    done = threading.Event()

    def keep() -> None:
        while not done.wait(KEEP_S):
            libc.sigaction(signal.SIGTERM, kept, None)

    thread = threading.Thread(target=keep, name="bot_dist-sigterm", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        libc.sigaction(signal.SIGTERM, kept, None)


def _refuse_open() -> None:
    """Raise InputError when the connected cluster has other than loopback addresses and wants no token."""
    import ray

    address = ray.get_runtime_context().gcs_address
    hosts = [ipaddress.ip_address(node["NodeManagerAddress"]) for node in ray.nodes()]
    if all(host.is_loopback for host in hosts) or not _takes_anyone(address):
        return
    raise InputError(
        f"the Ray cluster at {address} wants no token, so whoever reaches it may run code on it; start its nodes with "
        f"RAY_AUTH_MODE=token and the same token (see launch/cluster/local.yaml), or accept it where nobody else "
        f"reaches it (--set cluster.allow_unauthenticated=true)"
    )


def _takes_anyone(address: str) -> bool:
    """Whether Ray's control service answers a caller without credentials.

    The mode of this process doesn't tell: a client with a token also joins a cluster that wants none.
    """
    import grpc  # type: ignore[import-untyped]

    with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
        check_alive = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            check_alive(b"", timeout=PROBE_TIMEOUT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED or os.environ.get("RAY_USE_TLS") == "1":
                return False  # a token is wanted, or a certificate
            raise RunError(f"Ray at {address} does not say whether it wants a token: {error.details()}") from None
    return True


def _wait_for(cpus: int, wait_s: float) -> None:
    """Wait until the cluster has so many CPUs, at most ``wait_s`` seconds; who needs them says so if it has not."""
    import ray

    end = time.monotonic() + wait_s
    while ray.cluster_resources().get("CPU", 0) < cpus and time.monotonic() < end:
        time.sleep(WAIT_S)


def result_of(reference: Any) -> Any:
    """The result of a call of an actor. Raises the BotDistError that it raised as itself; another error of the call as
    Ray's RayTaskError, and the death of the actor as another RayError."""
    import ray

    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, BotDistError):
            raise error.cause from None
        raise


def answer_of(reference: Any) -> tuple[Any, str | None]:
    """The result of a call of an actor, and None; or None, and why the actor died, in one line: what Ray says before it
    lists what the causes usually are. Raises what the call raised, as ``result_of`` does."""
    import ray

    try:
        return result_of(reference), None
    except ray.exceptions.RayTaskError:
        raise
    except ray.exceptions.RayError as error:
        return None, " ".join(str(error).partition("Some common causes")[0].split())


def resources(config: ClusterConfig, workers: int) -> tuple[Literal["cpu", "cuda"], int]:
    """The device that so many workers train on, and how many of it the connected cluster has."""
    import ray

    there: dict[str, float] = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    if config.device == "cuda" or (config.device == "auto" and gpus >= workers):
        return "cuda", gpus
    return "cpu", int(there.get("CPU", 0))
