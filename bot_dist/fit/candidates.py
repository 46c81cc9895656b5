"""Stages of a fit, the candidates that are tried at each, and the choice of the best.

A fit can be worse than what it replaces, where there are few tokens, or where its ridge or basis does not suit. So what
the recipe leaves open is tried, and kept is what has the least loss on samples that nothing was fitted to.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bot_dist.errors import FamilyError
from bot_dist.fit.stage_facts import CandidateResult
from bot_dist.model import Model
from bot_dist.parsing import parse_json
from bot_dist.plan import ORDER, basis_of, sequential_refused, shrinking
from bot_dist.recipe import Recipe
from bot_dist.storage.disk import write_whole

OPTIONS = {"layer": ("layers",), "embed": ("embed",), "heads": ("heads", "kv_heads"), "mlp": ("mlp",)}
"""The target's options that belong to each axis."""


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A way to fit the axes of a stage."""

    sequential: bool = False
    """Whether it follows the shrunk model block by block, and corrects what blocks write; else it is one pass."""
    predicts: bool = True
    """Whether units, heads and coordinates that are dropped are predicted from those kept."""

    @property
    def name(self) -> str:
        """The way in words, for people."""
        return (
            f"{'block by block' if self.sequential else 'one pass'}, {'predicting' if self.predicts else 'selecting'}"
        )


def measurable(model: Model) -> bool:
    """Whether a model predicts something, so that it has a loss."""
    return model.head is not None or model.classifies


def candidates(model: Model, recipe: Recipe, axes: Sequence[str], *, data: bool, ranks: bool) -> tuple[Candidate, ...]:
    """The ways that the recipe leaves open for a stage's ``axes``, the best known first, and that alone unless their
    losses rank them; to weights alone, without ``data``, there is one way."""
    transfer, passes = recipe.transfer, recipe.calibrate.passes
    target = model.resized(recipe.target)
    shrunk = {*axes} & {*shrinking(model, target, transfer)}
    explicit = None if transfer.lifting == "auto" else transfer.lifting == "least-squares"
    if not (data and shrunk):
        return (Candidate(predicts=explicit is not False),)
    ways = []
    if passes in ("auto", "sequential") and sequential_refused(model, target, transfer) is None:
        ways.append(Candidate(sequential=True, predicts=explicit is True))
    if passes != "sequential" or not ways:
        ways.append(Candidate(predicts=explicit is not False))
        permuted = "embed" in shrunk and basis_of(model, target, transfer.basis) == "permutation"
        if explicit is None and (permuted or shrunk & {"mlp", "heads"}):
            ways.append(Candidate(predicts=False))
    return tuple(ways if ranks else ways[:1])


def stages_of(model: Model, recipe: Recipe, axes: Sequence[str]) -> list[tuple[str, ...]]:
    """The axes that are fitted together in each stage: all that shrink at once, but after blocks that are merged in
    pairs, which share operators; or, with ``passes: each``, one after another, units first and blocks last (of the
    orders tried, the one that loses least), but together where the family has no model that is shrunk along one of them
    alone."""
    first = [axis for axis in axes if axis == "layer" and recipe.transfer.depth == "pairs"]
    others = [axis for axis in axes if axis not in first]
    if recipe.calibrate.passes != "each":
        return [tuple(stage) for stage in (first, others) if stage]
    target = recipe.target
    stages: list[tuple[str, ...]] = []
    done: dict[str, int] = {}
    waiting: list[str] = []
    for axis in (*first, *reversed(others)):
        waiting.append(axis)
        tried = {**done, **options_of(target, waiting)}
        try:
            model.resized(tried)
        except FamilyError:
            continue
        stages.append(tuple(waiting))
        done, waiting = tried, []
    return [*stages, tuple(waiting)] if waiting else stages


def options_of(target: Mapping[str, int], axes: Iterable[str]) -> dict[str, int]:
    """The target's options that belong to some axes."""
    return {key: target[key] for axis in axes for key in OPTIONS[axis] if key in target}


def wanted_of(model: Model, axes: Sequence[str], tried: Sequence[Candidate], *, permuted: bool) -> tuple[str, ...]:
    """The statistics that fits of a stage's axes need, whichever of the candidates; ``permuted``: where coordinates of
    the residual stream are kept as they are."""
    at_once = any(not candidate.sequential for candidate in tried)
    inner = {axis for name in axes if name != "embed" and at_once for axis in ORDER[name]}
    names = []
    for weight in model.weights:
        reads = {use.axis for use in weight.uses if use.role == "read"}
        of_stream = model.family.norm_of(weight) and not weight.into_residual
        name = weight.name.removesuffix(".weight")
        norm = "embed" in axes and of_stream and not weight.name.endswith(".bias")
        first = permuted and at_once and "embed" in axes and model.family.read_with(weight) == name
        if norm or first or (weight.layered and weight.kind == "matrix" and reads & inner):
            names.append(name)
    return tuple(names)


@dataclass(frozen=True)
class Ranking:
    """Results of a stage's candidates, in the order in which they were tried, kept in a file for the next time."""

    path: Path

    def load(self) -> list[CandidateResult] | None:
        """The results that are kept; None where they are not known."""
        if not self.path.is_file():
            return None
        try:
            results = parse_json(self.path.read_bytes(), str(self.path), ValueError)
            return [CandidateResult(**result) for result in results]
        except (ValueError, TypeError):  # torn by a crash of the machine
            return None

    def save(self, results: Sequence[CandidateResult]) -> None:
        write_whole(self.path, json.dumps([asdict(result) for result in results]))


def best_of(results: Sequence[CandidateResult]) -> str:
    """The name of the candidate with the least loss."""
    return min((result.loss, i, result.name) for i, result in enumerate(results) if result.loss is not None)[2]
