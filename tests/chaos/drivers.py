"""Drivers as processes of their own, to be killed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.chaos.cases import Case, transfer
from tests.forking import fork_server

DEADLINE_S = 120


def start(case: Case, url: str, **overrides: Any) -> multiprocessing.process.BaseProcess:
    """The case's command in a process forked from one that has loaded everything, with the local executor."""
    arguments = (str(case.source), url, case.target, {**case.options, **overrides})
    process = fork_server().Process(target=transfer, args=arguments, daemon=True)
    process.start()
    return process


@contextlib.contextmanager
def command(case: Case, url: str, *, tmp: Path, **overrides: Any) -> Iterator[subprocess.Popen[str]]:
    """``bot_dist scale …`` for the time of the block, with what it and its children write to folders in ``tmp``."""
    tmp.mkdir(exist_ok=True)
    process = subprocess.Popen(
        [sys.executable, "-m", "bot_dist.cli", *case.arguments(url, **overrides)],
        env={**os.environ, "RAY_TMPDIR": str(tmp), "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def kill_when(process: Any, reached: Callable[[], bool]) -> None:
    """SIGKILL as soon as ``reached`` says so, or nothing if it has ended by then."""
    deadline = time.monotonic() + DEADLINE_S
    while not reached() and _alive(process):
        assert time.monotonic() < deadline, "the driver hangs"
        time.sleep(0.001)
    with contextlib.suppress(ProcessLookupError):
        os.kill(process.pid, signal.SIGKILL)


def wait_gone(process: Any) -> None:
    process.wait() if isinstance(process, subprocess.Popen) else process.join()


def _alive(process: Any) -> bool:
    return process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()


def left_behind(folder: Path, within_s: float = 180) -> list[str]:
    """Processes that were started for ``folder`` or have a file in it open, and do not go away. Ray's agents take up to
    a minute to see that their raylet is dead, on a busy machine longer."""
    deadline = time.monotonic() + within_s
    while (found := _users(folder)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _users(folder: Path) -> list[str]:
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            files = [os.readlink(link) for link in (process / "fd").iterdir()]
            if any(f"{folder}/" in text for text in (line, *files)):
                found.append(f"{process.name} {line}")
    return found
