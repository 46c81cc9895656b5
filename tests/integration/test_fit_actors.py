"""Statistics by threads and by Ray actors: the same, whatever their number, and also when actors die."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bot_dist.data.calibration_samples import Samples
from bot_dist.errors import InputError, RunError
from bot_dist.events import Event, OnEvent, ignore
from bot_dist.events.calibrate import BlockDone, PassStarted
from bot_dist.execute import create_executor
from bot_dist.fit.sites import default_wanted
from bot_dist.fit.statistics import Statistics, statistics
from bot_dist.formats.open import open_source
from bot_dist.model import model_of
from bot_dist.recipe import ClusterConfig
from tests.conftest import Pico

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

LAYERS, WINDOWS = 3, 7


def compute(pico: Pico, folder: Path, on_event: OnEvent = ignore, **cluster: Any) -> Statistics:
    source = open_source(pico.url)
    model = model_of(source.config)
    tokens = torch.randint(64, (WINDOWS, 12), generator=torch.Generator().manual_seed(3))
    with create_executor(ClusterConfig(**cluster)) as executor:
        samples = Samples.of_text(tokens, model)
        return statistics(source, model, samples, default_wanted(model), folder, executor=executor, on_event=on_event)


def assert_same(one: Statistics, other: Statistics) -> None:
    assert one.names == other.names
    for name in one.names:
        for layer in range(1 if name == "norm" else LAYERS):
            a, b = one.moment(name, layer), other.moment(name, layer)
            assert np.abs(a - b).max() <= 1e-6 * np.abs(a).max(), (name, layer)
            assert np.abs(one.mean(name, layer) - other.mean(name, layer)).max() <= 1e-6 * np.sqrt(np.abs(a).max())
    np.testing.assert_allclose(one.similarity, other.similarity, rtol=1e-6)
    np.testing.assert_allclose(one.change, other.change, rtol=1e-6)
    assert one.loss == pytest.approx(other.loss, rel=1e-6)
    assert one.tokens == other.tokens


@pytest.fixture
def alone(pico_llama: Callable[..., Pico], tmp_path: Path) -> tuple[Pico, Statistics]:
    """A model, and its statistics by one thread."""
    pico = pico_llama()
    return pico, compute(pico, tmp_path / "alone", executor="local")


SELDOM = [pytest.param(cluster, marks=pytest.mark.slow) for cluster in ({"data": 2}, {"tensor": 2, "data": 2})]


@pytest.mark.parametrize("cluster", [{"data": 1}, {"data": 3}, *SELDOM], ids=str)
def test_any_number_of_actors(alone: tuple[Pico, Statistics], tmp_path: Path, cluster: dict[str, int]) -> None:
    pico, wanted = alone
    assert_same(compute(pico, tmp_path / "actors", executor="ray", **cluster), wanted)
    assert len([*(tmp_path / "actors").iterdir()]) == 1, "scratch left"


@pytest.mark.parametrize("data", [2, 3, 100])
def test_any_number_of_threads(alone: tuple[Pico, Statistics], tmp_path: Path, data: int) -> None:
    pico, wanted = alone
    before = torch.get_num_threads()
    assert_same(compute(pico, tmp_path / "threads", executor="local", data=data), wanted)
    assert torch.get_num_threads() == before


def killer(block: int, *victims: str) -> OnEvent:
    """Kills actors when a block is done."""
    import ray

    def on_event(event: Event) -> None:
        if isinstance(event, PassStarted):
            names.extend(victims)
        while isinstance(event, BlockDone) and event.block == block and names:
            prefix = f"bot_dist-share-{names.pop()}-"
            (actor,) = [name for name in ray.util.list_named_actors() if name.startswith(prefix)]
            ray.kill(ray.get_actor(actor))

    names: list[str] = []
    return on_event


@pytest.mark.parametrize("block", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_another_actor_does_what_a_dead_one_had(alone: tuple[Pico, Statistics], tmp_path: Path, block: int) -> None:
    pico, wanted = alone
    folder, events = tmp_path / "actors", list[Event]()
    kill = killer(block, "1-of-2")

    def on_event(event: Event) -> None:
        events.append(event)
        kill(event)

    assert_same(compute(pico, folder, on_event, executor="ray", data=2), wanted)
    assert [event.block for event in events if isinstance(event, BlockDone)] == [0, 1, 2], "each block is told once"


def test_a_share_that_kills_its_actors_is_given_up() -> None:
    from bot_dist.execute.ray.shares import Actors

    class Deadly:
        """Work whose second share ends the process that does it. (Local, so that it is pickled whole.)"""

        shares, steps, ahead = 2, 2, 1

        def open(self, share: int) -> Any:
            self.share = share
            return self

        def run(self, step: int, keep: bool = True) -> None:
            import os

            if self.share == 1:
                os._exit(1)

        def close(self) -> None: ...

    with Actors() as actors, pytest.raises(RunError, match="3 actors have died over share 1 of 2"):
        actors.run(Deadly(), lambda step: None)


def test_more_actors_than_the_cluster_has_cpus(alone: tuple[Pico, Statistics], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"7 actors are wanted and the cluster has \d CPUs; use a smaller mesh"):
        compute(alone[0], tmp_path / "actors", executor="ray", data=1000)


def test_an_actor_says_what_is_wrong_with_the_weights(pico_llama: Callable[..., Pico], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    pico = pico_llama()
    path = pico.folder / "model.safetensors"
    tensors = load_file(path)
    tensors["model.layers.1.mlp.down_proj.weight"][0, 0] = float("nan")
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(InputError, match="block 1: activations hold NaN or infinity"):
        compute(pico, tmp_path / "actors", executor="ray", data=2)
    assert not [*(tmp_path / "actors").glob("*.scratch")]
