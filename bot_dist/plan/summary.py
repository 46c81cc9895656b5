"""A plan in numbers, for people and for the report."""

from __future__ import annotations

from dataclasses import dataclass

from bot_dist.plan.cost import step_bytes, step_peak
from bot_dist.plan.plan import TransferPlan


@dataclass(frozen=True, kw_only=True)
class ModuleRow:
    """One module of a plan, in numbers."""

    name: str
    source_shape: tuple[int, ...]
    target_shape: tuple[int, ...]
    operators: dict[str, str]
    """The operators in words, by the name of the axis that changes."""
    scale: float
    bytes_read: int
    bytes_written: int
    peak_bytes: int
    """Bytes of tensors that the module's largest step holds at its worst moment."""
    steps: int


@dataclass(frozen=True, kw_only=True)
class PlanSummary:
    """A whole plan, in numbers."""

    rows: tuple[ModuleRow, ...]
    n_source: int
    """Parameters before."""
    n_target: int
    """Parameters after."""
    flops_source: int
    """Forward FLOPs per token before."""
    flops_target: int
    context: int
    """Tokens of context for which attention is counted."""
    function_kept: str | None
    """Whether the target computes what its source does, in words; None where nothing is said of it."""
    actor_bytes: tuple[int, ...]
    """Bytes read and written by each actor."""
    actor_peak: tuple[int, ...]
    """Bytes of tensors that each actor holds at its worst moment."""

    @property
    def bytes_read(self) -> int:
        return sum(r.bytes_read for r in self.rows)

    @property
    def bytes_written(self) -> int:
        return sum(r.bytes_written for r in self.rows)

    @property
    def steps(self) -> int:
        return sum(r.steps for r in self.rows)


def summarise(plan: TransferPlan, context: int) -> PlanSummary:
    """Unfold a plan's steps and add them up; ``context``, in tokens, counts where the model has none of its own."""
    context = plan.target.tokens_per_sample(context)
    rows = []
    actor_bytes, actor_peak = [0] * plan.mesh.size, [0] * plan.mesh.size
    for i, module in enumerate(plan.modules):
        bytes_read = bytes_written = module_peak = steps = 0
        for step in plan.module_steps(i):
            read, written = step_bytes(module, step)
            peak = step_peak(module, step.target, step.source_shape())
            bytes_read, bytes_written, steps = bytes_read + read, bytes_written + written, steps + 1
            module_peak = max(module_peak, peak)
            actor_bytes[step.owner] += read + written
            actor_peak[step.owner] = max(actor_peak[step.owner], peak)
        rows.append(
            ModuleRow(
                name=module.name,
                source_shape=module.source_shape(),
                target_shape=module.target_shape(),
                operators=module.described(),
                scale=module.scale,
                bytes_read=bytes_read,
                bytes_written=bytes_written,
                peak_bytes=module_peak,
                steps=steps,
            )
        )
    return PlanSummary(
        rows=tuple(rows),
        n_source=plan.source.n_parameters,
        n_target=plan.target.n_parameters,
        flops_source=plan.source.flops_per_token(context),
        flops_target=plan.target.flops_per_token(context),
        context=context,
        function_kept=str(plan.function_kept) if plan.function_kept else None,
        actor_bytes=tuple(actor_bytes),
        actor_peak=tuple(actor_peak),
    )
