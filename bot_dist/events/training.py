"""Events of training: of the tokens that it needs, of its runs, and of comparisons that consist of trainings."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from bot_dist.events.event import Event
from bot_dist.units import size


@dataclass(frozen=True, kw_only=True)
class TrainingStep:
    """The measurements of one optimizer step."""

    step: int
    """Number of the step, from 1."""
    loss: float
    """Mean over all tokens of the step that are predicted, in nats, before the update."""
    learning_rate: float
    """Learning rate of the step, without the factors of single parameters."""
    seconds: float
    """Seconds that the step took."""
    skipped: bool = False
    """Whether its loss was a spike and it was left out: it changed nothing."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """One measurement on held-out data."""

    step: int
    """Optimizer steps that had been taken."""
    loss: float
    """Mean over all held-out tokens that are predicted, in nats."""
    accuracy: float | None = None
    """Share of images whose class is predicted; None where there are no images."""

    @property
    def measures(self) -> str:
        """Loss, and accuracy if there is one, for people."""
        return f"{self.loss:.3f}" + ("" if self.accuracy is None else f" ({self.accuracy:.1%} right)")


@dataclass(frozen=True, kw_only=True)
class JobBegun(Event):
    """A comparison begins one of its trainings, whose result nobody has kept."""

    kind: ClassVar[str] = "begin"
    level: ClassVar[int] = logging.INFO
    stage: str = "compare"
    job: str
    """Names the training."""

    def __str__(self) -> str:
        return f"to be trained: {self.job}"


@dataclass(frozen=True, kw_only=True)
class TokensDamaged(Event):
    """Tokens of an earlier run are damaged; those that are not whole are made again."""

    kind: ClassVar[str] = "tokens_damaged"
    level: ClassVar[int] = logging.WARNING
    stage: str = "pretrain"
    why: str
    """Says what is wrong with them."""

    def __str__(self) -> str:
        return f"tokens are made again: {self.why}"


@dataclass(frozen=True, kw_only=True)
class Tokenised(Event):
    """Some more of the text is tokenised."""

    kind: ClassVar[str] = "tokenised"
    stage: str = "pretrain"
    bytes: int
    """Bytes of text that are done."""
    of_bytes: int
    """Bytes of text in all."""

    def __str__(self) -> str:
        return f"tokenised {size(self.bytes)} of {size(self.of_bytes)}"


@dataclass(frozen=True, kw_only=True)
class WorkersReady(Event):
    """All workers of a training have met."""

    kind: ClassVar[str] = "workers_ready"
    level: ClassVar[int] = logging.INFO
    stage: str = "pretrain"
    workers: int
    """Number of the workers."""

    def __str__(self) -> str:
        return f"{self.workers} workers are ready"


@dataclass(frozen=True, kw_only=True)
class RunEvent(Event):
    """An event of one run of a training."""

    stage: str = "pretrain"
    run: str
    """Names the run, such as ``transferred`` or ``scratch``."""


@dataclass(frozen=True, kw_only=True)
class FinishedBefore(RunEvent):
    """The run was finished by an earlier attempt, whose result is taken."""

    kind: ClassVar[str] = "finished_before"
    level: ClassVar[int] = logging.INFO
    steps: int
    """Optimizer steps of the run."""

    def __str__(self) -> str:
        return f"{self.run}: its {self.steps} steps were done before"


@dataclass(frozen=True, kw_only=True)
class Resumed(RunEvent):
    """The run goes on from a state that an earlier attempt has saved."""

    kind: ClassVar[str] = "resumed"
    level: ClassVar[int] = logging.INFO
    step: int
    """Optimizer steps that the state has behind it."""
    url: str
    """URL of the state, without secrets."""

    def __str__(self) -> str:
        return f"{self.run}: goes on from step {self.step} ({self.url})"


@dataclass(frozen=True, kw_only=True)
class StatePassedOver(RunEvent):
    """A state of an earlier attempt is unfinished or damaged, and an older one is tried."""

    kind: ClassVar[str] = "state_passed"
    level: ClassVar[int] = logging.WARNING
    step: int
    """Optimizer steps that the state has behind it."""
    url: str
    """URL of the state, without secrets."""
    problem: str
    """Says what is wrong with it."""

    def __str__(self) -> str:
        return f"{self.run}: the state of step {self.step} is passed over: {self.problem}"


@dataclass(frozen=True, kw_only=True)
class MomentsTaken(RunEvent):
    """The run begins with the moments that AdamW had in the source."""

    kind: ClassVar[str] = "moments"
    level: ClassVar[int] = logging.INFO
    step: int
    """Optimizer steps that the source had taken."""

    def __str__(self) -> str:
        return f"{self.run}: AdamW goes on after the source's {self.step} steps"


@dataclass(frozen=True, kw_only=True)
class Loaded(RunEvent):
    """The weights that the run begins with are in the workers."""

    kind: ClassVar[str] = "loaded"
    level: ClassVar[int] = logging.INFO
    seconds: float
    """Seconds that loading took, until the last rank was done."""
    n_parameters: int
    """Parameters of the model."""
    digest: str
    """Identifies the float32 weights that the run began with at its very beginning."""

    def __str__(self) -> str:
        return f"{self.run}: {self.n_parameters:,} parameters loaded in {self.seconds:.1f} s"


@dataclass(frozen=True, kw_only=True)
class TrainingStepDone(TrainingStep, RunEvent):
    """An optimizer step is done."""

    kind: ClassVar[str] = "step"
    steps: int
    """Optimizer steps of the run."""
    tokens_per_s: float
    """Tokens trained on in this step, per second."""
    mfu: float
    """FLOPs of the model in this step, over what all ranks could compute meanwhile."""

    def __str__(self) -> str:
        return f"{self.run}: step {self.step} of {self.steps}: {self.measures}"

    @property
    def measures(self) -> str:
        """Loss and speed, for people."""
        return f"loss {self.loss:.3f}, {self.tokens_per_s:,.0f} tokens/s, MFU {self.mfu:.1%}"


@dataclass(frozen=True, kw_only=True)
class HeldOutMeasured(HeldOut, RunEvent):
    """The held-out loss of the run is measured."""

    kind: ClassVar[str] = "held_out"
    level: ClassVar[int] = logging.INFO
    steps: int
    """Optimizer steps of the run; 0 where it is only measured."""

    def __str__(self) -> str:
        return f"{self.run}: held-out loss after {self.step} steps: {self.measures}"


@dataclass(frozen=True, kw_only=True)
class StepSkipped(RunEvent):
    """A step is left out, because its loss is a spike."""

    kind: ClassVar[str] = "skipped"
    level: ClassVar[int] = logging.WARNING
    step: int
    """Number of the step, from 1."""
    loss: float
    """Loss of the step, in nats."""

    def __str__(self) -> str:
        return f"{self.run}: step {self.step} is left out: its loss is {self.loss:.4g}"


@dataclass(frozen=True, kw_only=True)
class StateSaved(RunEvent):
    """A state that the run can go on from is committed."""

    kind: ClassVar[str] = "state_saved"
    step: int
    """Optimizer steps that the state has behind it."""
    url: str
    """URL of the state, without secrets."""


@dataclass(frozen=True, kw_only=True)
class Diverged(RunEvent):
    """The run's loss is not finite any more, and the run ends with what it has shown so far."""

    kind: ClassVar[str] = "diverged"
    level: ClassVar[int] = logging.WARNING
    step: int
    """Optimizer steps that were done."""

    def __str__(self) -> str:
        return f"{self.run}: diverged after {self.step} steps"


@dataclass(frozen=True, kw_only=True)
class Saved(RunEvent):
    """The trained weights are committed."""

    kind: ClassVar[str] = "saved"
    level: ClassVar[int] = logging.INFO
    url: str
    """The store that holds them."""

    def __str__(self) -> str:
        return f"{self.run}: committed {self.url}"


@dataclass(frozen=True, kw_only=True)
class RunDone(RunEvent):
    """The run is done."""

    kind: ClassVar[str] = "run_done"
    level: ClassVar[int] = logging.INFO
    result: Mapping[str, Any]
    """The run's measurements: the fields of a ``RunResult``, as plain data."""

    def __str__(self) -> str:
        return f"{self.run}: done"
