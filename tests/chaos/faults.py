"""The faults: each a function of an arena and a seeded generator that disturbs one run and tells how it ended."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import ray
import torch

import bot_dist.checkpoint.retry
import bot_dist.runtime.dispatch
from bot_dist.checkpoint import CheckpointReader, CheckpointWriter
from bot_dist.checkpoint.arrays import torch_dtype
from bot_dist.convert.storage import write_file
from bot_dist.errors import BotDistError, CheckpointExistsError
from bot_dist.runtime.ray_executor import RayExecutor
from tests.chaos import actors, boundary, damage, drivers
from tests.chaos.actors import PHASES, Fault
from tests.chaos.cases import Case
from tests.chaos.endings import AGAIN, RIGHT, Ending, SilentDifference, again, is_right, of_damaged
from tests.chaos.proxy import TRANSIENT, FaultyProxy, seeded


@dataclass(frozen=True)
class Arena:
    """Where runs take place."""

    folder: Path
    """Empty, of this run."""
    cases: list[Case]
    proxy: FaultyProxy | None = None
    """In front of an S3 server, whose environment this process has."""
    cluster: Any = None
    """``ray.cluster_utils.Cluster``, for runs in which nodes are lost."""

    @property
    def url(self) -> str:
        """Of the target."""
        return str(self.folder / "store")


Run = Callable[[Arena, random.Random], Ending]


class Seen:
    """What a driver was told: which steps are done."""

    def __init__(self, then: Callable[[int], None] = lambda done: None) -> None:
        self.steps: set[str] = set()
        self.events: list[str] = []
        self._then = then

    def __call__(self, event: dict[str, Any]) -> None:
        self.events.append(event["event"])
        if event["event"] == "step":
            self.steps.add(event["step"])
            self._then(len(self.steps))


def attempt(case: Case, url: str, seen: Seen | None = None, **overrides: Any) -> str | None:
    """The case's command; the name of the error that it ended in."""
    try:
        case.transfer(url, seen or Seen(), **overrides)
    except BotDistError as error:
        return type(error).__name__
    return None


# --- in process, at the storage boundary ---


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


def two_drivers(arena: Arena, draw: random.Random) -> Ending:
    """Two drivers with the same command: one store, whole."""
    case, url = draw.choice(arena.cases), arena.url
    errors = _both(draw, lambda: attempt(case, url), lambda: attempt(case, url))
    assert None in errors, errors
    ending = again(case, url)
    return Ending(ending.how, str([error for error in errors if error]))


def two_plans(arena: Arena, draw: random.Random) -> Ending:
    """Two drivers with different plans: one's store, whole, and an error for the other."""
    return _two_plans(arena, draw, overwrite=False)


def two_plans_overwrite(arena: Arena, draw: random.Random) -> Ending:
    """The same, where one may replace what the other has done."""
    return _two_plans(arena, draw, overwrite=True)


def _two_plans(arena: Arena, draw: random.Random, *, overwrite: bool) -> Ending:
    case, url, other = draw.choice(arena.cases), arena.url, {"transfer.wavelet": "db3"}
    expected = str(arena.folder / "other")
    case.transfer(expected, **other)
    errors = _both(draw, lambda: attempt(case, url, overwrite=overwrite), lambda: attempt(case, url, **other))
    found = CheckpointReader(url).manifest if Path(url, "manifest.json").exists() else None
    theirs = CheckpointReader(expected).manifest
    if found is not None and found.data == theirs.data:
        assert found.digests == theirs.digests
        if damaged := bot_dist.verify(url).damaged:
            raise SilentDifference(f"the committed store is not whole: {damaged[0]}")
        case.transfer(url, overwrite=True)
    elif found is None:
        case.transfer(url, overwrite=True)
    assert is_right(case, url)
    assert overwrite or errors.count(None) == 1, errors
    return Ending(RIGHT, str(errors))


