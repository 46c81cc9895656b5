"""Export to torch's distributed checkpoint: what DCP itself loads is what the source holds."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from bot_dist.errors import CheckpointExistsError
from bot_dist.formats.exports import _dcp_writer
from bot_dist.formats.exports.dcp import export_dcp
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from tests.conftest import Pico

PicoMaker = Callable[..., Pico]

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is disabled")


def load(folder: Path, like: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    state = {name: torch.full_like(tensor, 7) for name, tensor in like.items()}
    dcp.load(state, checkpoint_id=folder, no_dist=True)
    return state


def check(folder: Path, made: Pico) -> None:
    loaded = load(folder, made.tensors)
    assert all(torch.equal(loaded[name], tensor) for name, tensor in made.tensors.items())


@pytest.mark.parametrize("chunk_bytes", [2**26, 1000])
def test_dcp_loads_what_the_source_holds(
    pico: PicoMaker, tmp_path: Path, chunk_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_dcp_writer, "CHUNK_BYTES", chunk_bytes)
    made, pieces = pico(dtype=torch.bfloat16), []
    result = export_dcp(open_source(made.url), str(tmp_path / "out"), progress=pieces.append)
    check(tmp_path / "out", made)
    assert dcp.FileSystemReader(tmp_path / "out").read_metadata().state_dict_metadata.keys() == made.tensors.keys()
    assert result.weight_bytes == sum(pieces) == sum(t.nbytes for t in made.tensors.values())
    assert max(pieces) <= max(chunk_bytes, max(t[0].nbytes for t in made.tensors.values()))
    assert {"config.json", ".metadata"} <= {*result.files}


def test_formats_replace_each_other_wholly(pico_llama: PicoMaker, tmp_path: Path) -> None:
    made, out = pico_llama(), tmp_path / "out"
    source = open_source(made.url)
    export_dcp(source, str(out))
    with pytest.raises(CheckpointExistsError, match=r"already holds a model \(\.metadata, config\.json"):
        export_huggingface(source, str(out))
    export_huggingface(source, str(out), overwrite=True)
    assert not [*out.glob("*.distcp"), *out.glob(".metadata")]
    export_dcp(source, str(out), overwrite=True)
    assert not [*out.glob("*.safetensors")]
    check(out, made)


def test_an_interrupted_export_leaves_nothing(pico_llama: PicoMaker, tmp_path: Path) -> None:
    def interrupt(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_dcp(open_source(pico_llama().url), str(tmp_path / "out"), progress=interrupt)
    assert not (tmp_path / "out").exists()


def rank_of_two(rank: int, folder: Path, rendezvous: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Load the checkpoint into DTensors cut in two along the first dimension, and compare this rank's half."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    wanted = {name: distribute_tensor(tensor, mesh, [Shard(0)]) for name, tensor in tensors.items()}
    state = {name: distribute_tensor(torch.zeros_like(tensor), mesh, [Shard(0)]) for name, tensor in tensors.items()}
    dcp.load(state, checkpoint_id=folder)
    assert all(torch.equal(state[name].to_local(), tensor.to_local()) for name, tensor in wanted.items())
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_ranks_load_their_halves(pico_llama: PicoMaker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_dcp_writer, "CHUNK_BYTES", 1000)
    made = pico_llama(tied=False)
    export_dcp(open_source(made.url), str(tmp_path / "out"))
    tensors = {name: tensor.detach() for name, tensor in made.tensors.items()}
    spawned = multiprocessing.get_context("spawn")
    ranks = [
        spawned.Process(target=rank_of_two, args=(rank, tmp_path / "out", tmp_path / "rendezvous", tensors))
        for rank in range(2)
    ]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(timeout=120)
    assert [process.exitcode for process in ranks] == [0, 0]
