"""How a model was shrunk by what was fitted to it: the facts that ``calibrate`` records of its stages, for people."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Stages = Sequence[Mapping[str, Any]]
"""The record of every stage of a fit, as it is or as JSON gives it back."""


@dataclass(frozen=True, kw_only=True)
class StageRow:
    """One stage, or the source before them."""

    name: str
    sizes: str
    """Sizes of each axis before and after, and the blocks that were left out."""
    energy_kept: float | None
    """Share of the residual stream's energy in the coordinates that are kept; None where that is not what is cut."""
    mean_error: float | None
    """Share of all that stays unexplained by what is kept, as a mean over blocks and maps; None where nothing was
    predicted."""
    worst_error: float | None
    worst: str
    """Place of the worst error: the norm or map, and its block among those that are kept."""
    loss: float | None
    """Held-out loss after the stage, in nats per token; None where it was not measured."""


def stage_rows(stages: Stages) -> list[StageRow]:
    """All stages, in order."""
    return [_row(stage) for stage in stages]


HEADINGS = ("stage", "size", "energy kept", "mean error", "worst error", "held-out loss")


def cells(row: StageRow) -> tuple[str, ...]:
    """A row as text, under ``HEADINGS``."""
    return (
        row.name,
        row.sizes or "–",
        f"{row.energy_kept:.2%}" if row.energy_kept is not None else "–",
        f"{row.mean_error:.2%}" if row.mean_error is not None else "–",
        f"{row.worst_error:.2%} ({row.worst})" if row.worst_error is not None else "–",
        f"{row.loss:.3f}" if row.loss is not None else "–",
    )


def prediction_errors(stages: Stages) -> dict[str, list[float]]:
    """Shares that stay unexplained, by norm or map, one per block (one alone where there is none per block)."""
    return {name: errors for stage in stages for name, errors in _errors(stage)}


def spectrum(stages: Stages) -> tuple[list[float], int] | None:
    """Shares of the residual stream's energy, in descending order, and how many are kept; None where its width was."""
    for stage in stages:
        facts = stage["facts"].get("embed", {})
        if "spectrum" in facts:
            return facts["spectrum"], facts["kept"]
    return None


def losses(stages: Stages) -> list[tuple[str, float]]:
    """Held-out loss after each stage, where it was measured."""
    return [(row.name, row.loss) for row in stage_rows(stages) if row.loss is not None]


def ranking_lines(stages: Stages) -> list[str]:
    """One line for every stage that was fitted in several ways: the fit that is kept, and its lead over the others."""
    return [_ranking_line(stage) for stage in stages if "candidates" in stage]


def ranges(indices: Iterable[int]) -> str:
    """Ascending indices in short: ``0–3, 7``."""
    spans: list[list[int]] = []
    for i in indices:
        if spans and i == spans[-1][1] + 1:
            spans[-1][1] = i
        else:
            spans.append([i, i])
    return ", ".join(str(first) if first == last else f"{first}–{last}" for first, last in spans)


def _row(stage: Mapping[str, Any]) -> StageRow:
    errors = {(name, i): error for name, by_block in _errors(stage) for i, error in enumerate(by_block)}
    alone = {name for name, by_block in _errors(stage) if len(by_block) == 1}
    worst = max(errors, key=lambda place: errors[place], default=None)
    kept = [facts["energy_kept"] for facts in stage["facts"].values() if "energy_kept" in facts]
    return StageRow(
        name=", ".join(stage["axes"]) or "source",
        sizes=_sizes(stage),
        energy_kept=kept[0] if kept else None,
        mean_error=sum(errors.values()) / len(errors) if errors else None,
        worst_error=errors[worst] if worst else None,
        worst=(worst[0] if worst[0] in alone else f"{worst[0]}, block {worst[1]}") if worst else "",
        loss=stage.get("loss"),
    )


def _ranking_line(stage: Mapping[str, Any]) -> str:
    best = next(fit for fit in stage["candidates"] if fit["name"] == stage["chosen"])
    others = [
        f"{fit['name']} {'failed' if fit['loss'] is None else format(fit['loss'] - best['loss'], '+.3f')}"
        for fit in stage["candidates"]
        if fit is not best
    ]
    return (
        f"{', '.join(stage['axes'])}: of {len(others) + 1} fits {best['name']} is kept, for its loss of "
        f"{best['loss']:.3f} on windows that none was fitted to; {', '.join(others)}"
    )


def _errors(stage: Mapping[str, Any]) -> Iterator[tuple[str, list[float]]]:
    for facts in stage["facts"].values():
        yield from facts.get("errors", {}).items()


def _sizes(stage: Mapping[str, Any]) -> str:
    text = ", ".join(f"{axis} {before} → {after}" for axis, (before, after) in stage["sizes"].items())
    if layers := stage["facts"].get("layer"):
        left_out = [i for i in range(len(layers["similarity"])) if i not in {*layers["kept"]}]
        text += f" (without {'block' if len(left_out) == 1 else 'blocks'} {ranges(left_out)})"
    return text
