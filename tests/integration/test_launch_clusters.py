"""The cluster files of machines that one owns, by ``ray up`` and ``ray submit`` over ssh; and a cluster left open."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot_dist.store import CheckpointReader
from bot_dist.store.manifest import MANIFEST
from tests.integration.machines import ROOT, install, machines, until

pytestmark = [pytest.mark.ray, pytest.mark.namespaces]

PicoFactory = Callable[..., Any]
ON_PREMISE = "launch/cluster/on_premise.yaml"
LOCAL = "launch/cluster/local.yaml"


@pytest.fixture
def folder() -> Iterator[Path]:
    """Short, for Ray's sockets, and seen by all machines."""
    made = Path(tempfile.mkdtemp(prefix="lan."))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def source(folder: Path, pico_llama: PicoFactory) -> Path:
    pico = pico_llama(num_hidden_layers=4, num_key_value_heads=4)
    return Path(shutil.copytree(pico.folder, folder / "source"))


def recorded(store: Path) -> int:
    """How many steps have been done."""
    return len(list(store.glob("data/*/_steps/*.json")))


@pytest.mark.slow
def test_an_on_premise_cluster_takes_jobs_from_another_machine(folder: Path, source: Path) -> None:
    wanted = yaml.safe_load((ROOT / ON_PREMISE).read_text())["provider"]
    options = ("--embed", "48", "--tensor", "4", "--memory-limit", "16KiB", "--set", "cluster.wait_s=300")
    job = ("launch/run.py", "scale", source, folder / "store", *options)
    with machines(folder, "head", "worker", "laptop") as (head, worker, laptop):
        assert [head.address, [worker.address]] == [wanted["head_ip"], wanted["worker_ips"]]
        for machine in (head, worker):
            install(machine)
        assert laptop.run("ray", "get-auth-token", "--generate").returncode == 0
        up = laptop.run("ray", "up", "-y", ON_PREMISE, timeout_s=180)
        assert up.returncode == 0, up.stdout

        # The connection breaks amid the transfer: its terminal is gone, and the verb stops.
        log = folder / "submit.log"
        broken = laptop.start("ray", "submit", ON_PREMISE, job[0], "--", *job[1:], log=log)
        until(lambda: recorded(folder / "store") > 3 or broken.poll() is not None, "the first steps")
        assert broken.poll() is None, log.read_text()
        laptop.signal("KILL", "ssh.*run.py")
        until(lambda: not any("run.py" in line for line in head.processes()), "the verb to stop", timeout_s=30)
        assert broken.wait(timeout=30) == 1
        assert not (folder / "store" / MANIFEST).exists()

        # Another way in: the job server, through ssh. The same job resumes, on both machines.
        laptop.start("ray", "dashboard", ON_PREMISE, log=folder / "tunnel.log")
        until(lambda: laptop.run("bash", "-c", "true < /dev/tcp/127.0.0.1/8265").returncode == 0, "the tunnel")
        client = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "token"}
        again = laptop.run("ray", "job", "submit", "--working-dir", ".", "--", "python", *job, **client)
        assert again.returncode == 0, again.stdout
        assert "were found done" in again.stdout
        assert CheckpointReader(str(folder / "store")).config["hidden_size"] == 48
        assert all(machine.ran("ShardActor", "/tmp/ray/session_latest") for machine in (head, worker))

        wrong = laptop.run("ray", "submit", ON_PREMISE, job[0], "--", *job[1:])
        assert (wrong.returncode, "already holds a committed checkpoint" in wrong.stdout) == (1, True), wrong.stdout
        down = laptop.run("ray", "down", "-y", ON_PREMISE)
        assert down.returncode == 0, down.stdout
        assert not [line for line in head.processes() if "raylet" in line]
        until(lambda: not [line for line in worker.processes() if "raylet" in line], "the worker to go")


@pytest.mark.slow
def test_the_local_cluster_file_makes_a_cluster_of_this_machine(folder: Path, source: Path) -> None:
    with machines(folder, "here") as (here,):
        install(here)
        up = here.run("ray", "up", "-y", LOCAL, timeout_s=180)
        assert up.returncode == 0, up.stdout
        command = ("scale", source, folder / "store", "--embed", "48")
        done = here.run("ray", "submit", LOCAL, "launch/run.py", "--", *command)
        assert done.returncode == 0, done.stdout
        assert CheckpointReader(str(folder / "store")).config["hidden_size"] == 48
        down = here.run("ray", "down", "-y", LOCAL)
        assert down.returncode == 0, down.stdout


def test_a_cluster_that_wants_no_token_is_refused_unless_accepted(folder: Path, source: Path) -> None:
    command = ("bot_dist", "scale", source, folder / "store", "--embed", "48", "--address", "auto")
    with machines(folder, "open", "other") as (cluster, other):
        started = cluster.run("ray", "start", "--head", RAY_AUTH_MODE="disabled")
        assert started.returncode == 0, started.stdout
        joined = other.run("ray", "start", f"--address={cluster.address}:6379", RAY_AUTH_MODE="disabled")
        assert joined.returncode == 0, joined.stdout
        for client in ({}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "its-own-token-changes-nothing-about-that"}):
            refused = cluster.run(*command, **client)
            assert refused.returncode == 2, refused.stdout
            assert "wants no token" in refused.stdout
            assert "--set cluster.allow_unauthenticated=true" in refused.stdout
            assert "Traceback" not in refused.stdout
            assert not (folder / "store" / MANIFEST).exists()
        accepted = cluster.run(*command, "--set", "cluster.allow_unauthenticated=true")
        assert accepted.returncode == 0, accepted.stdout
