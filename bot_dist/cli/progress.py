"""Progress of a verb, from its events: bars in a terminal, else a line every ten seconds and one at each end."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import singledispatchmethod

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
from bot_dist.events import Event, OnEvent
from bot_dist.events.calibrate import BlockDone, LossMeasured, PassStarted, TakenUp, TextProgress
from bot_dist.events.checkpoints import (
    DiffRead,
    DiffStarted,
    ExportStarted,
    ExportWritten,
    VerifyRead,
    VerifyStarted,
)
from bot_dist.events.training import (
    FinishedBefore,
    HeldOutMeasured,
    JobBegun,
    MomentsTaken,
    Resumed,
    StatePassedOver,
    StepSkipped,
    Tokenised,
    TokensDamaged,
    TrainingStepDone,
)
from bot_dist.events.transfer import ActorDied, StepDone, TransferStarted
from bot_dist.units import count, duration, size

LINE_EVERY_S = 10.0
"""Seconds between two lines of a task, where there is no terminal."""


@contextmanager
def progress() -> Iterator[OnEvent]:
    """The function that a verb gives its events to while it runs."""
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
    """A column that shows how much is done of how much, in the unit of the task."""

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
    """Seconds of the monotonic clock at which a line was last shown."""


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

    def __call__(self, event: Event) -> None:
        with self._lock:
            self.member = event.member
            if console.verbose:
                console.print(json.dumps(event.to_json()), style="dim")
            self.show(event)

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

    @singledispatchmethod
    def show(self, event: Event) -> None:
        """Show an event by its type: a bar, a line, or, of a type that is not registered here, nothing."""

    @show.register
    def pass_started(self, event: PassStarted) -> None:
        self.shown.update(self.task(event.work, event.blocks), note=f"{event.tokens:,} tokens")

    @show.register
    def block_done(self, event: BlockDone) -> None:
        self.shown.update(self.tasks[self.named(event.work)], completed=event.block + 1)

    @show.register
    def text_progress(self, event: TextProgress) -> None:
        if event.stage == "calibrate":  # samples for the report are too short for a bar
            self.shown.update(self.task(f"{event.work}, tokens", event.of), completed=event.tokens)

    @show.register
    def taken_up(self, event: TakenUp) -> None:
        if event.stage == "calibrate":
            self.shown.update(self.task(event.work, 1), completed=1, note=f"{event.tokens:,} tokens, found done")

    @show.register
    def loss_measured(self, event: LossMeasured) -> None:
        if event.loss is not None:
            self.say(str(event))

    @show.register
    def transfer_started(self, event: TransferStarted) -> None:
        self.start_bytes("transfer, steps", event.steps, plain)

    @show.register
    def step_done(self, event: StepDone) -> None:
        self.add_bytes("transfer, steps", event.bytes_read + event.bytes_written, 1)

    @show.register(ActorDied)
    @show.register(JobBegun)
    @show.register(Resumed)
    @show.register(MomentsTaken)
    @show.register(FinishedBefore)
    def sentence(self, event: Event) -> None:
        self.say(str(event))

    @show.register(TokensDamaged)
    @show.register(StatePassedOver)
    @show.register(StepSkipped)
    def warning(self, event: Event) -> None:
        warn(self.named(str(event)))

    @show.register(ExportStarted)
    @show.register(VerifyStarted)
    def bytes_started(self, event: ExportStarted | VerifyStarted) -> None:
        self.start_bytes(event.stage, event.bytes)

    @show.register(ExportWritten)
    @show.register(VerifyRead)
    def bytes_done(self, event: ExportWritten | VerifyRead) -> None:
        self.add_bytes(event.stage, event.bytes, event.bytes)

    @show.register
    def diff_started(self, event: DiffStarted) -> None:
        self.task("diff, elements", event.elements, elements)

    @show.register
    def diff_read(self, event: DiffRead) -> None:
        self.shown.update(self.tasks[self.named("diff, elements")], advance=event.elements)

    @show.register
    def tokenised(self, event: Tokenised) -> None:
        self.shown.update(self.task("tokenise", event.of_bytes, size), completed=event.bytes)

    @show.register
    def training_step(self, event: TrainingStepDone) -> None:
        task = self.task(f"pretrain {event.run}", event.steps)
        self.shown.update(task, completed=event.step, note=event.measures)

    @show.register
    def held_out(self, event: HeldOutMeasured) -> None:
        if event.steps:
            self.task(f"pretrain {event.run}", event.steps)
        self.say(str(event))
