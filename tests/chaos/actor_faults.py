"""Ray actors and nodes that die and hang."""

from __future__ import annotations

import contextlib
import random
import time

import pytest
import ray

import bot_dist.execute.dispatch
from bot_dist.execute.ray import shards
from tests.chaos import actors
from tests.chaos.actors import PHASES, Fault
from tests.chaos.arena import Arena, Seen, attempt
from tests.chaos.cases import Case
from tests.chaos.endings import RIGHT, Ending, again


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
        patch.setattr(bot_dist.execute.dispatch, "STRAGGLER_S", 0.5)
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
        patch.setattr(shards, "ShardActor", actors.actor_class(Fault(slow_s=0.05)))
        error = attempt(case, arena.url, seen, **mesh, **{"cluster.executor": "ray"})
    assert len(seen.steps) >= lose_at, f"the node was never lost: {error}"
    ending = again(case, arena.url, at_least=frozenset(seen.steps), **mesh)
    return Ending(ending.how, str(error or seen.events.count("actor_died")))


def _by_actors(arena: Arena, fault: Fault, case: Case, mesh: dict[str, int]) -> Ending:
    seen = Seen()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shards, "ShardActor", actors.actor_class(fault))
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
