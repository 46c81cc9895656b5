"""Shard actors that go wrong at the nth time that they reach a phase. Ray's workers get this module by value."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

from ray import cloudpickle

from bot_dist.execute.executor import StepResult
from bot_dist.execute.ray.shards import ShardActor
from bot_dist.plan import Step

PHASES = (
    "get ready",
    "read",
    "transform",
    "write, before it",
    "write, half of it",
    "write, before the record",
    "record, before it",
    "record, after it",
)


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What goes wrong where."""

    phase: str = ""
    """One of ``PHASES``, or the id of a step that kills every actor that takes it up."""
    nth: int = 1
    """Time that an actor reaches it."""
    times: int = 1
    """How often it goes wrong in the whole run."""
    tokens: str = ""
    """A folder in which the actors count that."""
    how: Literal["kill", "hang"] = "kill"
    slow_s: float = 0.0
    """What every read takes besides."""
    jump_s: float = 0.0
    """By how much every look at the time of day is off, forwards and backwards in turn."""


class FaultyActor(ShardActor):
    """A shard actor with a fault."""

    fault: ClassVar[Fault] = Fault()

    def ready(self) -> dict[str, Any]:
        self._reached: Counter[str] = Counter()
        if self.fault.jump_s:
            jump(self.fault.jump_s)
        self._reach("get ready")
        found = super().ready()
        worker = self.worker
        source, writer, storage = worker.source, worker.writer, worker.writer.storage
        module: Any = sys.modules[type(worker).__module__]
        module.transform = self._before("transform", module.transform)
        for name in ("read", "read_into"):
            replace(source, name, self._before("read", self._slowly(getattr(source, name))))
        for thing, name, before, after in (
            (writer, "record", "record, before it", "record, after it"),
            (writer, "write", "write, before it", "write, before the record"),
        ):
            replace(thing, name, self._before(before, self._after(after, getattr(thing, name))))
        replace(storage, "write", self._torn(storage.write, storage.path))
        return found

    def run(self, step: Step) -> StepResult:
        if self.fault.phase == step.id:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(step)

    def _reach(self, phase: str) -> None:
        if phase != self.fault.phase:
            return
        self._reached[phase] += 1
        if self._reached[phase] == self.fault.nth and self._is_its_turn():
            if self.fault.how == "hang":
                time.sleep(10**6)
            os.kill(os.getpid(), signal.SIGKILL)

    def _is_its_turn(self) -> bool:
        for i in range(self.fault.times):
            with contextlib.suppress(FileExistsError):
                os.mkdir(f"{self.fault.tokens}/{i}")
                return True
        return False

    def _slowly(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*args: Any, **options: Any) -> Any:
            time.sleep(self.fault.slow_s)
            return call(*args, **options)

        return slow

    def _before(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def reaching(*args: Any, **options: Any) -> Any:
            self._reach(phase)
            return call(*args, **options)

        return reaching

    def _after(self, phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def reaching(*args: Any, **options: Any) -> Any:
            result = call(*args, **options)
            self._reach(phase)
            return result

        return reaching

    def _torn(self, write: Callable[..., Any], path: Callable[[str], str]) -> Callable[..., Any]:
        def reaching(name: str, parts: Any, **options: Any) -> Any:
            if self.fault.phase == "write, half of it" and "/c." in name:
                data = b"".join(parts)
                folder = Path(path(name)).parent
                folder.mkdir(parents=True, exist_ok=True)
                half = folder / f"half-{os.getpid()}-{time.monotonic_ns()}.partial"
                half.write_bytes(data[: len(data) // 2])
                self._reach("write, half of it")
                half.unlink()
            return write(name, parts, **options)

        return reaching


def actor_class(fault: Fault) -> type[FaultyActor]:
    return type("FaultyActor", (FaultyActor,), {"fault": fault, "__module__": __name__})


def jump(by_s: float) -> None:
    """Let this process's time of day be off by ``by_s`` forwards and backwards in turn."""
    now, turn = time.time, [0]

    def jumping() -> float:
        turn[0] += 1
        return now() + (by_s if turn[0] % 2 else -by_s)

    time.time = jumping


def replace(thing: Any, name: str, value: Any) -> None:
    """Set an attribute, of a frozen object too."""
    object.__setattr__(thing, name, value)


cloudpickle.register_pickle_by_value(sys.modules[__name__])
