"""The ranking of a comparison's results: the rows of a table, as data and as text."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bot_dist.compare.results import TrialResult
from bot_dist.compare.savings import flops_saved

SHARES = (0, 1 / 8, 1 / 4, 1 / 2, 1)
"""Shares of the budget at which a table shows the held-out loss."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """The results of one method over all seeds."""

    method: str
    n_parameters: int
    learning_rate: float
    losses: dict[int, float]
    """Held-out loss by step: mean over the seeds; infinity where one has diverged before."""
    last: tuple[float, ...]
    """Last held-out loss of each seed; infinity where the training has diverged."""
    equal: tuple[float, ...]
    """Held-out loss of each seed when as many FLOPs are spent as scratch spends in all, those for the start included;
    the last one where the budget ends before. Infinity where the training has diverged, or the start takes more."""
    accuracy: tuple[float, ...]
    """Accuracy of each seed at the end; empty where none is measured."""
    saved: tuple[float | None, ...]
    """Share of scratch's FLOPs that each seed saves; None where the loss is never reached, or the method or scratch has
    diverged. Empty for scratch."""


def rows(results: Sequence[TrialResult], target_loss: float | None = None) -> list[Row]:
    """A row per method, in their order, each of one learning rate; measured against ``scratch_of`` each."""
    steps = max((r.curve.steps for r in results), key=len)
    by_method = []
    for method in dict.fromkeys(r.method for r in results):
        mine = [r for r in results if r.method == method]
        losses = [[*r.curve.losses, *[math.inf] * (len(steps) - len(r.curve.losses))] for r in mine]
        by_method.append(
            Row(
                method=method,
                n_parameters=mine[0].n_parameters,
                learning_rate=mine[0].learning_rate,
                losses={step: statistics.fmean(at) for step, at in zip(steps, zip(*losses, strict=True), strict=True)},
                accuracy=tuple(r.accuracy for r in mine if r.accuracy is not None),
                last=tuple(_end(r) for r in mine),
                equal=tuple(_at_flops_of(scratch_of(r, results), r) for r in mine),
                saved=tuple(_saved_of(r, scratch_of(r, results), target_loss) for r in mine if not r.scratch),
            )
        )
    return by_method


def scratch_of(result: TrialResult, results: Sequence[TrialResult]) -> TrialResult:
    """The model from scratch that a result is measured against: of its seed and as many parameters; where there is none
    of so many, because a method has a target of its own, the first."""
    scratches = [r for r in results if r.scratch and r.seed == result.seed]
    return next((r for r in scratches if r.n_parameters == result.n_parameters), scratches[0])


def _saved_of(result: TrialResult, scratch: TrialResult, target_loss: float | None) -> float | None:
    if result.diverged or scratch.diverged:
        return None
    return flops_saved(result.curve, scratch.curve, target_loss)


def _at_flops_of(scratch: TrialResult, result: TrialResult) -> float:
    if result.diverged or scratch.diverged:  # its curve may be empty
        return math.inf
    theirs = scratch.curve
    loss = result.curve.loss_after(theirs.flops_before + theirs.flops_per_step * theirs.steps[-1])
    return math.inf if loss is None else loss


def _end(result: TrialResult) -> float:
    """The last held-out loss; infinity after a divergence."""
    return math.inf if result.diverged else float(result.curve.losses[-1])


def best_rates(results: Sequence[TrialResult]) -> dict[str, float]:
    """The learning rate of each method at which its held-out loss ends lowest, in the mean over what was trained at it.
    A rate at which something diverged is never the lowest."""
    ends: dict[str, dict[float, list[float]]] = {}
    for r in results:
        ends.setdefault(r.method, {}).setdefault(r.learning_rate, []).append(_end(r))
    return {method: min(by_rate, key=lambda rate: statistics.fmean(by_rate[rate])) for method, by_rate in ends.items()}


def at_best(results: Sequence[TrialResult], rates: Mapping[str, float]) -> list[TrialResult]:
    """Method by method, in the order of ``rates``, what was trained at its learning rate."""
    return [r for method, rate in rates.items() for r in results if (r.method, r.learning_rate) == (method, rate)]


def notes(results: Sequence[TrialResult], rates: Sequence[float] = ()) -> list[str]:
    """Notes for the user: those of the plans, which scratch each method is measured against, and where the grid of
    learning ``rates`` may have been too small."""
    said: dict[str, list[str]] = {}
    for result in results:
        for note in result.notes:
            said.setdefault(note, []).append(result.method)
    lines = [f"{'; '.join(dict.fromkeys(methods))}: {note}" for note, methods in said.items()]
    if len({r.n_parameters for r in results if r.scratch}) > 1:
        lines.append("each method is measured against the model from scratch of as many parameters")
    other = {r.method: against for r in results if (against := scratch_of(r, results)).n_parameters != r.n_parameters}
    lines += [f"{method}: of another size, measured against {against.method}" for method, against in other.items()]
    for rate in sorted({min(rates), max(rates)}) if len(rates) > 1 else ():
        at_end = [r.method for r in results if r.learning_rate == rate]
        if at_end:
            which = "lowest" if rate == min(rates) else "highest"
            lines.append(f"{'; '.join(dict.fromkeys(at_end))}: best at {rate:g}, the {which} of the learning rates")
    return lines


def table(rows: Sequence[Row], *, tuned: bool = False) -> tuple[list[str], list[list[str]]]:
    """Headings and cells: the learning rate, where it was ``tuned``; the loss over the budget, and when as many FLOPs
    are spent as scratch spends; FLOPs saved."""
    every = list(rows[0].losses)
    steps = list(dict.fromkeys(min(every, key=lambda step: abs(step - share * every[-1])) for share in SHARES))
    lines = []
    for row in rows:
        numbers = [f"{loss:.3f}" if math.isfinite(loss := row.losses[step]) else "diverged" for step in steps]
        numbers[-1] += _spread(row.last, ".3f")
        equal = statistics.fmean(row.equal)
        numbers.append(f"{equal:.3f}{_spread(row.equal, '.3f')}" if math.isfinite(equal) else "–")
        rate = [f"{row.learning_rate:g}"] if tuned else []
        right = [_right(row.accuracy)] if any(other.accuracy for other in rows) else []
        lines.append([row.method, f"{row.n_parameters:,}", *rate, *numbers, *right, _saved(row.saved)])
    rate = ["learning rate"] if tuned else []
    right = [f"right at {steps[-1]}"] if any(row.accuracy for row in rows) else []
    return [
        "start",
        "parameters",
        *rate,
        *(f"loss at {step}" for step in steps),
        "at equal FLOPs",
        *right,
        "FLOPs saved",
    ], lines


def _right(accuracy: Sequence[float]) -> str:
    return f"{statistics.fmean(accuracy):.1%}{_spread(accuracy, '.1%')}" if accuracy else "–"


def _saved(saved: Sequence[float | None]) -> str:
    if not saved:
        return "–"
    reached = [r for r in saved if r is not None]
    if len(reached) < len(saved):
        return (
            f"never reached ({len(saved) - len(reached)} of {len(saved)} seeds)" if len(saved) > 1 else "never reached"
        )
    return f"{statistics.fmean(reached):.1%}{_spread(reached, '.1%')}"


def _spread(values: Sequence[float], form: str) -> str:
    """Their standard deviation, if there are several and all are finite."""
    return f" ± {statistics.stdev(values):{form}}" if len(values) > 1 and all(map(math.isfinite, values)) else ""


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    ruler = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(line) + " |" for line in (headings, ruler, *lines)) + "\n"