def zombie(arena: Arena, draw: random.Random) -> Ending:
    """A writer that was given up for dead goes on after another attempt's commit, and tries to commit."""
    case, url = draw.choice(arena.cases), arena.url
    stop = draw.randrange(1, 20)

    class Stopped(BaseException):
        pass

    def then(done: int) -> None:
        if done == stop:
            raise Stopped

    with contextlib.suppress(Stopped):
        case.transfer(url, Seen(then), **{"transfer.wavelet": "db3"})
    (name,) = os.listdir(f"{url}/data")
    old = CheckpointWriter.open(url, name)
    case.transfer(url, overwrite=True)
    digests: dict[str, dict[str, bytes]] = {}
    for name, stored in old.stored.items():
        dtype = torch_dtype(stored.dtype)
        for shard in stored.shards():
            zeros = torch.zeros([b - a for a, b in shard], dtype=dtype)
            digests.setdefault(name, {})[stored.shard_key(shard)] = old.write(name, shard, zeros)
    assert is_right(case, url)
    with pytest.raises(CheckpointExistsError):
        old.commit(digests, {})
    assert is_right(case, url)
    return Ending(RIGHT, "CheckpointExistsError")


def _both(draw: random.Random, *drivers: Callable[[], str | None]) -> list[str | None]:
    """Both at the same time, storage slow; the errors that they end in. What is no named error is raised."""
    found: list[str | None] = [None] * len(drivers)
    raised: list[BaseException] = []

    def drive(i: int) -> None:
        try:
            found[i] = drivers[i]()
        except BaseException as error:
            raised.append(error)

    late_s = draw.choice([0.0, draw.uniform(0, 0.3)])
    with boundary.hooked(boundary.Jitter(draw)):
        threads = [threading.Thread(target=drive, args=(i,)) for i in range(len(drivers))]
        for thread in threads:
            thread.start()
            time.sleep(late_s)
        for thread in threads:
            thread.join()
    for error in raised:
        raise error
    return found


# --- damage ---


def of_committed(name: str) -> Run:
    def run(arena: Arena, draw: random.Random) -> Ending:
        case = draw.choice(arena.cases)
        case.transfer(arena.url)
        damage.COMMITTED[name](Path(arena.url), draw)
        ending = of_damaged(case, arena.url, draw, forged=name == damage.FORGED)
        assert ending.how != RIGHT, "nothing was damaged"
        return ending

    return run


def stale_manifest(arena: Arena, draw: random.Random) -> Ending:
    """The manifest of an earlier store that was replaced is put back."""
    case = draw.choice(arena.cases)
    case.transfer(arena.url, **{"transfer.wavelet": "db3"})
    stale = Path(arena.url, "manifest.json").read_bytes()
    case.transfer(arena.url, overwrite=True)
    assert is_right(case, arena.url)
    Path(arena.url, "manifest.json").write_bytes(stale)
    return of_damaged(case, arena.url, draw)


def of_unfinished(name: str) -> Run:
    def run(arena: Arena, draw: random.Random) -> Ending:
        case, url = draw.choice(arena.cases), arena.url
        stop = draw.randrange(10, 25)

        def then(done: int) -> None:
            if done == stop:
                raise boundary.Crashed

        with contextlib.suppress(boundary.Crashed):
            case.transfer(url, Seen(then))
        damage.UNFINISHED[name](Path(url), draw)
        assert attempt(case, url) is None
        assert is_right(case, url)
        return Ending(RIGHT)

    return run


# --- S3 ---


def s3(arena: Arena, draw: random.Random) -> Ending:
    """500, 503 SlowDown, 429, no answer, resets, lost answers and truncated bodies at random, of source and target."""
    return _s3(arena, draw)


def s3_ray(arena: Arena, draw: random.Random) -> Ending:
    """The same, with Ray actors."""
    return _s3(arena, draw, **{"cluster.executor": "ray"})


