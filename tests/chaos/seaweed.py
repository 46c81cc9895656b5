"""A real S3 server: SeaweedFS in one process, on free ports of the loopback."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

KEY, SECRET = "bot-dist-key", "bot-dist-secret-never-shown"
START_TIMEOUT_S = 60
ATTEMPTS = 3
"""Another process may take a free port before the server does."""


@dataclass(frozen=True)
class S3Server:
    """Where it listens, and what a client's environment needs."""

    address: str
    """``HOST:PORT`` of S3."""
    filer: str
    """``HOST:PORT`` of plain HTTP: objects are at ``/buckets/BUCKET/KEY``."""

    def environment(self, endpoint: str | None = None) -> dict[str, str]:
        """For a client, of the server itself or of a proxy in front of it."""
        return {
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_ENDPOINT_URL": endpoint or f"http://{self.address}",
            "AWS_REGION": "us-east-1",
        }


@contextlib.contextmanager
def s3_server(folder: Path) -> Iterator[S3Server]:
    """The server, answering, with its data in ``folder``; stopped afterwards. Buckets are made when first written."""
    for attempt in range(ATTEMPTS):
        ports = _free_ports(8)
        process = _start(folder, ports, attempt)
        try:
            if _answers(process, ports[0]):
                yield S3Server(f"127.0.0.1:{ports[0]}", f"127.0.0.1:{ports[1]}")
                return
        finally:
            process.kill()  # asked politely, it takes 10 s; its data is thrown away
            process.wait()
            for port in ports:
                for socket_file in Path("/tmp").glob(f"seaweedfs-*-{port}.sock"):
                    socket_file.unlink(missing_ok=True)
    log = (folder / "weed.log").read_text()[-2000:]
    raise RuntimeError(f"weed did not start in {ATTEMPTS} attempts; the end of its log:\n{log}")


def _start(folder: Path, ports: list[int], attempt: int) -> subprocess.Popen[bytes]:
    data = folder / f"data-{attempt}"
    data.mkdir(parents=True)
    config = folder / "s3.json"
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    config.write_text(json.dumps({"identities": [identity]}))
    names = ["s3.port", "filer.port", "master.port", "volume.port"]
    names += [f"{name}.grpc" for name in names]
    options = {
        **dict(zip(names, ports, strict=True)),
        "dir": data,
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "s3.config": config,
        "s3.iam": "false",
        "s3.port.iceberg": 0,
        "s3.port.lance": 0,
        "master.telemetry": "false",
        "master.volumeSizeLimitMB": 1024,
        "volume.max": 0,
    }
    with (folder / "weed.log").open("ab") as log:
        return subprocess.Popen(
            [Path(sys.executable).parent / "weed", "server", "-s3", *(f"-{k}={v}" for k, v in options.items())],
            stdout=log,
            stderr=log,
            cwd=folder,
            env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        )


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    """Wait until S3 answers; False when the server has ended."""
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=1)
        except urllib.error.HTTPError:  # it wants credentials, so it is up
            return True
        except OSError:
            time.sleep(0.1)
        else:
            return True
    return False


def _free_ports(n: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(n)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
