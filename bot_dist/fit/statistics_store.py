"""Writing statistics into their store: what the shares have summed up, step by step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bot_dist.fit.statistics_share import CHANGE, LOSS, SIMILARITY, Work
from bot_dist.store import CheckpointWriter, StoredParameter, array_layout


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
                layer = step - 1 if self._layouts[name].parameter.sizes[0] > 1 else 0
                self._digests[name] |= self._writer.write_array(name, values.div_(self._tokens), layer)
            else:
                numbers[name] = values.item()
        for name in self._blocks.keys() & numbers.keys():
            self._blocks[name].append(numbers[name] / self._tokens)
        if step == self._work.steps - 1:
            predicted = numbers[f"{LOSS}/tokens"]
            self._loss = numbers[LOSS] / predicted if predicted else None
            for name, means in self._blocks.items():
                self._digests[name] = self._writer.write_array(name, torch.tensor(means, dtype=torch.float64))
        self._work.discard(step)

    def commit(self, provenance: dict[str, Any]) -> None:
        calibration = {
            "wanted": [site.name for site in self._work.sites],
            "tokens": self._tokens,
            "loss": self._loss,
            **provenance,
        }
        self._writer.commit(self._digests, {"calibration": calibration})


def _layouts(work: Work) -> Iterator[StoredParameter]:
    for site in work.sites:
        moment, mean = (site.layers, site.size, site.size), (site.layers, site.size)
        yield array_layout(f"{site.name}/moment", moment, ("layer", "row", "column"), "float64")
        yield array_layout(f"{site.name}/mean", mean, ("layer", "row"), "float64")
    for name in (SIMILARITY, CHANGE):
        yield array_layout(name, (work.model.sizes["layer"],), ("layer",), "float64")
