"""What a scheduler or a lost terminal does to a verb: a clean stop, and an exit status that names the signal."""

from __future__ import annotations

import ipaddress
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from bot_dist.store.manifest import MANIFEST
from tests.conftest import default_signals

pytestmark = pytest.mark.ray


@pytest.mark.parametrize(
    ("kind", "status", "executor"),
    [
        (signal.SIGTERM, 143, "ray"),
        (signal.SIGHUP, 129, "local"),
        pytest.param(signal.SIGHUP, 129, "ray", marks=pytest.mark.slow),
    ],
)
def test_a_signal_stops_a_verb_as_cleanly_as_ctrl_c_however_often_it_comes(
    kind: signal.Signals, status: int, executor: str, tmp_path: Path, pico_llama: Callable[..., Any]
) -> None:
    source, store = pico_llama(num_hidden_layers=4 if executor == "ray" else 72).url, tmp_path / "store"
    options = ("--embed", "48", "--memory-limit", "4KiB", "--executor", executor)
    verb = subprocess.Popen(
        [sys.executable, "-m", "bot_dist.cli", "scale", source, store, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=default_signals,
        env={key: value for key, value in os.environ.items() if key not in ("RAY_ADDRESS", "RAY_AUTH_MODE")},
    )
    end = time.monotonic() + 120
    while not any(store.glob("data/*/_steps/*.json")):
        assert verb.poll() is None, verb.communicate()[0]
        assert time.monotonic() < end
        time.sleep(0.05)
    assert all(ipaddress.ip_address(ip).is_loopback for ip in listening(verb.pid))
    verb.send_signal(kind)
    time.sleep(0.5)  # a starved machine handles it before the next
    end = time.monotonic() + 60
    while verb.poll() is None and time.monotonic() < end:  # from the scheduler's script, and again, to the very end
        verb.send_signal(signal.SIGTERM)
        verb.send_signal(kind)
        time.sleep(0.02)
    text = verb.communicate(timeout=60)[0]
    assert verb.returncode == status, text
    assert "interrupted; nothing unfinished was committed" in text
    assert "Traceback" not in text
    assert not (store / MANIFEST).exists()


def listening(pid: int) -> set[str]:
    """Addresses that a process and what it has started listen on: IPv4 as such, where IPv6 holds it."""
    pids = {pid, *(child.pid for child in psutil.Process(pid).children(recursive=True))}
    found = [c for c in psutil.net_connections("inet") if c.pid in pids and c.status == psutil.CONN_LISTEN]
    return {c.laddr.ip.removeprefix("::ffff:") for c in found}