def _s3(arena: Arena, draw: random.Random, **overrides: Any) -> Ending:
    case, proxy = draw.choice(arena.cases), arena.proxy
    assert proxy is not None
    place = f"s3://chaos/{draw.getrandbits(64):x}-{arena.folder.name}"
    for path in case.source.iterdir():
        write_file(f"{place}/source/{path.name}", path.read_bytes())
    url = f"{place}/store"
    proxy.plan = seeded(draw.getrandbits(32), draw.choice([0.05, 0.15, 0.4]), TRANSIENT)
    begun = len(proxy.exchanges)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bot_dist.checkpoint.retry, "FIRST_WAIT_S", 0.005)
            patch.setattr(bot_dist.checkpoint.retry, "TRIES", draw.choice([2, 4, 8]))
            error = attempt(case, url, source=f"{place}/source", **overrides)
    finally:
        proxy.plan = lambda exchange: None
    wrong = sum(fault is not None for _, fault in proxy.exchanges[begun:])
    ending = again(case, url, source=f"{place}/source")
    return Ending(ending.how, f"{wrong} wrong answers; {error}")


# --- Ray actors ---


def killed_actor(arena: Arena, draw: random.Random) -> Ending:
    """SIGKILL of shard actors in a phase."""
    fault = Fault(
        phase=draw.choice(PHASES),
        nth=draw.choice([1, 1, 2, 5, 9]),
        times=draw.choice([1, 1, 2, 3]),
        tokens=_tokens(arena),
    )
    if fault.phase == "get ready":
        fault = Fault(phase=fault.phase, times=fault.times, tokens=fault.tokens)
    return _by_actors(arena, fault, draw.choice(arena.cases), _mesh(draw))


def hung_actor(arena: Arena, draw: random.Random) -> Ending:
    """A shard actor that hangs in a phase for ever; the others do its steps."""
    fault = Fault(phase=draw.choice(PHASES), nth=draw.choice([1, 3]), tokens=_tokens(arena), how="hang", slow_s=0.002)
    if fault.phase == "get ready":
        fault = Fault(phase=fault.phase, tokens=fault.tokens, how="hang")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bot_dist.runtime.dispatch, "STRAGGLER_S", 0.5)
        return _by_actors(arena, fault, draw.choice(arena.cases), _mesh(draw))


def poison_step(arena: Arena, draw: random.Random) -> Ending:
    """A step that kills every actor that takes it up: one error; without it, the same command goes on."""
    case = draw.choice(arena.cases)
    steps = Seen()
    mesh = _mesh(draw)
    case.transfer(str(arena.folder / "undisturbed"), steps, **mesh)
    fault = Fault(phase=draw.choice(sorted(steps.steps)))
    ending = _by_actors(arena, fault, case, mesh)
    assert ending.detail == "RunError", ending
    return ending


def clock_of_actors(arena: Arena, draw: random.Random) -> Ending:
    """The time of day jumps by days in the actors."""
    fault = Fault(jump_s=draw.uniform(1, 30) * 86400)
    ending = _by_actors(arena, fault, draw.choice(arena.cases), _mesh(draw))
    assert ending.how == RIGHT, ending
    return ending


def killed_driver_of_actors(arena: Arena, draw: random.Random) -> Ending:
    """Ctrl-C of the driver at any step, and the same command again by actors."""
    stop = draw.randrange(1, 25)

    def then(done: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    case, seen, mesh = draw.choice(arena.cases), Seen(then), _mesh(draw)
    with contextlib.suppress(KeyboardInterrupt):
        case.transfer(arena.url, seen, **mesh, **{"cluster.executor": "ray"})
    return again(case, arena.url, at_least=frozenset(seen.steps), **mesh, **{"cluster.executor": "ray"})


def lost_node(arena: Arena, draw: random.Random) -> Ending:
    """A node that is lost with its actor; the others go on."""
    return _lost_node(arena, draw, replaced=False)


def replaced_node(arena: Arena, draw: random.Random) -> Ending:
    """A node that is lost with its actor, and a new one that joins."""
    return _lost_node(arena, draw, replaced=True)


def _lost_node(arena: Arena, draw: random.Random, *, replaced: bool) -> Ending:
    """The cluster has a head node and two others, of one CPU each; a mesh of three actors."""
    cluster = arena.cluster
    while len(cluster.worker_nodes) < 2:
        cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    deadline = time.monotonic() + 60
    while {node["NodeID"] for node in ray.nodes() if node["Alive"]} != {n.node_id for n in cluster.list_all_nodes()}:
        assert time.monotonic() < deadline, "a node that was removed before is still taken for alive"
        time.sleep(0.1)
    lose_at = draw.randrange(1, 15)

    def then(done: int) -> None:
        if done == lose_at:
            cluster.remove_node(draw.choice(sorted(cluster.worker_nodes, key=id)), allow_graceful=False)
            if replaced:
                cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    case, seen, mesh = draw.choice(arena.cases), Seen(then), {"cluster.tensor": 1, "cluster.data": 3}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayExecutor, "actor_class", actors.actor_class(Fault(slow_s=0.05)))
        error = attempt(case, arena.url, seen, **mesh, **{"cluster.executor": "ray"})
    assert len(seen.steps) >= lose_at, f"the node was never lost: {error}"
    ending = again(case, arena.url, at_least=frozenset(seen.steps), **mesh)
    return Ending(ending.how, str(error or seen.events.count("actor_died")))


