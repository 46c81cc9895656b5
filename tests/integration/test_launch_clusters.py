"""The cluster files of machines that one owns, by ``ray up`` and ``ray submit`` over ssh; and a cluster left open."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot_dist.checkpoint import CheckpointReader
from bot_dist.checkpoint.manifest import MANIFEST
from tests.integration.machines import ROOT, Machine, install, machines, until

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


def ran_an_actor(machine: Machine, folder: Path) -> bool:
    """By Ray's logs, which are where the cluster files say."""
    logs = (folder / machine.name / "tmp/ray/session_latest/logs").glob("worker-*.out")
    return any(":actor_name:" in log.read_text() and "ShardActor" in log.read_text() for log in logs)


def recorded(store: Path) -> int:
    """How many steps have been done."""
    return len(list(store.glob("data/*/_steps/*.json")))


def test_an_on_premise_cluster_takes_jobs_from_another_machine(folder: Path, source: Path) -> None:
    wanted = yaml.safe_load((ROOT / ON_PREMISE).read_text())["provider"]
    options = ("--embed", "48", "--tensor", "4", "--memory-limit", "4KiB", "--set", "cluster.wait_s=120")
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
        until(lambda: recorded(folder / "store") > 3 or broken.poll() is not None, "the first steps", timeout_s=120)
        assert broken.poll() is None, log.read_text()
        laptop.signal("KILL", "ssh.*run.py")
        until(lambda: not any("run.py" in line for line in head.processes()), "the verb to stop", timeout_s=30)
        assert broken.wait(timeout=30) == 1
        assert not (folder / "store" / MANIFEST).exists()
        done = recorded(folder / "store")

        again = laptop.run("ray", "submit", ON_PREMISE, job[0], "--", *job[1:])
        assert again.returncode == 0, again.stdout
        assert "were found done" in again.stdout
        assert CheckpointReader(str(folder / "store")).config["hidden_size"] == 48
        assert all(ran_an_actor(machine, folder) for machine in (head, worker))
        print(done, again.stdout[-3000:])

        tunnel = laptop.start("ray", "dashboard", ON_PREMISE, log=folder / "tunnel.log")
        until(lambda: laptop.run("bash", "-c", "true < /dev/tcp/127.0.0.1/8265").returncode == 0, "the tunnel")
        client = {"RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265", "RAY_AUTH_MODE": "token"}
        wrong = laptop.run("ray", "job", "submit", "--working-dir", ".", "--", "python", *job, **client)
        print(wrong.stdout[-3000:])
        assert (wrong.returncode, "already holds a committed checkpoint" in wrong.stdout) == (1, True), wrong.stdout
        laptop.signal("KILL", "ssh.*8265")
        tunnel.wait(timeout=30)

        down = laptop.run("ray", "down", "-y", ON_PREMISE)
        assert down.returncode == 0, down.stdout
        left = [line for machine in (head, worker) for line in machine.processes() if "raylet" in line]
        assert left == []
