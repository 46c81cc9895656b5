"""Processes, machines, disks and clocks that fail a driver."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import bot_dist
from bot_dist.store import CheckpointReader
from tests.chaos import actors, boundary, drivers
from tests.chaos.arena import Arena, Seen, attempt
from tests.chaos.cases import Case
from tests.chaos.endings import AGAIN, RIGHT, Ending, SilentDifference, again, is_right


def crash(arena: Arena, draw: random.Random) -> Ending:
    """The driver dies at any operation of storage: nothing, all, or half of it has happened."""
    case = draw.choice(arena.cases)
    hook = boundary.Crash(_moment(arena, case, draw), draw.choice(["before", "after", "torn"]), draw)
    return _crashed(case, arena.url, hook)


def power_cut(arena: Arena, draw: random.Random) -> Ending:
    """The machine dies at any operation of storage, and what was not synced is lost."""
    case = draw.choice(arena.cases)
    hook = boundary.PowerCut(_moment(arena, case, draw), draw.choice(["before", "after", "torn"]), draw)
    return _crashed(case, arena.url, hook)


def crash_while_replacing(arena: Arena, draw: random.Random) -> Ending:
    """The driver dies while it replaces a store: one of the two is there, whole."""
    case, url = draw.choice(arena.cases), arena.url
    old = {"transfer.seed": 7, "transfer.wavelet": "db3"}
    case.transfer(url, **old)
    before = Path(url, "manifest.json").read_bytes()
    hook = boundary.Crash(_moment(arena, case, draw), draw.choice(["before", "after", "torn"]), draw)
    with contextlib.suppress(boundary.Crashed), boundary.hooked(hook):
        case.transfer(url, overwrite=True)
    if Path(url, "manifest.json").read_bytes() == before:
        if damaged := bot_dist.verify(url).damaged:
            raise SilentDifference(f"the store to be replaced is gone before the new one is there: {damaged[0]}")
        case.transfer(url, overwrite=True)
        how = AGAIN
    else:
        how = RIGHT
    assert is_right(case, url)
    return Ending(how)


def _crashed(case: Case, url: str, hook: boundary.Crash) -> Ending:
    seen = Seen()
    with contextlib.suppress(boundary.Crashed), boundary.hooked(hook):
        case.transfer(url, seen)
    if isinstance(hook, boundary.PowerCut):
        hook.lose()
        return again(case, url)
    return again(case, url, at_least=frozenset(seen.steps))


def _moment(arena: Arena, case: Case, draw: random.Random) -> int:
    """An operation of the case's run, the last ones (the commit) as likely as all others together."""
    count = boundary.Count()
    with boundary.hooked(count):
        case.transfer(str(arena.folder / "count"))
    n = count.operations
    return draw.randint(1, n) if draw.random() < 0.5 else draw.randint(n - min(n, 25), n)


def killed_process(arena: Arena, draw: random.Random) -> Ending:
    """SIGKILL of a driver process at any time."""
    case, url = draw.choice(arena.cases), arena.url
    process = drivers.start(case, url)
    drivers.kill_when(process, _some_time(url, draw))
    drivers.wait_gone(process)
    return again(case, url, at_least=_recorded(url))


def killed_command(arena: Arena, draw: random.Random) -> Ending:
    """SIGKILL of ``bot_dist scale`` at any time, then the same command again."""
    return _killed_command(arena, draw)


def killed_command_ray(arena: Arena, draw: random.Random) -> Ending:
    """SIGKILL of ``bot_dist scale`` with a Ray of its own at any time, then the same command again; no process of
    that Ray stays."""
    return _killed_command(arena, draw, **{"cluster.executor": "ray"})


def _killed_command(arena: Arena, draw: random.Random, **overrides: Any) -> Ending:
    case, url = draw.choice(arena.cases), arena.url
    tmp = Path(f"/tmp/k{os.getpid()}{draw.randrange(10**6)}")  # short: Ray's socket paths have at most 107 bytes
    with drivers.command(case, url, tmp=tmp, **overrides) as process:
        drivers.kill_when(process, _some_time(url, draw))
        drivers.wait_gone(process)
    stay = drivers.left_behind(tmp)
    assert not stay, stay
    recorded, done = _recorded(url), is_right(case, url)
    with drivers.command(case, url, tmp=tmp, **overrides) as process:
        said, _ = process.communicate(timeout=drivers.DEADLINE_S)
    assert "Traceback" not in said, said
    assert process.returncode == (2 if done else 0), said
    assert is_right(case, url)
    stay = drivers.left_behind(tmp)
    assert not stay, stay
    shutil.rmtree(tmp)
    if done:
        return Ending(RIGHT)
    provenance = CheckpointReader(url).manifest.provenance
    assert provenance["transfer"]["steps_resumed"] == len(recorded), (
        provenance["transfer"]["steps_resumed"],
        sorted(recorded),
    )
    return Ending(AGAIN, f"{len(recorded)} of {provenance['transfer']['steps']} steps resumed")


def _some_time(url: str, draw: random.Random) -> Callable[[], bool]:
    """When some steps are recorded; or around the commit."""
    steps, wait_s = draw.randrange(30), draw.uniform(0, 0.02)
    if draw.random() < 0.3:
        return lambda: Path(url, "manifest.json").exists()

    def reached() -> bool:
        if len(_recorded(url)) < steps:
            return False
        time.sleep(wait_s)
        return True

    return reached


def _recorded(url: str) -> frozenset[str]:
    return frozenset(path.stem for path in Path(url).glob("data/*/_steps/*.json"))


def clock(arena: Arena, draw: random.Random) -> Ending:
    """The time of day jumps by days, forwards and backwards, at every look at it."""
    case, url = draw.choice(arena.cases), arena.url
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", time.time)  # so that it is put back
        actors.jump(draw.uniform(1, 30) * 86400)
        error = attempt(case, url)
    assert error is None, error
    return again(case, url)


def full_disk(arena: Arena, draw: random.Random) -> Ending:
    """A disk that is full at some time; then there is room, and the same command again."""
    case = draw.choice(arena.cases)
    case.transfer(arena.url)
    total = int(subprocess.run(["du", "-sk", arena.url], capture_output=True, check=True).stdout.split()[0])
    disk = arena.folder / "disk"
    disk.mkdir()
    size = draw.randint(16, max(32, total))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", disk], check=True)
    try:
        error = attempt(case, f"{disk}/store")
        subprocess.run(["mount", "-o", "remount,size=1g", disk], check=True)
        ending = again(case, f"{disk}/store")
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
    return Ending(ending.how, error or "")
