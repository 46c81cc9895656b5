"""Metrics of a transfer in Ray's, beside Ray's own."""

from __future__ import annotations

import threading
import time

from ray.util.metrics import Counter, Gauge

from bot_dist.execute.executor import StepResult

TAGS = ("transfer", "rank")


class ActorMetrics:
    """Counted in the process of an actor: ``bot_dist_bytes_read``, ``_written``, ``_transformed`` (in and out) and
    ``bot_dist_gb_per_s`` since the step before, with the tags ``transfer`` (the plan's digest) and ``rank``."""

    def __init__(self, transfer: str, rank: int) -> None:
        self._tags = {"transfer": transfer, "rank": str(rank)}
        self._read = Counter("bot_dist_bytes_read", "Bytes read from the source's storage.", TAGS)
        self._written = Counter("bot_dist_bytes_written", "Bytes written to the target's storage.", TAGS)
        self._transformed = Counter("bot_dist_bytes_transformed", "Bytes into and out of operators.", TAGS)
        self._speed = Gauge("bot_dist_gb_per_s", "Bytes read and written, in GB/s, of the last step.", TAGS)
        self._last_s = time.perf_counter()
        self._lock = threading.Lock()

    def add(self, result: StepResult) -> None:
        with self._lock:
            now_s = time.perf_counter()
            since_s, self._last_s = now_s - self._last_s, now_s
        if not result.resumed:
            for counter, n in (
                (self._read, result.bytes_read),
                (self._written, result.bytes_written),
                (self._transformed, result.bytes_transformed),
            ):
                if n:
                    counter.inc(n, self._tags)
            self._speed.set((result.bytes_read + result.bytes_written) / since_s / 1e9, self._tags)


class DriverMetrics:
    """Counted in the process of the driver: ``bot_dist_steps_left``."""

    def __init__(self, transfer: str) -> None:
        self._left = Gauge("bot_dist_steps_left", "Steps without a result.", ("transfer",))
        self._tags = {"transfer": transfer}

    def left(self, steps: int) -> None:
        self._left.set(steps, self._tags)
