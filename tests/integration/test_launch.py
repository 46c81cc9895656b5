"""``ray job submit`` against a real cluster: a head with its job server, in processes of its own."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot_dist.store.manifest import MANIFEST

ROOT = Path(__file__).parents[2]
RAY = Path(sys.executable).parent / "ray"

pytestmark = pytest.mark.ray


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()


@dataclass(frozen=True, kw_only=True)
class Head:
    """A running head node, reached through its job server."""

    url: str
    environment: dict[str, str]

    def submit(self, *command: str, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
        """``ray job submit --working-dir .`` as the README gives it; waits for the job. stderr is in stdout."""
        return subprocess.run(
            [RAY, "job", "submit", "--address", self.url, "--working-dir", ".", "--", *command],
            cwd=ROOT,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout_s,
        )


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    gcs, dashboard, client, agent = free_ports(4)
    scratch = tempfile.mkdtemp(prefix="ray.", dir=os.environ.get("RAY_TMPDIR", "/tmp"))  # Ray's socket paths are long
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    environment["RAY_worker_niceness"] = "0"
    environment["RAY_JOB_STOP_WAIT_TIME_S"] = "120"  # 3 s are too few for a driver on busy cores to end by itself
    environment["PATH"] = f"{RAY.parent}:{environment['PATH']}"  # as in an activated .venv: a job calls a bare `python`
    command = [RAY, "start", "--head", "--block", "--num-cpus=2", "--object-store-memory=100000000"]
    command += ["--node-ip-address=127.0.0.1", f"--port={gcs}", f"--ray-client-server-port={client}"]
    command += ["--include-dashboard=true", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    command += [f"--dashboard-agent-listen-port={agent}", f"--temp-dir={scratch}"]
    log = Path(scratch, "start.log")
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        wait_for(f"http://127.0.0.1:{dashboard}/api/version", environment["RAY_AUTH_TOKEN"], process, log)
        yield Head(url=f"http://127.0.0.1:{dashboard}", environment=environment)
    finally:
        process.terminate()  # a blocking start ends the node's processes with itself, and no others
        try:
            process.wait(timeout=30)
        finally:
            end_group(process.pid)
            shutil.rmtree(scratch, ignore_errors=True)


def wait_for(url: str, token: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float = 120) -> None:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
    end = time.monotonic() + timeout_s
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(request, timeout=5):
                return
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"the Ray head did not start:\n{log.read_text()}")


def end_group(group: int) -> None:
    try:
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return


def pico_recipe(folder: Path) -> Path:
    """A Llama of 2 layers and width 16 on disk, and a recipe that halves its width over two shard actors."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=4,
        tie_word_embeddings=True,
    )
    LlamaForCausalLM(config).save_pretrained(folder / "source")
    recipe = {
        "source": str(folder / "source"),
        "output": str(folder / "out"),
        "target": {"embed": 8},
        "transfer": {"analysis": "wavelet"},
        "cluster": {"tensor": 1},
    }
    path = folder / "pico.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return path


def test_a_job_imports_the_package_that_was_shipped_without_venv_and_runs(head: Head) -> None:
    code = """if True:
        import os, bot_dist
        print('found', bot_dist.__file__, 'beside', sorted(os.listdir()))
        try:
            bot_dist.resize('nowhere', 'out.zarr', layers=4)
        except bot_dist.errors.InputError as error:
            print('refused', error)
    """
    result = head.submit("python", "-c", code)
    assert result.returncode == 0, result.stdout
    found = next(line for line in result.stdout.splitlines() if line.startswith("found"))
    assert "working_dir_files" in found, "the job imported an installed copy, not the shipped one"
    assert "'bot_dist'" in found
    for local in ("'.venv'", "'runs'", "'.git'", "'.mypy_cache'"):
        assert local not in found
    assert "refused target_url: 'out.zarr' lies in the working directory of the job, /" in result.stdout


def test_a_submitted_transfer_commits_its_store(head: Head, tmp_path: Path) -> None:
    result = head.submit("python", "launch/run.py", "scale", str(pico_recipe(tmp_path)))
    assert result.returncode == 0, result.stdout
    assert (tmp_path / "out/transferred.zarr" / MANIFEST).exists()


def test_a_recipe_that_is_wrong_fails_the_submit_command(head: Head, tmp_path: Path) -> None:
    recipe = tmp_path / "wrong.yaml"
    recipe.write_text(f"source: nowhere\noutput: {tmp_path}/out\ntarget: {{embed: 8}}\ntrnasfer: {{}}\n")
    result = head.submit("python", "launch/run.py", "scale", str(recipe))
    assert result.returncode != 0
    assert "unknown key 'trnasfer'" in result.stdout
    assert not (tmp_path / "out").exists()


def test_a_stopped_job_commits_nothing_and_the_same_job_resumes(head: Head, pico_llama: Callable[..., Any]) -> None:
    source = pico_llama(num_hidden_layers=4).folder
    store = source.parent / "store"
    job = ("launch/run.py", "scale", source, store, "--embed", "48", "--memory-limit", "8KiB")
    submit = [RAY, "job", "submit", "--address", head.url, "--submission-id", "stopped", "--working-dir", "."]
    started = subprocess.Popen(
        [*submit, "--", "python", *job],
        cwd=ROOT,
        env=head.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    end = time.monotonic() + 120
    while not any(store.glob("data/*/_steps/*.json")):
        assert started.poll() is None, started.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    stop = [RAY, "job", "stop", "--address", head.url, "stopped"]
    stopped = subprocess.run(stop, cwd=ROOT, env=head.environment, capture_output=True, text=True, timeout=60)
    text = started.communicate(timeout=60)[0]
    assert "was stopped" in stopped.stdout + stopped.stderr, stopped
    assert "interrupted; nothing unfinished was committed" in text
    assert not (store / MANIFEST).exists()
    again = head.submit("python", *map(str, job))
    assert again.returncode == 0, again.stdout
    assert "were found done" in again.stdout
