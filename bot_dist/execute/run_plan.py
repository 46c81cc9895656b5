"""Running a plan, and adding up what its steps report."""

from __future__ import annotations

import math
import time
from dataclasses import fields
from typing import Any

from bot_dist.events import OnEvent
from bot_dist.events.transfer import StepDone, StepMeasures, TransferStarted
from bot_dist.execute.executor import Executor, Reader, StepResult
from bot_dist.plan import DetailPlan, TransferPlan, step_bytes


class PlanRun:
    """One execution of a plan. ``on_event`` gets a TransferStarted, then one StepDone after the other."""

    def __init__(self, plan: TransferPlan, on_event: OnEvent) -> None:
        self.plan, self._on_event = plan, on_event
        self.digests: dict[str, dict[str, bytes]] = {}
        """Digests of every chunk written, by parameter and shard: what a commit needs."""
        self._steps = self._resumed = self._bytes_read = self._bytes_written = 0
        self._overflowed: dict[str, int] = {}
        self._peak_rss = [0] * plan.mesh.size
        self._energy = [[0.0, 0.0] for _ in plan.modules]
        self._seconds = 0.0

    def run(self, executor: Executor, source: Reader, target_url: str, attempt: str = "") -> None:
        """Have every step executed."""
        steps = list(self.plan.steps())
        total = sum(sum(step_bytes(self.plan.modules[step.module], step)) for step in steps)
        self._on_event(TransferStarted(steps=len(steps), bytes=total))
        started = time.perf_counter()
        executor.run_plan(self.plan, source, target_url, self._add, self._on_event, attempt)
        self._seconds = time.perf_counter() - started

    def report(self) -> dict[str, Any]:
        """The measurements of the run, as plain data."""
        return {
            "steps_seconds": self._seconds,
            "bytes_read": self._bytes_read,
            "bytes_written": self._bytes_written,
            "gb_per_s": (self._bytes_read + self._bytes_written) / self._seconds / 1e9,
            "steps": self._steps,
            "steps_resumed": self._resumed,
            "actor_peak_rss_bytes": tuple(self._peak_rss),
            "energy_kept": self._energy_kept(),
            "detail_energy": self._detail_energy(),
            "overflowed": self._overflowed,
        }

    def _add(self, result: StepResult) -> None:
        for name, chunks in result.digests.items():
            self.digests.setdefault(name, {}).update(chunks)
        self._steps += 1
        self._resumed += result.resumed
        if not result.resumed:
            self._bytes_read += result.bytes_read
            self._bytes_written += result.bytes_written
        self._peak_rss[result.rank] = max(self._peak_rss[result.rank], result.peak_rss_bytes)
        if result.overflowed:
            name = self.plan.modules[result.module].name
            self._overflowed[name] = self._overflowed.get(name, 0) + result.overflowed
        self._energy[result.module][0] += result.energy_source
        self._energy[result.module][1] += result.energy_target
        self._on_event(StepDone(**{field.name: getattr(result, field.name) for field in fields(StepMeasures)}))

    def _energy_kept(self) -> dict[str, float]:
        """Share of each module's squared norm that its approximation band keeps; modules that only grow keep all.

        Exact for orthonormal operators. For others it is what they would keep of white noise, and never more than all.
        Of modules with fitted operators, whose gain is not known here, and of constants there is none.
        """
        return {
            module.name: min(1.0, target / source)
            for module, (source, target) in zip(self.plan.modules, self._energy, strict=True)
            if _finite(source, target)
            and not module.derived
            and any(a.n_target < a.n_source for a in module.axes)
            and not any(a.alone or a.constant for a in module.axes)
        }

    def _detail_energy(self) -> dict[str, dict[str, float]]:
        """Share of each module's squared norm in each detail band that was kept."""
        shares: dict[str, dict[str, float]] = {}
        for module, (source, target) in zip(self.plan.modules, self._energy, strict=True):
            if isinstance(module, DetailPlan) and _finite(source, target):
                shares.setdefault(module.weight.name, {})[module.band] = target / source
        return shares


def _finite(source: float, target: float) -> bool:
    return source > 0 and math.isfinite(source) and math.isfinite(target)
