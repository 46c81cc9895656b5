"""A whole transfer beside copying the same bytes, one actor beside two, and mergekit; in one run, as ratios.

python -m tests.benchmarks.transfer [--folder DIR] [--memory DIR] [--repeat N] [--mergekit BIN]

The source has SmolLM2-135M's shapes, in float32 (538 MB of safetensors); it grows to twice its width (1.9 GB of
zarr). ``--folder`` is on the disk to be measured, ``--memory`` on a file system in memory. ``--mergekit`` is the
``bin`` folder of an environment that has mergekit (``python -m venv X && X/bin/pip install mergekit``): its passthrough
merge of the same layers is timed as a whole process, and so is bot_dist doing the same. Exits 1 when a bar is missed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
import torch
from safetensors.torch import save_file

import bot_dist
from bot_dist.execute.ray import shards
from bot_dist.execute.ray.cluster import connected
from bot_dist.execute.ray.shards import ShardActor
from bot_dist.model import model_of
from bot_dist.recipe import ClusterConfig
from tests.benchmarks.checkpoint import SMOLLM2

TWICE = {"embed": 1152, "mlp": 3072, "heads": 18, "kv_heads": 6}
BLOCK = 2**24


def random_model(folder: Path) -> Path:
    """Made in a process of its own: the largest resident set of a child is never less than its parent's was."""
    child = multiprocessing.get_context("spawn").Process(target=_make_random_model, args=(folder,))
    child.start()
    child.join()
    assert child.exitcode == 0
    return folder


def _make_random_model(folder: Path) -> None:
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    tensors = {p.name: torch.randn(p.shape, generator=generator) * 0.02 for _, _, p in model_of(SMOLLM2).parameters()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(SMOLLM2))


def transferred(source: Path, target: Path, **options: Any) -> dict[str, Any]:
    shutil.rmtree(target, ignore_errors=True)
    recipe = {"source": str(source), "output": str(target.parent), "target_url": str(target), "target": TWICE}
    return bot_dist.transfer(bot_dist.make_recipe(recipe, options))


def copied(source: Path, folder: Path, written: int) -> None:
    """Read a file, and write as many bytes as a transfer does, durably."""
    buffer, block = bytearray(BLOCK), os.urandom(BLOCK)
    with (source / "model.safetensors").open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    with (folder / "copy").open("wb", buffering=0) as file:
        for start in range(0, written, BLOCK):
            file.write(block[: written - start])
        os.fsync(file.fileno())
    (folder / "copy").unlink()


def seconds(work: Callable[[], object]) -> float:
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def beside_a_copy(source: Path, folder: Path, repeat: int) -> float:
    """Median over pairs of transfer and copy, one after the other."""
    written = transferred(source, folder / "twice", **{"cluster.executor": "local"}).bytes_written
    pairs = [
        (
            seconds(lambda: transferred(source, folder / "twice", **{"cluster.executor": "local"})),
            seconds(lambda: copied(source, folder, written)),
        )
        for _ in range(repeat)
    ]
    ratio = statistics.median(ours / copy for ours, copy in pairs)
    ours, copy = (statistics.median(column) for column in zip(*pairs, strict=True))
    print(f"× 2 width, {written / 1e9:.2f} GB: {ours:.2f} s; copying {copy:.2f} s; ratio {ratio:.2f} (bar 1.5)")
    return ratio


class OneCore(ShardActor):
    """An actor that has one core of the machine: what one per core of a larger one has."""

    def ready(self) -> dict[str, Any]:
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[self.rank % len(cores)]})
        return super().ready()


def two_actors_beside_one(source: Path, folder: Path, wavelet: str, actor: type[ShardActor], repeat: int) -> float:
    """By the time from the last actor's being ready to the last step."""
    shards.ShardActor = actor  # type: ignore[misc]
    options = {"transfer.wavelet": wavelet, "transfer.memory_limit": "256MiB"}
    taken: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(repeat):
        for actors, runs in taken.items():
            events: list[tuple[float, str]] = []
            recipe = {"source": str(source), "output": str(folder), "target": TWICE}
            shutil.rmtree(folder / "transferred.zarr", ignore_errors=True)
            bot_dist.transfer(
                bot_dist.make_recipe(recipe, {**options, "cluster.data": actors}),
                lambda e, events=events: events.append((time.perf_counter(), e.kind)),
            )
            ready = [at for at, event in events if event == "actor"]
            steps = [at for at, event in events if event == "step"]
            runs.append(steps[-1] - ready[-1])
    one, two = (statistics.median(runs) for runs in taken.values())
    print(f"{wavelet}, {actor.__name__}: one actor {one:.2f} s, two {two:.2f} s: × {one / two:.2f}")
    return one / two


def whole_process(command: list[str]) -> tuple[float, float]:
    """Seconds and the largest resident set, in MB."""
    begun = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    assert status == 0, command
    return time.perf_counter() - begun, used.ru_maxrss * 1024 / 1e6


def beside_mergekit(source: Path, folder: Path, binaries: Path) -> float:
    """Both copy all layers to a new model on disk."""
    merge = {"slices": [{"sources": [{"model": str(source), "layer_range": [0, 30]}]}]}
    (folder / "merge.yaml").write_text(json.dumps({**merge, "merge_method": "passthrough", "dtype": "float32"}))
    bot = [str(Path(sys.executable).parent / "bot_dist"), "scale", str(source), str(folder / "same")]
    ours = whole_process([*bot, "--set", "cluster.executor=local", "--set", "transfer.memory_limit=128MiB"])
    theirs = whole_process([str(binaries / "mergekit-yaml"), str(folder / "merge.yaml"), str(folder / "merged")])
    print(f"copy of all layers, whole process: {ours[0]:.1f} s, {ours[1]:.0f} MB resident", end="; ")
    print(f"mergekit passthrough {theirs[0]:.1f} s, {theirs[1]:.0f} MB; ratio {ours[0] / theirs[0]:.2f} (bar 1)")
    return ours[0] / theirs[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="on a disk; by default a temporary folder")
    parser.add_argument("--memory", default="/dev/shm", help="on a file system in memory")
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--mergekit", type=Path, help="bin folder of an environment with mergekit")
    options = parser.parse_args()
    missed = []
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        source = random_model(folder / "source")
        if options.mergekit is not None:
            missed.append(beside_mergekit(source, folder, options.mergekit) > 1)
        missed.append(beside_a_copy(source, folder, options.repeat) > 1.5)
    with tempfile.TemporaryDirectory(dir=options.memory) as name:
        folder = Path(name)
        source = random_model(folder / "source")
        with connected(ClusterConfig(), 2):
            ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
            missed.append(two_actors_beside_one(source, folder, "bior6.8", OneCore, options.repeat) < 1.5)
            two_actors_beside_one(source, folder, "haar", OneCore, options.repeat)
            two_actors_beside_one(source, folder, "bior6.8", ShardActor, options.repeat)
    sys.exit(any(missed))


if __name__ == "__main__":
    main()
