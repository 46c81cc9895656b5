"""Progress of a verb, from its events: bars in a terminal, else a line every ten seconds and one at each end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from bot_dist.cli.terminal import console, warn
from bot_dist.units import count, duration, size

LINE_EVERY_S = 10.0
"""Where there is no terminal."""


@contextmanager
def progress() -> Iterator[Callable[[dict[str, Any]], None]]:
    """What a verb gives its events to, while it runs."""
    if not console.is_terminal:
        yield _Told(_Lines())
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        _Amount(),
        TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bars:
        yield _Told(bars)


def plain(n: float) -> str:
    """A small number of things."""
    return f"{n:,.0f}"


def elements(n: float) -> str:
    """A large number of things."""
    return count(n)


class _Amount(ProgressColumn):
    """How much is done of how much, in the unit of the task."""

    def render(self, task: Task) -> Text:
        show = task.fields["show"]
        return Text(f"{show(task.completed)}/{show(task.total or 0)}")


@dataclass
class _Line:
    """A task without a bar."""

    description: str
    total: float
    show: Callable[[float], str]
    note: str = ""
    completed: float = 0.0
    started: float = field(default_factory=lambda: time.monotonic())
    told: float = field(default_factory=lambda: time.monotonic())
    """When a line was last shown."""


class _Lines:
    """Shows tasks as lines, for logs."""

    def __init__(self) -> None:
        self._tasks: list[_Line] = []

    def add_task(self, description: str, *, total: float, show: Callable[[float], str], note: str) -> TaskID:
        self._tasks.append(_Line(description, total, show, note))
        return TaskID(len(self._tasks) - 1)

    def update(
        self,
        task_id: TaskID,
        *,
        completed: float | None = None,
        advance: float | None = None,
        note: str | None = None,
    ) -> None:
        task, now = self._tasks[task_id], time.monotonic()
        before = task.completed
        task.completed = before + (advance or 0.0) if completed is None else completed
        task.note = task.note if note is None else note
        ends = before < task.total <= task.completed
        if ends or now - task.told >= LINE_EVERY_S:
            task.told = now
            amount = f"{task.show(task.completed)} of {task.show(task.total)}"
            parts = (amount, task.note, duration(now - task.started))
            console.print(f"{task.description}: {', '.join(filter(None, parts))}")


class _Told:
    """One task per stage or training run, fed by events, of several members of a family at once."""

    def __init__(self, shown: Progress | _Lines) -> None:
        self.shown = shown
        self.tasks: dict[str, TaskID] = {}
        self.bytes: dict[str, int] = {}
        self.started: dict[str, float] = {}
        self.member = ""
        self._lock = threading.Lock()

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, f"on_{event['stage']}_{event['event']}", None)
        with self._lock:
            self.member = event.get("member", "")
            if console.verbose:
                console.print(json.dumps(event), style="dim")
            if handler is not None:
                handler(event)

    def say(self, text: str) -> None:
        console.print(self.named(text))

    def named(self, name: str) -> str:
        return f"{self.member}: {name}" if self.member else name

    def task(self, name: str, total: float, show: Callable[[float], str] = plain) -> TaskID:
        if (name := self.named(name)) not in self.tasks:
            self.tasks[name] = self.shown.add_task(name, total=total, show=show, note="")
        return self.tasks[name]

    def start_bytes(self, name: str, total: float, show: Callable[[float], str] = size) -> None:
        self.bytes[self.named(name)], self.started[self.named(name)] = 0, time.perf_counter()
        self.task(name, total, show)

    def add_bytes(self, name: str, n: int, advance: float) -> None:
        name = self.named(name)
        self.bytes[name] += n
        rate = self.bytes[name] / max(1e-9, time.perf_counter() - self.started[name]) / 1e9
        self.shown.update(self.tasks[name], advance=advance, note=f"{rate:.2f} GB/s")

    def calibration(self, event: dict[str, Any]) -> str:
        return f"calibrate, {event.get('purpose', 'statistics')}"

    def on_calibrate_start(self, event: dict[str, Any]) -> None:
        task = self.task(self.calibration(event), event["blocks"])
        self.shown.update(task, note=f"{event['tokens']:,} tokens")

    def on_calibrate_block(self, event: dict[str, Any]) -> None:
        self.shown.update(self.tasks[self.named(self.calibration(event))], completed=event["block"] + 1)

    def on_calibrate_writing(self, event: dict[str, Any]) -> None:
        task = self.task(f"{self.calibration(event)}, tokens", event["of"])
        self.shown.update(task, completed=event["tokens"])

    def on_calibrate_cached(self, event: dict[str, Any]) -> None:
        task = self.task(self.calibration(event), 1)
        self.shown.update(task, completed=1, note=f"{event['tokens']:,} tokens, found done")

    def on_calibrate_loss(self, event: dict[str, Any]) -> None:
        if event["loss"] is not None:
            self.say(f"held-out loss, {_after(event['after'])}: {event['loss']:.3f}")

    def on_transfer_start(self, event: dict[str, Any]) -> None:
        self.start_bytes("transfer, steps", event["steps"], plain)

    def on_transfer_actor_died(self, event: dict[str, Any]) -> None:
        steps = ", ".join(event["steps"]) or "nothing"
        self.say(f"actor {event['rank']} died while doing {steps}; others go on, a new one starts ({event['why']})")

    def on_transfer_step(self, event: dict[str, Any]) -> None:
        self.add_bytes("transfer, steps", event["bytes_read"] + event["bytes_written"], 1)

    def on_compare_begin(self, event: dict[str, Any]) -> None:
        self.say(f"to be trained: {event['job']}")

    def on_export_start(self, event: dict[str, Any]) -> None:
        self.start_bytes("export", event["bytes"])

    def on_export_written(self, event: dict[str, Any]) -> None:
        self.add_bytes("export", event["bytes"], event["bytes"])

    def on_verify_start(self, event: dict[str, Any]) -> None:
        self.start_bytes("verify", event["bytes"])

    def on_verify_read(self, event: dict[str, Any]) -> None:
        self.add_bytes("verify", event["bytes"], event["bytes"])

    def on_diff_start(self, event: dict[str, Any]) -> None:
        self.task("diff, elements", event["elements"], elements)

    def on_diff_read(self, event: dict[str, Any]) -> None:
        self.shown.update(self.tasks[self.named("diff, elements")], advance=event["elements"])

    def on_pretrain_tokens_damaged(self, event: dict[str, Any]) -> None:
        warn(self.named(f"tokens are made again: {event['why']}"))

    def on_pretrain_tokenised(self, event: dict[str, Any]) -> None:
        self.shown.update(self.task("tokenise", event["of_bytes"], size), completed=event["bytes"])

    def on_pretrain_resumed(self, event: dict[str, Any]) -> None:
        self.say(f"{event['run']}: goes on from step {event['step']} ({event['url']})")

    def on_pretrain_moments(self, event: dict[str, Any]) -> None:
        self.say(f"{event['run']}: AdamW goes on after the source's {event['step']} steps")

    def on_pretrain_state_passed(self, event: dict[str, Any]) -> None:
        warn(self.named(f"{event['run']}: the state of step {event['step']} is passed over: {event['problem']}"))

    def on_pretrain_skipped(self, event: dict[str, Any]) -> None:
        warn(self.named(f"{event['run']}: step {event['step']} is left out: its loss is {event['loss']:.4g}"))

    def on_pretrain_finished_before(self, event: dict[str, Any]) -> None:
        self.say(f"{event['run']}: its {event['steps']} steps were done before")

    def on_pretrain_step(self, event: dict[str, Any]) -> None:
        task = self.task(f"pretrain {event['run']}", event["steps"])
        self.shown.update(task, completed=event["step"], note=_speed(event))

    def on_pretrain_held_out(self, event: dict[str, Any]) -> None:
        if event["steps"]:
            self.task(f"pretrain {event['run']}", event["steps"])
        self.say(f"{event['run']}: held-out loss after {event['step']} steps: {event['loss']:.3f}{accuracy(event)}")


def _after(stage: str) -> str:
    return "source" if stage == "source" else f"after {stage}"


def _speed(step: Mapping[str, Any]) -> str:
    return f"loss {step['loss']:.3f}, {step['tokens_per_s']:,.0f} tokens/s, MFU {step['mfu']:.1%}"


def accuracy(held_out: Mapping[str, Any]) -> str:
    """A clause about images whose class was predicted; empty where there are none."""
    return "" if held_out["accuracy"] is None else f" ({held_out['accuracy']:.1%} right)"