def _by_actors(arena: Arena, fault: Fault, case: Case, mesh: dict[str, int]) -> Ending:
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayExecutor, "actor_class", actors.actor_class(fault))
        error = attempt(case, arena.url, seen, **mesh, **{"cluster.executor": "ray"})
    assert error in (None, "RunError"), error
    ending = again(case, arena.url, at_least=frozenset(seen.steps), **mesh)
    return Ending(ending.how, error or f"{seen.events.count('actor_died')} died, {fault}")


def _mesh(draw: random.Random) -> dict[str, int]:
    tensor, data = draw.choice([(2, 1), (1, 2), (2, 2), (1, 3)])
    return {"cluster.tensor": tensor, "cluster.data": data}


def _tokens(arena: Arena) -> str:
    folder = arena.folder / "tokens"
    folder.mkdir()
    return str(folder)


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    run: Run
    runs: int
    """In the long form."""
    needs: Literal["", "s3", "ray", "ray and s3", "nodes"] = ""


KINDS: dict[str, Kind] = {
    "the process dies at an operation of storage": Kind(crash, 120),
    "the machine dies at one; what was not synced is lost": Kind(power_cut, 120),
    "the process dies while it replaces a store": Kind(crash_while_replacing, 40),
    "SIGKILL of a process at any time": Kind(killed_process, 40),
    "SIGKILL of `bot_dist scale`, in process": Kind(killed_command, 6),
    "SIGKILL of `bot_dist scale`, with a Ray of its own": Kind(killed_command_ray, 4),
    "a full disk, then room": Kind(full_disk, 20),
    "a clock that jumps by days": Kind(clock, 10),
    "two drivers, same command": Kind(two_drivers, 30),
    "two drivers, two plans": Kind(two_plans, 20),
    "two drivers, two plans, one may overwrite": Kind(two_plans_overwrite, 30),
    "a given-up writer goes on": Kind(zombie, 10),
    **{f"committed: {name}": Kind(of_committed(name), 20) for name in damage.COMMITTED},
    "committed: an earlier manifest put back": Kind(stale_manifest, 6),
    **{f"before resuming: {name}": Kind(of_unfinished(name), 12) for name in damage.UNFINISHED},
    "S3 answers wrongly": Kind(s3, 20, "s3"),
    "S3 answers wrongly, Ray actors": Kind(s3_ray, 6, "ray and s3"),
    "SIGKILL of a shard actor in a phase": Kind(killed_actor, 40, "ray"),
    "a shard actor hangs": Kind(hung_actor, 12, "ray"),
    "a step that kills its actors": Kind(poison_step, 4, "ray"),
    "a clock that jumps in the actors": Kind(clock_of_actors, 4, "ray"),
    "Ctrl-C of a driver of actors": Kind(killed_driver_of_actors, 6, "ray"),
    "a node is lost": Kind(lost_node, 5, "nodes"),
    "a node is lost, another joins": Kind(replaced_node, 5, "nodes"),
}
