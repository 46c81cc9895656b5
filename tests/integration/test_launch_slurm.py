"""``launch/slurm.sbatch`` on an allocation of two machines: SLURM's part is played by the test and by ``slurm.py``."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bot_dist.store import CheckpointReader
from bot_dist.store.manifest import MANIFEST
from tests.integration.machines import ROOT, VENV, Machine, machines, until

pytestmark = [pytest.mark.ray, pytest.mark.namespaces]

PicoFactory = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """SLURM as a job sees it."""

    folder: Path
    nodes: list[Machine]

    def sbatch(self, job: int, *arguments: str | Path, nodes: int = 2) -> subprocess.Popen[bytes]:
        """Run the job script as ``slurmd`` does: a copy, from elsewhere, on the first node, with SLURM's variables."""
        spool = self.folder / f"job{job}/slurm_script"
        spool.parent.mkdir()
        shutil.copy(ROOT / "launch/slurm.sbatch", spool)
        stubs = self.folder / "stubs"
        stubs.mkdir(exist_ok=True)
        for name in ("srun", "scontrol"):
            if not (stubs / name).exists():
                (stubs / name).symlink_to(ROOT / "tests/integration/slurm.py")
        return self.nodes[0].start(
            "bash",
            spool,
            *arguments,
            cwd=spool.parent,
            log=self.log(job),
            PATH=f"{stubs}:{VENV}/bin:/usr/local/bin:/usr/bin:/bin",
            SLURM_JOB_ID=str(job),
            SLURM_JOB_NODELIST=f"node[1-{nodes}]",
            SLURM_SUBMIT_DIR=str(ROOT),
            SLURM_CPUS_ON_NODE="2",
        )

    def log(self, job: int) -> Path:
        return self.folder / f"bot_dist-{job}.log"

    def scancel(self) -> None:
        """SIGTERM to the script and to every step, as SLURM sends it; the verb gets it from both."""
        for pattern in ("slurm_script", "launch/run.py", "stubs/srun"):
            self.nodes[0].signal("TERM", pattern)

    def left(self) -> list[str]:
        """What still runs of Ray or of the job on any node."""
        return [p for node in self.nodes for p in node.processes() if "ray" in p or "launch/run.py" in p]


@pytest.fixture(scope="module")
def allocation() -> Iterator[Allocation]:
    folder = Path(tempfile.mkdtemp(prefix="slurm."))
    try:
        with machines(folder, "node1", "node2") as nodes:
            yield Allocation(folder=folder, nodes=nodes)
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
def test_scancel_stops_a_job_cleanly_and_the_same_job_resumes_on_both_nodes(
    allocation: Allocation, pico_llama: PicoFactory
) -> None:
    source = allocation.folder / "source"
    shutil.copytree(pico_llama(num_hidden_layers=4).folder, source)
    store = allocation.folder / "store"
    command = ("scale", source, store, "--embed", "48", "--tensor", "2", "--memory-limit", "8KiB")
    first = allocation.sbatch(7, *command)
    until(lambda: first.poll() is not None or len([*store.glob("data/*/_steps/*.json")]) > 3, "the first steps")
    assert first.poll() is None, allocation.log(7).read_text()
    allocation.scancel()
    assert first.wait(timeout=60) == 143, allocation.log(7).read_text()
    text = allocation.log(7).read_text()
    assert "interrupted; nothing unfinished was committed" in text
    assert "Traceback" not in text
    assert not (store / MANIFEST).exists()
    until(lambda: not allocation.left(), "Ray's last processes to end", timeout_s=20)

    again = allocation.sbatch(8, *command)
    assert again.wait(timeout=120) == 0, allocation.log(8).read_text()
    assert "were found done" in allocation.log(8).read_text()
    assert CheckpointReader(str(store)).config["hidden_size"] == 48
    assert all(node.ran("ShardActor", "/tmp/ray-8/session_latest") for node in allocation.nodes)
    until(lambda: not allocation.left(), "Ray's last processes to end", timeout_s=20)


def test_a_wrong_input_is_the_exit_status_of_the_job(allocation: Allocation) -> None:
    job = allocation.sbatch(9, "scale", allocation.folder / "nowhere", allocation.folder / "none", nodes=1)
    assert job.wait(timeout=120) == 2, allocation.log(9).read_text()
    assert "no such file or folder" in allocation.log(9).read_text()
