"""Writing statistics into their store: what the shares have summed up, step by step."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch

from bot_dist.axes import Parameter
from bot_dist.calibrate.share import CHANGE, LOSS, SIMILARITY, Work
from bot_dist.checkpoint import CheckpointWriter, StoredParameter, store_layout


class StatisticsWriter:
    """The store while it is written, layer by layer. Raises as ``CheckpointWriter.create`` does."""

    def __init__(self, url: str, key: str, work: Work, tokens: int) -> None:
        self._work, self._tokens = work, tokens
        self._layouts = {s.parameter.name: s for s in _layouts(work)}
        self._writer = CheckpointWriter.create(url, self._layouts.values(), config={}, attempt=key)
        self._digests: dict[str, dict[str, bytes]] = {name: {} for name in self._layouts}
        self._blocks: dict[str, list[float]] = {SIMILARITY: [], CHANGE: []}
        self._loss: float | None = None

    def add(self, step: int) -> None:
        """Write what all shares have found in a step, and remove their files."""
        numbers: dict[str, float] = {}
        for name, values in self._work.sums(step):
            if name in self._layouts and name not in self._blocks:
                self._write(name, step - 1 if self._layouts[name].parameter.sizes[0] > 1 else 0, values)
            else:
                numbers[name] = values.item()
        for name in self._blocks.keys() & numbers.keys():
            self._blocks[name].append(numbers[name] / self._tokens)
        if step == self._work.steps - 1:
            predicted = numbers[f"{LOSS}/tokens"]
            self._loss = numbers[LOSS] / predicted if predicted else None
            for name, means in self._blocks.items():
                self._write_whole(name, torch.tensor(means, dtype=torch.float64))
        self._work.discard(step)

    def commit(self, provenance: dict[str, Any]) -> None:
        calibration = {
            "wanted": [site.name for site in self._work.sites],
            "tokens": self._tokens,
            "loss": self._loss,
            **provenance,
        }
        self._writer.commit(self._digests, {"calibration": calibration})

    def _write(self, name: str, layer: int, values: torch.Tensor) -> None:
        values /= self._tokens
        for shard in self._layouts[name].shards():
            if shard[0] == (layer, layer + 1):
                part = values[tuple(slice(*r) for r in shard[1:])][None].contiguous()
                self._digests[name][self._layouts[name].shard_key(shard)] = self._writer.write(name, shard, part)

    def _write_whole(self, name: str, values: torch.Tensor) -> None:
        (shard,) = self._layouts[name].shards()
        self._digests[name][self._layouts[name].shard_key(shard)] = self._writer.write(name, shard, values)


def _layouts(work: Work) -> Iterator[StoredParameter]:
    for site in work.sites:
        yield _by_layer(f"{site.name}/moment", ("layer", "row", "column"), (site.layers, site.size, site.size))
        yield _by_layer(f"{site.name}/mean", ("layer", "row"), (site.layers, site.size))
    for name in (SIMILARITY, CHANGE):
        yield store_layout(_parameter(name, ("layer",), (work.model.sizes["layer"],)), dtype="float64")


def _by_layer(name: str, axes: tuple[str, ...], sizes: tuple[int, ...]) -> StoredParameter:
    """Shards of one layer each, or less."""
    one = store_layout(_parameter(name, axes, (1, *sizes[1:])), dtype="float64")
    return dataclasses.replace(one, parameter=_parameter(name, axes, sizes))


def _parameter(name: str, axes: tuple[str, ...], sizes: tuple[int, ...]) -> Parameter:
    return Parameter(name=name, axes=axes, sizes=sizes, dims=(1,) * len(axes))
