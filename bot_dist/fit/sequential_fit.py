"""Fits that follow the shrunk model block by block: operators made from the sums of each step of
``sequential_share``."""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from bot_dist.data.calibration_samples import Samples
from bot_dist.events import OnEvent
from bot_dist.events.calibrate import BlockDone, PassStarted
from bot_dist.execute import Executor
from bot_dist.fit.axis_fits import Array, AxisFit, ByReader, Coordinates, Given, Lifted, Rotation
from bot_dist.fit.sequential_share import CROSS, ENERGY, ENTRY, GAIN, KEPT, MATRIX, MOMENT, SequentialWork, Step, Writer
from bot_dist.fit.sites import sites
from bot_dist.fit.statistics_share import SAMPLES, write_whole
from bot_dist.operators import lifting
from bot_dist.plan.fitted_names import FittedName
from bot_dist.storage.disk import writing

PURPOSE = "block by block"
"""Name that tells the events of a sequential fit from those of other passes."""
WRITING = 10.0
"""Factor on the ridge for what is written over that for what is read: it is what is left over of much that was written
before."""


class Sequential(AbstractContextManager[None]):
    """The operators along all axes of a shrinking, which are fitted together by ``run``.

    ``fits`` are by axis, and ``layers`` those of the source that are kept. What lies in ``folder`` meanwhile is
    removed at the end of the context. Raises InputError where activations are not finite.
    """

    def __init__(
        self,
        given: Given,
        fits: Mapping[str, AxisFit],
        layers: tuple[int, ...],
        *,
        samples: Samples,
        folder: str,
        executor: Executor,
        on_event: OnEvent,
    ) -> None:
        self._given, self._layers, self._samples = given, layers, samples
        self._folder, self._executor, self._on_event = folder, executor, on_event
        stream = fits.get("embed")
        assert stream is None or isinstance(stream, (Rotation, Coordinates))
        self._stream, self._inner_fits = stream, {a: f for a, f in fits.items() if isinstance(f, ByReader)}
        self._by_reader = {
            reader: fit
            for inner in self._inner_fits.values()
            for reader, fit in inner.fits.items()
            if isinstance(fit, Lifted)
        }
        self._missed: dict[str, list[float]] = {}
        """Shares of energy, by norm and writer, one per block."""
        self._done: SequentialWork | None = None
        self._fit = lru_cache(maxsize=8)(self._loaded_fit)
        self._scratch = ""

    def __exit__(self, *_: object) -> None:
        if self._scratch:
            shutil.rmtree(self._scratch, ignore_errors=True)

    @cached_property
    def _entry(self) -> Array:
        """The matrix ``s · Q``, ``(n_target, n_source)``, by which the stream is entered."""
        width = self._given.model.sizes["embed"]
        isometry = self._stream.isometry if self._stream else np.eye(width)
        return math.sqrt(len(isometry) / width) * isometry

    def run(self) -> None:
        """Let the executor do all of it."""
        started = time.perf_counter()
        samples, n = self._samples, len(self._layers)
        with writing(self._folder):
            Path(self._folder).mkdir(parents=True, exist_ok=True)
            self._scratch = tempfile.mkdtemp(prefix="sequential-", suffix=".scratch", dir=self._folder)
        work = self._work(self._executor.shares(len(samples)))
        write_whole(Path(self._scratch) / SAMPLES, {"inputs": samples.inputs.contiguous()})
        write_whole(Path(self._scratch) / ENTRY, {MATRIX: _stored(self._entry)})
        self._on_event(
            PassStarted(purpose=PURPOSE, tokens=samples.n_positions, windows=len(samples), blocks=n, shares=work.shares)
        )

        def on_step(index: int) -> None:
            step = work.sequence[index]
            sums = {name: total.div_(samples.n_positions).numpy() for name, total in work.sums(index)}
            if sums:
                fitted = {"read": self._read, "inner": self._inner, "write": self._write}[step.kind](step, sums)
                write_whole(work.fit(step), {name: _stored(values) for name, values in fitted.items()})
            work.discard(index)
            last = index + 1 == work.steps or work.sequence[index + 1].layer != step.layer
            if last and step.layer >= 0:
                seconds = time.perf_counter() - started
                block = self._layers.index(step.layer)
                self._on_event(BlockDone(purpose=PURPOSE, block=block, of=n, seconds=seconds))

        self._executor.run_shares(work, on_step)
        self._done = work

    def _loaded_fit(self, step: Step) -> dict[str, torch.Tensor]:
        assert self._done is not None, "nothing was fitted"
        return load_file(self._done.fit(step))

    def _work(self, shares: int) -> SequentialWork:
        model = self._given.model
        family = model.family
        writers = [w for w in model.weights if w.layered and w.into_residual and w.kind == "matrix"]
        norms = dict.fromkeys(name for w in model.weights if (name := family.norm_of(w)))
        ordered = {site.name: site for site in sites(model, [*norms, *map(_bare, writers)])}
        return SequentialWork(
            source=self._given.source,
            model=model,
            norms=tuple(ordered[name] for name in norms),
            writers=tuple(
                Writer(site=ordered[_bare(w)], norm=family.norm_before(w), splits=_bare(w) in self._by_reader)
                for w in writers
            ),
            layers=self._layers,
            n_target=len(self._entry),
            positions=self._samples.positions,
            reads=self._stream is not None,
            scratch=self._scratch,
            shares=shares,
        )

    def matrix(self, name: FittedName, layer: int) -> Array:
        """The matrix of an operator of the fitted model; ``layer`` is one of the source."""
        place = name.owner
        if name.axis != "embed":
            fitted = self._fit(Step(kind="inner", layer=layer, name=place))
            if name.part == "read":
                return _loaded(fitted[MATRIX])
            return self._by_reader[place].selected(name, fitted[KEPT].numpy())
        if not place:
            assert self._stream is not None
            return self._stream.matrix(name, layer)
        layered = any(w.layered for w in self._given.model.weights if self._given.model.family.norm_of(w) == place)
        if name.part == "write":
            return _loaded(self._fit(Step(kind="write", layer=layer, name=place))[MATRIX])
        return _loaded(self._fit(Step(kind="read", layer=layer if layered else -1, name=place))[MATRIX])

    def facts(self) -> dict[str, dict[str, Any]]:
        """Facts of the fits by axis; the errors under ``embed`` are by norm and writer."""
        by_axis = {axis: fit.facts() for axis, fit in self._inner_fits.items()}
        by_axis["embed"] = {**(self._stream.facts() if self._stream else {}), "errors": self._missed}
        return by_axis

    def _read(self, step: Step, sums: dict[str, Array]) -> dict[str, Array]:
        """The operator for what a norm's readers see: the source's norm, as the shrunk one's output tells of it."""
        ratio = len(self._entry) / self._entry.shape[1]
        prior = self._entry.T / ratio  # Qᵀ / s
        if self._given.model.family.norm == "layer":
            prior = prior - prior.mean(1, keepdims=True)  # LayerNorm puts nothing out there, and biases are carried
        matrix = self._regression(step.name, sums, self._given.ridge, prior)
        norm, layer = step.name, max(step.layer, 0)
        gain = np.array(self._given.gain(norm, layer))
        return {MATRIX: self._given.with_norm(matrix.T, norm, layer), GAIN: gain}

    def _inner(self, step: Step, sums: dict[str, Array]) -> dict[str, np.ndarray]:
        kept, read = self._by_reader[step.name].split(step.layer, sums[MOMENT])
        return {KEPT: kept, MATRIX: read}

    def _write(self, step: Step, sums: dict[str, Array]) -> dict[str, Array]:
        ridge = WRITING * self._given.ridge
        return {MATRIX: self._regression(f"{step.name}, written", sums, ridge, self._entry)}

    def _regression(self, name: str, sums: dict[str, Array], ridge: float, prior: Array) -> Array:
        cross, moment = sums[CROSS], sums[MOMENT]
        matrix = lifting.regression(cross, moment, ridge, prior)
        left = sums[ENERGY].item() - 2 * np.sum(matrix * cross) + np.sum((matrix @ moment) * matrix)
        self._missed.setdefault(name, []).append(float(left / sums[ENERGY].item()))
        return matrix


def _bare(weight: Any) -> str:
    return str(weight.name.removesuffix(".weight"))


def _stored(values: np.ndarray) -> torch.Tensor:
    """Values as they will be applied: floating-point ones in float32."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    return tensor.float() if tensor.is_floating_point() else tensor


def _loaded(values: torch.Tensor) -> Array:
    array: Array = values.double().numpy()
    return array
