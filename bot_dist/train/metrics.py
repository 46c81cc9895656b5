"""Metrics that a training shows while it runs, besides events: JSON lines and TensorBoard of each run, and Ray's
metrics."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ray.util.metrics import Gauge

from bot_dist.events import Event
from bot_dist.events.training import HeldOutMeasured, TrainingStepDone
from bot_dist.storage.disk import writing
from bot_dist.storage.folder import Storage

LINES, BOARD = "metrics.jsonl", "tensorboard"
METRICS: dict[type[TrainingStepDone | HeldOutMeasured], dict[str, str]] = {
    TrainingStepDone: {
        "loss": "Loss of the last step in nats, the mean over all its labels.",
        "learning_rate": "Learning rate of the last step, without the factors of single parameters.",
        "tokens_per_s": "Tokens per second that were trained on in the last step.",
        "mfu": "FLOPs of the model in the last step over what all ranks could compute meanwhile.",
    },
    HeldOutMeasured: {
        "loss": "Held-out loss in nats, the mean over all labels.",
        "accuracy": "Share of held-out images whose class is predicted.",
    },
}
"""Fields that are shown of each kind of event; those of held-out data as ``held_out_NAME``."""


class Metrics:
    """Called with every event of a training. In ``{folder}/RUN``, RUN being a run's name in lower case with dashes:

    - ``metrics.jsonl``: a line per step and per measurement with its ``time``, its ``step`` and what there is of
      ``METRICS``; a run that is taken up again appends;
    - ``tensorboard/``: the same as scalars; those that a run taken up again does anew are hidden.

    Ray's metrics have the last of each as ``bot_dist_train_NAME`` with the tag ``run``, and beside them
    ``bot_dist_train_steps_left``.
    """

    def __init__(self, folder: Path, *, fresh: bool) -> None:
        """Write into ``folder``; with ``fresh``, what earlier runs of these names have left is removed."""
        self._folder, self._fresh = folder, fresh
        self._writers: dict[str, Any] = {}
        self._gauges = {
            _name(kind, field): Gauge(f"bot_dist_train_{_name(kind, field)}", what, ("run",))
            for kind, fields in METRICS.items()
            for field, what in fields.items()
        }
        self._left = Gauge("bot_dist_train_steps_left", "Optimizer steps that are still to be taken.", ("run",))

    def __call__(self, event: Event) -> None:
        if not isinstance(event, (TrainingStepDone, HeldOutMeasured)):
            return
        measured = {_name(type(event), field): getattr(event, field) for field in METRICS[type(event)]}
        values = {name: value for name, value in measured.items() if value is not None}
        self._add(event.run, event.time, event.step, values)
        self._left.set(event.steps - event.step, {"run": event.run})

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def _add(self, run: str, time: float, step: int, values: dict[str, float]) -> None:
        folder = self._folder / re.sub("[^a-z0-9]+", "-", run.lower()).strip("-")
        with writing(folder):
            self._write(folder, run, time, step, values)
        for name, value in values.items():
            self._gauges[name].set(value, {"run": run})

    def _write(self, folder: Path, run: str, time: float, step: int, values: dict[str, float]) -> None:
        if run not in self._writers:
            from torch.utils.tensorboard import SummaryWriter

            if self._fresh:
                shown = Storage(str(folder))
                scalars = [name for name in shown.names(BOARD) if name.startswith("events.out.tfevents.")]
                shown.remove(LINES, *(f"{BOARD}/{name}" for name in scalars))
            self._writers[run] = SummaryWriter(str(folder / BOARD), purge_step=step)
        with (folder / LINES).open("a") as file:
            file.write(json.dumps({"time": time, "step": step, **values}) + "\n")
        for name, value in values.items():
            self._writers[run].add_scalar(name, value, step, walltime=time)


def _name(kind: type[Event], field: str) -> str:
    return f"held_out_{field}" if kind is HeldOutMeasured else field
