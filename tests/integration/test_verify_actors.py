"""Verifying by Ray actors: the same answer, also when actors die."""

from __future__ import annotations

from pathlib import Path

import pytest

from bot_dist.errors import RunError
from bot_dist.events import Event, OnEvent
from bot_dist.events.checkpoints import VerifyRead, VerifyStarted
from bot_dist.pipeline import checks
from bot_dist.store import CheckpointReader
from tests.unit.test_verification import data, fitted, flip, hurt, store

__all__ = ["fitted", "store"]  # fixtures

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def killer(n_actors: int, victims: int) -> OnEvent:
    """Kills the first ``victims`` actors of a verification once they have read something."""
    import ray

    def on_event(event: Event) -> None:
        nonlocal victims
        while isinstance(event, VerifyRead) and victims:
            victims -= 1
            prefix = f"bot_dist-task-{victims}-of-{n_actors}-"
            (actor,) = [name for name in ray.util.list_named_actors() if name.startswith(prefix)]
            ray.kill(ray.get_actor(actor))

    return on_event


def test_actors_find_what_threads_find(store: Path) -> None:
    hurt(store)
    assert checks.verify(str(store), actors=2).damaged == checks.verify(str(store)).damaged


def test_actors_verify_the_operators_of_a_store(fitted: Path) -> None:
    assert not checks.verify(str(fitted), actors=2).damaged
    embed, mlp = CheckpointReader(str(fitted)).manifest.operators
    flip(data(fitted / mlp) / "mlp.read.mlp.down/c.1.0.0")
    (data(fitted / embed) / "embed.write/c.0.0").unlink()
    found = checks.verify(str(fitted), actors=2).damaged
    assert [(damage.name, damage.chunk) for damage in found] == [
        (f"{embed}: embed.write", "0.0"),
        (f"{mlp}: mlp.read.mlp.down", "1.0.0"),
    ]
    assert found == checks.verify(str(fitted)).damaged


def test_what_a_dead_actor_had_goes_to_the_others(store: Path) -> None:
    hurt(store)
    events: list[Event] = []
    kill = killer(2, victims=1)

    def on_event(event: Event) -> None:
        events.append(event)
        kill(event)

    assert checks.verify(str(store), on_event, actors=2).damaged == checks.verify(str(store)).damaged
    started, *read = events
    assert isinstance(started, VerifyStarted)
    assert started.bytes == sum(event.bytes for event in read if isinstance(event, VerifyRead))


def test_without_actors_left_it_ends(store: Path) -> None:
    with pytest.raises(RunError, match="all actors have died"):
        checks.verify(str(store), killer(2, victims=2), actors=2)


def test_more_actors_than_the_cluster_has_cpus_are_refused(store: Path) -> None:
    with pytest.raises(RunError, match=r"1000 actors are wanted and the cluster has \d+ CPUs"):
        checks.verify(str(store), actors=1000)
