"""Stores in the hands of clients that nobody here wrote: every array of every family reads right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import tensorstore
import torch
import zarr

from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from bot_dist.store import CheckpointReader
from bot_dist.store.arrays import view
from tests.conftest import Pico


def by_tensorstore(array: Path) -> npt.NDArray[Any]:
    kvstore = {"driver": "file", "path": str(array)}
    opened = tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, open=True, read=True).result()
    values: npt.NDArray[Any] = opened.read().result()
    return values


def by_zarrs(array: Path) -> npt.NDArray[Any]:
    """zarr-python with the codecs of the Rust crate ``zarrs``."""
    with zarr.config.set({"codec_pipeline.path": "zarrs.ZarrsCodecPipeline"}):
        opened = zarr.open_array(array, mode="r")
        assert type(opened.async_array.codec_pipeline).__name__ == "ZarrsCodecPipeline"
        values: npt.NDArray[Any] = np.asarray(opened[...])
        return values


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_array_reads_right(pico: Callable[..., Pico], tmp_path: Path, dtype: torch.dtype) -> None:
    recipe = {"source": pico(dtype=dtype).url, "output": str(tmp_path), "target_url": str(tmp_path / "store")}
    transfer(make_recipe(recipe, {"cluster.executor": "local", "cluster.data": 2}))
    reader = CheckpointReader(str(tmp_path / "store"))
    for name, stored in reader.manifest.parameters.items():
        wanted = view(reader.read_flat(name, 0, stored.parameter.size)).reshape(stored.parameter.sizes)
        for read in (by_tensorstore, by_zarrs):
            found = read(tmp_path / "store" / reader.manifest.data / name)
            assert found.dtype == wanted.dtype, (name, read)
            assert np.array_equal(found, wanted), (name, read)


@pytest.mark.slow
@pytest.mark.parametrize("read", [by_tensorstore, by_zarrs])
def test_a_flipped_bit_is_an_error(pico_llama: Callable[..., Pico], tmp_path: Path, read: Callable[..., Any]) -> None:
    """By the crc32c of its chunk."""
    recipe = {"source": pico_llama().url, "output": str(tmp_path), "target_url": str(tmp_path / "store")}
    transfer(make_recipe(recipe, {"cluster.executor": "local"}))
    (shard,) = (tmp_path / "store").glob("data/*/model.norm.weight/c.0")
    content = bytearray(shard.read_bytes())
    content[0] ^= 1
    shard.write_bytes(content)
    with pytest.raises((ValueError, RuntimeError), match=r"(?i)checksum|crc|digest"):
        read(shard.parent)
