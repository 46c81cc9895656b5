"""Saving and loading a store beside what others do with the same bytes, in one run, as ratios.

python -m tests.benchmarks.checkpoint [--folder DIR] [--repeat N]

Shapes are SmolLM2-135M's in float32 (538 MB). Compared are: a copy of one file, in and out, with fsync; safetensors,
loaded and its tensors copied into memory of their own; torch DCP's save (it syncs its files) and load; and zstd on
typical weights. Exits 1 when a bar is missed. The page cache is warm.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors import safe_open
from safetensors.torch import save_file

from bot_dist.model import Model, model_of
from bot_dist.store import CheckpointReader, CheckpointWriter, store_layout

SMOLLM2 = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "vocab_size": 49152,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
}
BARS = {"load / safetensors": 1.5, "save / DCP save": 1.5, "sharded load / DCP load": 1.5}
RANKS = 2


def copied(source: Path, folder: Path) -> None:
    with source.open("rb") as read, (folder / "copy").open("wb") as write:
        shutil.copyfileobj(read, write, 2**24)
        write.flush()
        os.fsync(write.fileno())


def saved(tensors: dict[str, torch.Tensor], model: Model, folder: Path) -> None:
    """Digests, checksums, fsync, commit."""
    stored = [store_layout(p) for _, _, p in model.parameters()]
    writer = CheckpointWriter.create(str(folder), stored, config=model.config, attempt="saved")
    digests: dict[str, dict[str, bytes]] = {name: {} for name in tensors}

    def write(name: str, shard: Any) -> None:
        values = tensors[name].view(writer.stored[name].parameter.sizes)[tuple(slice(*r) for r in shard)]
        digests[name][writer.stored[name].shard_key(shard)] = writer.write(name, shard, values)

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(write, name, shard) for name in tensors for shard in writer.shards(name)]:
            future.result()
    writer.commit(digests, {})


def loaded(folder: Path) -> dict[str, torch.Tensor]:
    return dict(CheckpointReader(str(folder)).tensors())


def by_safetensors(path: Path) -> dict[str, torch.Tensor]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118


def dcp_rank(rank: int, folder: str, port: int, results: Any, ours: bool) -> None:
    """One of two ranks that load half of every tensor, along its first axis."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, empty

    torch.set_num_threads(1)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    torch.distributed.init_process_group("gloo")
    model = model_of(SMOLLM2)
    mesh = init_device_mesh("cpu", (RANKS,))
    for _ in range(3):
        torch.distributed.barrier()
        begun = time.perf_counter()
        if ours:
            read = CheckpointReader(folder).read_flat
            halves = [(p.name, p.size // RANKS) for _, _, p in model.parameters()]
            with ThreadPoolExecutor(2) as pool:
                futures = {name: pool.submit(read, name, rank * n, rank * n + n) for name, n in halves}
                kept = {name: future.result() for name, future in futures.items()}
        else:
            kept = {p.name: empty(p.shape, device_mesh=mesh, placements=[Shard(0)]) for _, _, p in model.parameters()}
            dcp.load(kept, checkpoint_id=folder)
        torch.distributed.barrier()
        if rank == 0:
            results.append(time.perf_counter() - begun)
        del kept
    torch.distributed.destroy_process_group()


def two_ranks(folder: Path, ours: bool) -> float:
    """Seconds of the fastest of three loads by two ranks."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with mp.Manager() as manager:
        results = manager.list()
        mp.spawn(dcp_rank, args=(str(folder), port, results, ours), nprocs=RANKS)
        return min(results)


def seconds(repeat: int, before: Callable[[], object], *works: Callable[[], object]) -> list[float]:
    """The median of each one's runs; they take turns, so that a slow minute of the machine is everybody's."""
    taken: list[list[float]] = [[] for _ in works]
    for _ in range(repeat):
        for work, times in zip(works, taken, strict=True):
            before()
            begun = time.perf_counter()
            work()
            times.append(time.perf_counter() - begun)
    return [statistics.median(times) for times in taken]


def compression(tensor: torch.Tensor) -> str:
    """What zstd after a byte shuffle wins on a matrix of normal weights, as numcodecs' Blosc has it."""
    from numcodecs import Blosc

    lines = []
    for dtype in (torch.float32, torch.bfloat16):
        values = tensor.to(dtype)
        raw = (values.view(torch.uint16) if dtype == torch.bfloat16 else values).numpy()
        codec = Blosc("zstd", clevel=1, shuffle=Blosc.SHUFFLE)
        begun = time.perf_counter()
        packed = codec.encode(np.ascontiguousarray(raw).reshape(-1)[: 2**24 // raw.itemsize])
        lines.append(
            f"{dtype}: {len(packed) / 2**24:.2f} of its size at {2**24 / (time.perf_counter() - begun) / 1e9:.2f} GB/s"
        )
    return "; ".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where to write; by default a temporary folder")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    model = model_of(SMOLLM2)
    generator = torch.Generator().manual_seed(0)
    tensors = {p.name: torch.randn(p.shape, generator=generator) * 0.02 for _, _, p in model.parameters()}
    total = sum(t.nbytes for t in tensors.values())
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        file = folder / "model.safetensors"
        save_file(tensors, file)

        ours, theirs = folder / "ours", folder / "dcp"

        def fresh() -> None:
            (folder / "copy").unlink(missing_ok=True)
            shutil.rmtree(ours, ignore_errors=True)
            shutil.rmtree(theirs, ignore_errors=True)

        copy, dcp_save, save = seconds(
            options.repeat,
            fresh,
            lambda: copied(file, folder),
            lambda: dcp.save(tensors, checkpoint_id=theirs),
            lambda: saved(tensors, model, ours),
        )
        dcp.save(tensors, checkpoint_id=theirs)
        safetensors, load = seconds(options.repeat, lambda: None, lambda: by_safetensors(file), lambda: loaded(ours))
        dcp_load, our_load = two_ranks(theirs, ours=False), two_ranks(ours, ours=True)
        assert all(torch.equal(value, tensors[key]) for key, value in loaded(ours).items())
    print(f"{total / 1e6:.0f} MB; copy with fsync {copy:.2f} s; safetensors load and copy {safetensors:.2f} s")
    print(f"zstd: {compression(tensors['model.embed_tokens.weight'])}")
    ratios = {
        "load / safetensors": (load, safetensors),
        "save / DCP save": (save, dcp_save),
        "sharded load / DCP load": (our_load, dcp_load),
    }
    missed = 0
    for what, (mine, other) in ratios.items():
        missed += mine / other > BARS[what]
        print(f"{what}: {mine:.3f} s / {other:.3f} s = {mine / other:.2f} (bar {BARS[what]})")
    print(f"save / copy with fsync: {save / copy:.2f}")
    sys.exit(missed > 0)


if __name__ == "__main__":
    main()
