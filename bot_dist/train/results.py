"""Runs that a pretraining is asked for, and the results that it gives back: plain data that crosses processes and
becomes JSON."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from bot_dist.events.training import HeldOut, TrainingStep
from bot_dist.results import Result, Row
from bot_dist.units import count, duration


@dataclass(frozen=True, kw_only=True)
class TrainRun:
    """One model that is trained (or, with ``steps=0``, only measured)."""

    name: str
    """One of ``source``, ``transferred`` or ``scratch``, which names the run in events and errors."""
    config: dict[str, Any]
    """Configuration of the model, as ``transformers`` has it."""
    url: str | None
    """Checkpoint to start from; None: the family's own initialisation."""
    steps: int
    """Optimizer steps."""
    save_url: str | None = None
    """Store that takes the trained float32 weights."""
    states_url: str | None = None
    """Folder of its training states; None: one with its name, under the training's."""
    probe_path: str | None = None
    """Path of a safetensors file that takes the inputs and float32 ``logits`` of one short held-out sample, at the
    end."""
    overwrite: bool = False
    """Whether the store at ``save_url`` is replaced."""
    inserted: tuple[int, ...] = ()
    """Blocks that the transfer has put in, and that change nothing yet."""
    may_diverge: bool = False
    """Whether a loss that is not finite ends this run with what it has shown so far, not the whole training."""


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """The measurements of one run. Lists over ranks are in rank order."""

    name: str
    steps: int
    n_parameters: int
    tokens_per_step: int
    losses: list[TrainingStep]
    held_out: list[HeldOut]
    load_s: float
    """Seconds that reading the weights into the ZeRO partitions took, until the last rank was done."""
    first_step_s: float | None
    """Seconds from the run's start in its worker to the end of its first step, without held-out measurement; None: no
    steps."""
    bytes_read: list[int]
    """Bytes of the tensors that each rank read: its own partition, nothing else."""
    peak_rss_bytes: list[int]
    """Highest resident memory of each rank's process since the run began."""
    digest: str
    """Digest of the float32 weights that training began with; the same for any number of workers."""
    trained_digest: str | None
    """Digest of the float32 weights after the last step; None: no steps."""
    probe_path: str | None
    saved_url: str | None
    diverged: str | None = None
    """Says where a loss became NaN or infinity, and the run ended; None: it did not."""
    tokens_per_s: float | None = None
    """Tokens per second that are trained on, in a step of median length; None: no steps."""
    mfu: float | None = None
    """FLOPs of the model (``Model.training_flops_per_token``) in such a step, over what all ranks could compute
    meanwhile; None: no steps."""

    @property
    def in_short(self) -> str:
        """Held-out losses, size and speed, for people."""
        measured = ", ".join(f"{held_out.measures} after {held_out.step} steps" for held_out in self.ends)
        speed = "" if self.tokens_per_s is None else f"; {self.tokens_per_s:,.0f} tokens/s, MFU {self.mfu or 0:.1%}"
        return f"held-out loss {measured or 'not measured'}; {count(self.n_parameters)} parameters{speed}"

    @property
    def ends(self) -> list[HeldOut]:
        """The first measurement on held-out data, and the last one where there are several."""
        return [self.held_out[0], self.held_out[-1]] if len(self.held_out) > 1 else self.held_out


@dataclass(frozen=True, kw_only=True, repr=False)
class PretrainResult(Result):
    """The results of all runs of one pretraining."""

    runs: list[RunResult]
    workers: int
    device: str
    startup_s: float
    """Seconds from the call until the workers began their first run: text, Ray Train, imports."""
    total_s: float
    tokens: int | None
    """Tokens of the text, held-out sequences included; None where images are trained on."""
    versions: dict[str, str] = field(default_factory=dict)

    def run(self, name: str) -> RunResult:
        """The run of that name."""
        return next(run for run in self.runs if run.name == name)

    def rows(self) -> Iterator[Row]:
        for run in self.runs:
            yield run.name, run.in_short
        yield "workers", f"{self.workers} on {self.device}, ready after {duration(self.startup_s)}"
        yield "seconds", f"{self.total_s:.1f}"


def run_result(data: dict[str, Any]) -> RunResult:
    """The inverse of ``dataclasses.asdict`` for a RunResult."""
    lists = {
        "losses": [TrainingStep(**step) for step in data["losses"]],
        "held_out": [HeldOut(**held_out) for held_out in data["held_out"]],
    }
    return RunResult(**{**data, **lists})
