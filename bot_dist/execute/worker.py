"""Running steps in one process: this one, or that of an actor."""

from __future__ import annotations

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

from bot_dist.execute.device import Device
from bot_dist.execute.executor import Reader, StepResult
from bot_dist.execute.process import peak_rss_bytes
from bot_dist.execute.reading import all_done, core, energy, read_step, refuse_nonfinite, refuse_overflow
from bot_dist.execute.transform import transform
from bot_dist.kernels import Stage, apply_operators
from bot_dist.operators import Resample, build_operator
from bot_dist.plan import REQUESTS, Step, TransferPlan, step_bytes, step_peak
from bot_dist.store import CheckpointWriter
from bot_dist.tensors import Box

S = TypeVar("S")
T = TypeVar("T")


class Worker:
    """Runs steps of one plan; ``LANES`` threads may call it, so that one step reads or writes while another is
    transformed. What they hold together stays within the plan's memory limit, and one transforms at a time."""

    def __init__(self, plan: TransferPlan, source: Reader, target_url: str, device: str, attempt: str = "") -> None:
        self.plan, self.source = plan, source
        self.device = Device(device)
        self.writer = CheckpointWriter.open(target_url, attempt or plan.digest)
        self.recorded = self.writer.recorded()
        self._requests = ThreadPoolExecutor(REQUESTS, thread_name_prefix="bot_dist-storage")
        self._memory = _Budget(plan.memory_limit)

    def warm_up(self) -> None:
        """Load what a first step would load: compiled kernels and libraries."""
        halves = build_operator(Resample(n_source=64, n_target=32)).restricted((0, 32), ((0, 64),))
        apply_operators(torch.zeros(64, 64, device=self.device.name), [Stage(0, *halves)], torch.float32)

    def run(self, step: Step) -> StepResult:
        """Read, transform and write one tile, and record it; or find it done and intact. Running a step again, here or
        elsewhere, writes the same bytes."""
        module = self.plan.modules[step.module]
        with self._memory.holding(step_peak(module, step.target, step.source_shape())):
            if step.id in self.recorded and (earlier := self._finished(step)) is not None:
                return earlier
            return self._run(step)

    def _run(self, step: Step) -> StepResult:
        plan, module = self.plan, self.plan.modules[step.module]
        started = time.perf_counter()
        source = read_step(plan, step, self.source, self.device, self._requests)
        read, bytes_in = time.perf_counter(), source.nbytes
        with self.device.transforming(source) as tensor:
            begun = time.perf_counter()
            energy_source = energy(tensor[core(step)])
            if not (math.isfinite(energy_source) or plan.allow_nonfinite):
                refuse_nonfinite(plan, step, source)
            applied = transform(module, step, tensor)
            if applied.overflowed and not plan.allow_nonfinite:
                refuse_overflow(plan, step, applied.tensor)
            shifted = applied.tensor - module.shift if module.shift else applied.tensor
            energy_target = energy(shifted) / module.energy_gain
            del source, tensor, shifted
        result = self.device.to_host(applied.tensor)
        transformed, bytes_out = time.perf_counter(), result.nbytes
        writes = {
            (name, key): self._requests.submit(self.writer.write, name, shard, result[place])
            for name, key, shard, place in self._written(step)
        }
        digests: dict[str, dict[str, bytes]] = {}
        for (name, key), digest in zip(writes, all_done(writes.values()), strict=True):
            digests.setdefault(name, {})[key] = digest
        bytes_read, bytes_written = step_bytes(module, step)
        done = StepResult(
            step=step.id,
            module=step.module,
            digests=digests,
            bytes_read=bytes_read,
            bytes_written=bytes_written,
            bytes_transformed=bytes_in + bytes_out,
            energy_source=energy_source,
            energy_target=energy_target,
            overflowed=applied.overflowed,
            read_s=read - started,
            transform_s=transformed - begun,
            write_s=time.perf_counter() - transformed,
            rank=step.owner,
            peak_rss_bytes=peak_rss_bytes(),
        )
        self.writer.record(step.id, {**dataclasses.asdict(done), "digests": _nested(digests, bytes.hex)})
        return done

    def _finished(self, step: Step) -> StepResult | None:
        """The result that an earlier attempt recorded of a step, if that is what storage holds."""
        if (record := self.writer.record_of(step.id)) is None:
            return None
        try:
            earlier = StepResult(**{**record, "digests": _nested(record["digests"], bytes.fromhex)})
        except TypeError:  # of a version with other fields
            return None
        shards = [(name, key, shard) for name, key, shard, _ in self._written(step)]
        on_storage = all_done(
            self._requests.submit(self.writer.digests_on_storage, name, box) for name, _, box in shards
        )
        if any(earlier.digests[n].get(key) != digest for (n, key, _), digest in zip(shards, on_storage, strict=True)):
            return None
        return dataclasses.replace(earlier, resumed=True, rank=step.owner)

    def _written(self, step: Step) -> Iterator[tuple[str, str, Box, tuple[int | slice, ...]]]:
        """The arrays that a step writes: their names, with key and box of each shard of theirs, and where in the step's
        tile it is. These are the same shards of the array of each of its layers, or of the one that stacks them."""
        module = self.plan.modules[step.module]
        box = module.within_array(step.target)
        for i, parameter in enumerate(self.plan.written(module, step.target)):
            stored = self.writer.stored[parameter.name]
            for shard in stored.shards_of(box):
                place: tuple[int | slice, ...] = tuple(
                    slice(start - origin, stop - origin) for (start, stop), (origin, _) in zip(shard, box, strict=True)
                )
                layer = (i,) if module.layered and not module.stacked else ()
                yield parameter.name, stored.shard_key(shard), shard, (*layer, *place)


def _nested(digests: Mapping[str, Mapping[str, S]], convert: Callable[[S], T]) -> dict[str, dict[str, T]]:
    return {name: {key: convert(value) for key, value in by_shard.items()} for name, by_shard in digests.items()}


class _Budget:
    """Bytes that threads share."""

    def __init__(self, limit: int) -> None:
        self.free = limit
        self._changed = threading.Condition()

    @contextmanager
    def holding(self, n: int) -> Iterator[None]:
        """Wait until ``n`` bytes are free, and take them for the time of the block."""
        with self._changed:
            self._changed.wait_for(lambda: self.free >= n)
            self.free -= n
        try:
            yield
        finally:
            with self._changed:
                self.free += n
                self._changed.notify_all()
