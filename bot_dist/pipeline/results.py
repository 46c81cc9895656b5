"""Results of a run and of its transfer; those of training and export are defined where these are done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from bot_dist.fit.stage_facts import StageFacts
from bot_dist.formats.export_result import ExportResult
from bot_dist.plan.summary import PlanSummary
from bot_dist.report.html import verdict
from bot_dist.report.shrinking import losses
from bot_dist.results import Result, Row
from bot_dist.train.results import PretrainResult
from bot_dist.units import duration, size


@dataclass(frozen=True, kw_only=True, repr=False)
class TransferResult(Result):
    """The measurements of a transfer, which the manifest of the store that it made records, too."""

    url: str = ""
    """URL of the store, without secrets."""
    seconds: float
    """Seconds from the plan to the commit; those of fitting are counted apart."""
    tokenizer: bool
    """Whether a tokenizer was carried along."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should know."""
    sizes: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Sizes of all axes of the ``source`` and of the ``target``."""
    steps_seconds: float
    """Seconds that the steps took."""
    bytes_read: int
    """Bytes read from the source."""
    bytes_written: int
    """Bytes written to the store."""
    gb_per_s: float
    """Bytes read and written in a second of the steps, in 10⁹."""
    steps: int
    """Steps of the plan."""
    steps_resumed: int
    """Steps that an earlier attempt had done."""
    actor_peak_rss_bytes: tuple[int, ...]
    """Highest resident memory of each actor, in bytes."""
    energy_kept: Mapping[str, float]
    """Share of each module's squared norm that its approximation band keeps."""
    detail_energy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Share of each module's squared norm in each detail band that was kept."""
    overflowed: Mapping[str, int] = field(default_factory=dict)
    """Number of values of each module that were too large for the target's dtype and became infinite."""
    calibrate: tuple[StageFacts, ...] | None = None
    """Facts of every stage of fitting; None where nothing was fitted."""
    fitting_s: float | None = None
    """Seconds that fitting took; None where nothing was fitted."""
    made: Mapping[str, Any] | None = None
    """Facts of the source that a baseline made; None where none did."""

    def rows(self) -> Iterator[Row]:
        before, after = self.sizes.get("source", {}), self.sizes.get("target", {})
        changed = {name: (n, after[name]) for name, n in before.items() if after.get(name, n) != n}
        yield "store", self.url
        yield "sizes", ", ".join(f"{name} {n} → {m}" for name, (n, m) in changed.items()) or "all kept"
        yield "moved", f"{size(self.bytes_read)} read, {size(self.bytes_written)} written, {self.gb_per_s:.2f} GB/s"
        yield "steps", f"{self.steps:,}, of which {self.steps_resumed:,} were found done"
        yield "time", duration(self.seconds) + (f", fitting {duration(self.fitting_s)}" if self.fitting_s else "")
        yield "peak memory", f"{size(max(self.actor_peak_rss_bytes, default=0))} in an actor"
        if measured := losses([stage.to_json() for stage in self.calibrate or ()]):
            yield "held-out loss", ", ".join(f"{name} {loss:.3f}" for name, loss in measured)
        if self.energy_kept:
            yield "energy kept", ", ".join(f"{name} {share:.1%}" for name, share in self.energy_kept.items())
        for name, n in self.overflowed.items():
            yield "overflowed", f"{name}: {n:,} values"
        for note in self.notes:
            yield "note", note


@dataclass(frozen=True, kw_only=True, repr=False)
class PipelineResult(Result):
    """The facts of a whole run, which its report shows."""

    recipe: Mapping[str, Any]
    """The recipe with all defaults, without secrets."""
    plan: PlanSummary
    """The plan in numbers."""
    notes: tuple[str, ...] = ()
    """Sentences about the plan that the user should know."""
    transfer: TransferResult
    """The measurements of the transfer."""
    pretrain: PretrainResult
    """The measurements of the training."""
    export: ExportResult
    """The result of the export."""
    samples: Mapping[str, list[str]] = field(default_factory=dict)
    """Texts by who wrote them, ``source`` or ``target``; empty where there are none."""
    versions: Mapping[str, str]
    """Versions of the packages that the results depend on."""
    command: str
    """The command line of the process."""
    machine: str
    """The system that it ran on."""
    date: str
    """Date and time at which it ended, in local time."""
    report: str = ""
    """Path of the report, an HTML file."""
    complete_before: bool = False
    """Whether there was nothing left to do."""

    def rows(self) -> Iterator[Row]:
        yield from zip(("size", "loss", "cost"), verdict(self.to_json()), strict=True)
        yield "store", self.transfer.url
        yield "export", self.export.folder
        yield "report", self.report + (" (complete before)" if self.complete_before else "")


@dataclass(frozen=True, kw_only=True, repr=False)
class FamilyResult(Result):
    """The facts of the runs of a family."""

    members: Mapping[str, PipelineResult]
    """The facts of every member, by name."""
    report: str
    """Path of the index of the members' reports, an HTML file."""
    complete_before: bool = False
    """Whether there was nothing left to do for any of them."""

    def rows(self) -> Iterator[Row]:
        for name, member in self.members.items():
            yield name, member.pretrain.run("transferred").in_short
        yield "report", self.report
