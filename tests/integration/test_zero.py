"""What ranks own under each stage of ZeRO: read from storage exactly, and written and read back in part."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist

from bot_dist.model import model_of
from bot_dist.recipe import TrainConfig
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointReader
from tests.integration.ranks import on_ranks
from tests.integration.test_transfer import transfer

pytestmark = pytest.mark.deepspeed

STAGES = (1, 2, 3)
STATES = ("weights", "exp_avg", "exp_avg_sq")
SIZES = {
    "vocab_size": 1001,
    "hidden_size": 56,
    "num_attention_heads": 7,
    "num_key_value_heads": 7,
    "num_hidden_layers": 1,
}
CHUNK_BYTES = 2**12
"""So small that even a fifth of the table is ten chunks, as a rank's share of a large model is."""


def train_config(world: int, stage: int, **fields: Any) -> TrainConfig:
    return TrainConfig(workers=world, batch=30, context=8, learning_rate=1e-2, stage=stage, **fields)


def tokens(step: int, world: int, rank: int) -> torch.Tensor:
    """This rank's share of 30 sequences."""
    everything = torch.randint(64, (30, 8), generator=torch.Generator().manual_seed(step))
    return everything.chunk(world)[rank]


class Engine:
    """An engine of one stage, filled from a store."""

    def __init__(self, url: str, stage: int, **fields: Any) -> None:
        from bot_dist.train import engine, zero

        self.source = CheckpointReader(url)
        self.model, world = model_of(self.source.config), dist.get_world_size()
        train = train_config(world, stage, **fields)
        self.module, self.engine = engine.start(self.model, train, world=world, device="cpu", trains=True)
        self.asked = zero.fill(self.module, self.engine, self.model, self.source)
        self.partitions = zero.partitions(self.module, self.engine, self.model)

    def step(self, number: int) -> None:
        ids = tokens(number, dist.get_world_size(), dist.get_rank())
        self.engine.train()
        self.engine.backward(self.engine(input_ids=ids, labels=ids).loss)
        self.engine.step()

    def full(self) -> dict[str, torch.Tensor]:
        from bot_dist.train import zero

        return {p.name: full.clone() for p, full in zero.full_parameters(self.module, self.engine, self.model)}

    def everything(self) -> dict[tuple[str, str], torch.Tensor]:
        """The whole of every state, put together from what each rank owns."""
        mine = [(p.parameter.name, p.start, p.stop, {s: p.get(s) for s in STATES}) for p in self.partitions]
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, mine)
        sizes = {p.parameter.name: p.parameter.size for p in self.partitions}
        whole = {(name, state): torch.full((n,), torch.nan) for name, n in sizes.items() for state in STATES}
        for theirs in everyone:
            for name, start, stop, values in theirs:
                for state in STATES:
                    assert whole[name, state][start:stop].isnan().all(), f"{name} is owned twice"
                    whole[name, state][start:stop] = values[state]
        return whole

    def stop(self) -> None:
        from bot_dist.train import engine

        engine.stop(self.module, self.engine)


def load(url: str) -> dict[int, tuple[str, int, int, int]]:
    """Per stage: digest of the weights, bytes that this rank owns, that it asked for, and that storage was read."""
    from bot_dist.train import zero

    found = {}
    for stage in STAGES:
        read = 0
        original = Storage.read_into

        def counted(self: Storage, requests: Any, original: Any = original) -> None:
            nonlocal read
            read += sum(request.nbytes for request in requests)
            original(self, requests)

        with mock.patch.object(Storage, "read_into", counted):
            made = Engine(url, stage)
        owned = sum(4 * (p.stop - p.start) for p in made.partitions)
        found[stage] = (zero.digest(made.module, made.engine, made.model), owned, made.asked, read)
        made.stop()
    return found


def test_every_world_and_stage_loads_the_same_weights_and_reads_its_own(
    pico_llama: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bot_dist.tensors.chunks.CHUNK_BYTES", CHUNK_BYTES)
    store = transfer(pico_llama(tied=False, **SIZES).url, tmp_path / "store", {})
    model = model_of(store.config)
    chunks = sum(store.stored(p.name).chunk_bytes for _, _, p in model.parameters())
    digests = set()
    for world in (1, 2, 3, 5):
        ranks = on_ranks(world, load, store.url)
        for stage in STAGES:
            digests |= {rank[stage][0] for rank in ranks}
            owned, asked, read = zip(*(rank[stage][1:] for rank in ranks), strict=True)
            assert sum(owned) == 4 * model.n_parameters
            assert owned == asked
            for mine, bytes_read in zip(owned, read, strict=True):
                assert mine <= bytes_read <= 1.1 * mine + chunks
    assert len(digests) == 1


def exchange(url: str, first: int, second: int) -> dict[str, Any]:
    """Two steps of one stage; and one of it, whose state another stage takes over for the other step."""
    from bot_dist.train import zero

    whole = Engine(url, first)
    whole.step(0)
    state = whole.everything()
    whole.step(1)
    expected = whole.full()
    whole.stop()
    other = Engine(url, second)
    zero.begin_moments(other.engine, 1)
    with zero.writing(other.module, other.engine):
        for part in other.partitions:
            for name in STATES:
                part.set(name, state[part.parameter.name, name][part.start : part.stop])
    again = other.everything()
    other.step(1)
    found = other.full()
    other.stop()
    return {"state": state, "again": again, "expected": expected, "found": found}


@pytest.mark.parametrize(("world", "first", "second"), [(2, 1, 3), (3, 3, 2), (1, 2, 1)])
def test_a_state_can_be_taken_over_by_another_stage(
    pico_llama: Any, tmp_path: Path, world: int, first: int, second: int
) -> None:
    store = transfer(pico_llama(tied=True, num_hidden_layers=1).url, tmp_path / "store", {})
    for rank in on_ranks(world, exchange, store.url, first, second):
        assert not any(values.isnan().any() for values in rank["state"].values())
        for key, values in rank["state"].items():
            assert torch.equal(rank["again"][key], values), key
        for name, values in rank["expected"].items():
            torch.testing.assert_close(rank["found"][name], values, atol=2e-6, rtol=0)
            assert not torch.equal(values.flatten(), rank["state"][name, "weights"])


def accumulated(url: str, stage: int) -> dict[str, torch.Tensor]:
    """AdamW's first moments after a step in bfloat16 that adds up one large gradient and five small ones."""
    made = Engine(url, stage, precision="bfloat16", accumulate=6, clip=1e9)
    ids = tokens(0, 1, 0)[:5]
    made.engine.train()
    for weight in (256, 1, 1, 1, 1, 1):  # 261 is no bfloat16
        made.engine.backward(weight * made.engine(input_ids=ids, labels=ids).loss)
        made.engine.step()
    moments = {name: values for (name, state), values in made.everything().items() if state == "exp_avg"}
    made.stop()
    return moments


@pytest.mark.parametrize("world", [1, 2])
def test_every_stage_adds_up_gradients_of_bfloat16_alike(pico_llama: Any, tmp_path: Path, world: int) -> None:
    store = transfer(pico_llama(num_hidden_layers=1).url, tmp_path / "store", {})
    first, *others = (on_ranks(world, accumulated, store.url, stage)[0] for stage in STAGES)
    for other in others:
        for name, values in first.items():
            assert values.any(), name
            torch.testing.assert_close(other[name], values, rtol=1e-5, atol=0)
