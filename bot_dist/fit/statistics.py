"""Statistics of a source model: computed once, kept in a store of their own, read layer by layer.

The store has the format of a checkpoint. Its arrays are float64: ``NAME/moment`` ``(layer, row, column)`` and
``NAME/mean`` ``(layer, row)`` for each weight that was wanted, ``block/similarity`` and ``block/change`` ``(layer,)``.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from bot_dist.data.calibration_samples import Samples
from bot_dist.errors import InputError, nearest
from bot_dist.events import OnEvent, ignore
from bot_dist.events.calibrate import BlockDone, PassStarted, StatisticsCommitted, TakenUp
from bot_dist.execute import ALONE, Executor
from bot_dist.fit.sites import Site, sites
from bot_dist.fit.statistics_share import CHANGE, SAMPLES, SIMILARITY, Work, write_whole
from bot_dist.fit.statistics_store import StatisticsWriter
from bot_dist.formats.source import Source
from bot_dist.formats.sources.config_only import Shapes
from bot_dist.model import Model
from bot_dist.storage.disk import writing
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointReader
from bot_dist.store.manifest import MANIFEST, digest
from bot_dist.urls import absolute, label

VERSION = 1
"""Version of what is computed: statistics of another version are computed anew."""

Array = npt.NDArray[np.float64]


class Statistics:
    """Statistics of a model on a text or images, in a committed store. Raises CheckpointError when there is none."""

    def __init__(self, url: str) -> None:
        self._reader = CheckpointReader(url)
        self._recorded: dict[str, Any] = self._reader.manifest.provenance["calibration"]
        self.url = url

    @property
    def names(self) -> tuple[str, ...]:
        """The weights that there are moments of, without ``.weight``."""
        return tuple(self._recorded["wanted"])

    @property
    def tokens(self) -> int:
        """Number of positions that the statistics are means over."""
        return int(self._recorded["tokens"])

    @property
    def loss(self) -> float | None:
        """Mean cross entropy of what is predicted, in nats; None where nothing is."""
        loss = self._recorded["loss"]
        return None if loss is None else float(loss)

    @property
    def digest(self) -> str:
        """Digest that identifies the contents."""
        return self._reader.manifest.digest

    def moment(self, name: str, layer: int = 0) -> Array:
        """Mean of ``x xᵀ`` over tokens, uncentred, ``(n, n)``.

        ``x`` is the input of a map; of a norm its input, normalised but without weight and bias; where the residual
        stream itself is normalised (BERT), the norm's output. Raises InputError when ``name`` was not wanted.
        """
        return self._layer(f"{name}/moment", layer)

    def mean(self, name: str, layer: int = 0) -> Array:
        """Mean of the same ``x`` over tokens, ``(n,)``."""
        return self._layer(f"{name}/mean", layer)

    @property
    def similarity(self) -> Array:
        """Mean cosine between the hidden states before and after each block, ``(layers,)``."""
        return self._whole(SIMILARITY)

    @property
    def change(self) -> Array:
        """Mean of ``‖after − before‖² / ‖before‖²`` of each block, ``(layers,)``."""
        return self._whole(CHANGE)

    def _layer(self, array: str, layer: int) -> Array:
        name = array.rpartition("/")[0]
        if name not in self.names:
            raise InputError(f"{label(self.url)} has no statistics of {name!r}; {nearest(name, self.names)}")
        parameter = self._reader.parameter(array)
        assert 0 <= layer < parameter.sizes[0], (array, layer)
        box = ((layer, layer + 1), *((0, n) for n in parameter.sizes[1:]))
        return cast(Array, self._reader.read(parameter, box).numpy()[0])

    def _whole(self, array: str) -> Array:
        parameter = self._reader.parameter(array)
        return cast(Array, self._reader.read(parameter, ((0, parameter.sizes[0]),)).numpy())


def statistics(
    source: Source,
    model: Model,
    samples: Samples,
    wanted: Iterable[str],
    folder: str | Path,
    *,
    executor: Executor = ALONE,
    purpose: str = "",
    on_event: OnEvent = ignore,
) -> Statistics:
    """Statistics of ``model``, whose weights are in ``source``, on ``samples``.

    ``wanted`` are names of weights without ``.weight``: norms of the residual stream and linear maps. Statistics of the
    same source, samples and names that are in ``folder`` (a path that all nodes see) are returned as they are; others
    are computed by the ``executor``, on CPUs in float32; each of its workers holds a block, its moments and the
    activations of a sample.

    ``on_event`` gets a TakenUp; or a PassStarted, a BlockDone after each block, and a StatisticsCommitted. All of them
    say the ``purpose``.

    Raises InputError where there are no samples, the names are unknown, or the weights not finite; SourceError when the
    source is not the model's.
    """
    if isinstance(source, Shapes):
        raise InputError(f"{label(source.url)} is a configuration without weights; give the model itself")
    if not len(samples):
        raise InputError("there is nothing to calibrate on: no window and no image; give at least one")
    chosen = sites(model, wanted)
    key = _key(source, model, samples, chosen)
    folder = absolute(str(folder))
    url = f"{folder}/{key}"

    if Storage(url).exists(MANIFEST):
        kept = Statistics(url)
        on_event(TakenUp(purpose=purpose, url=label(url), tokens=kept.tokens, loss=kept.loss))
        return kept
    source.check(model)
    started = time.perf_counter()
    with writing(folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix=f"{key[:8]}-", suffix=".scratch", dir=folder)
    try:
        held = {"inputs": samples.inputs.contiguous(), "labels": samples.labels.contiguous()}
        write_whole(Path(scratch) / SAMPLES, held)
        shares = executor.shares(len(samples))
        work = Work(
            source=source,
            model=model,
            sites=tuple(chosen),
            positions=samples.positions,
            scratch=scratch,
            shares=shares,
        )
        stored = StatisticsWriter(url, key, work, samples.n_positions)
        blocks = work.steps - 2
        on_event(
            PassStarted(purpose=purpose, tokens=samples.n_positions, windows=len(samples), blocks=blocks, shares=shares)
        )

        def on_step(step: int) -> None:
            stored.add(step)
            if 1 <= step <= blocks:
                seconds = time.perf_counter() - started
                on_event(BlockDone(purpose=purpose, block=step - 1, of=blocks, seconds=seconds))

        executor.run_shares(work, on_step)
        stored.commit({"version": VERSION, "context": samples.positions, "source": source.provenance()})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    result, seconds = Statistics(url), time.perf_counter() - started
    on_event(
        StatisticsCommitted(purpose=purpose, url=label(url), tokens=result.tokens, loss=result.loss, seconds=seconds)
    )
    return result


def _key(source: Source, model: Model, samples: Samples, chosen: list[Site]) -> str:
    return digest(
        {
            "version": VERSION,
            "source": source.provenance(),
            "config": model.config,
            "tokens": samples.digest,
            "wanted": [site.name for site in chosen],
        }
    )
