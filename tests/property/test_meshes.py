"""The bytes of a transfer depend on nothing but what is transferred: not on mesh, limit, order of steps or executor."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given
from hypothesis import strategies as st

import bot_dist
from bot_dist.execute.worker import Worker
from bot_dist.pipeline.planning import Planning
from bot_dist.pipeline.transfer import stored_parameters
from bot_dist.store import CheckpointReader, CheckpointWriter
from tests.conftest import PICOS, examples, randomised

TARGETS: dict[str, dict[str, int]] = {
    "llama": {"layers": 5, "embed": 36, "mlp": 60, "kv_heads": 3, "heads": 6},
    "gemma2": {"embed": 12, "mlp": 20, "layers": 2},
    "qwen3": {"layers": 2, "embed": 32, "mlp": 30},
    "gpt2": {"layers": 4, "embed": 40, "heads": 5, "mlp": 100},
    "gpt_neox": {"embed": 48, "heads": 6, "mlp": 30},
    "bert": {"layers": 6, "embed": 16, "heads": 2, "mlp": 55},
    "vit": {"embed": 48, "heads": 6, "mlp": 25, "layers": 2},
}
WAVELETS = ("haar", "db2", "coif3", "bior6.8", "sym5")


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


@lru_cache
def source(kind: str, dtype: torch.dtype, folder: Path) -> str:
    import transformers

    config_class, model_class, sizes = PICOS[kind]
    ids = {"bos_token_id": 1, "eos_token_id": 2} if "vocab_size" in sizes else {}
    model = getattr(transformers, model_class)(getattr(transformers, config_class)(**sizes, **ids))
    url = str(folder / f"{kind}-{dtype}")
    randomised(model.to(dtype)).save_pretrained(url)  # type: ignore[operator]
    return url


@lru_cache
def undisturbed(kind: str, dtype: torch.dtype, wavelet: str, folder: Path) -> dict[str, torch.Tensor]:
    """The oracle: one actor, in order, with memory enough."""
    return made(kind, dtype, wavelet, folder, {}, None)


def made(
    kind: str, dtype: torch.dtype, wavelet: str, folder: Path, options: dict[str, Any], seed: int | None
) -> dict[str, torch.Tensor]:
    recipe = bot_dist.make_recipe(
        {"source": source(kind, dtype, folder), "output": str(folder), "target": TARGETS[kind]},
        {"cluster.executor": "local", "transfer.analysis": "wavelet", "transfer.wavelet": wavelet, **options},
    )
    planning = Planning(recipe)
    reader, plan = planning.source, planning.draft
    plan.validate()
    with tempfile.TemporaryDirectory() as url:
        writer = CheckpointWriter.create(url, stored_parameters(plan), config=plan.target.config, attempt=plan.digest)
        worker = Worker(plan, reader, url, "cpu")
        steps = [*plan.steps()]
        if seed is not None:
            random.Random(seed).shuffle(steps)
        digests: dict[str, dict[str, bytes]] = {}
        for step in steps:
            result = worker.run(step)
            for name, found in result.digests.items():
                digests.setdefault(name, {}).update(found)
        writer.commit(digests, {})
        return dict(CheckpointReader(url).tensors())


@examples(40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from([*TARGETS]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
    wavelet=st.sampled_from(WAVELETS),
    tensor=st.integers(1, 3),
    data=st.integers(1, 4),
    limit=st.sampled_from(["1GiB", "200KiB", "64KiB"]),
    seed=st.integers(0, 2**16),
)
def test_every_mesh_limit_and_order_gives_the_same_bytes(
    folder: Path, kind: str, dtype: torch.dtype, wavelet: str, tensor: int, data: int, limit: str, seed: int
) -> None:
    options = {"cluster.tensor": tensor, "cluster.data": data, "transfer.memory_limit": limit}
    wanted = undisturbed(kind, dtype, wavelet, folder)
    found = made(kind, dtype, wavelet, folder, options, seed)
    assert [*found] == [*wanted]
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
