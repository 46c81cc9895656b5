"""Facts of a fit before it is made: in which ways, what it takes, and what the user should know of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from bot_dist.errors import PlanError
from bot_dist.fit.calibration_data import Amount, calibration, calibration_amount, data_for, has_data, notes_on_text
from bot_dist.model import Model
from bot_dist.recipe import Basis, Recipe
from bot_dist.units import count, duration, size

if TYPE_CHECKING:
    from bot_dist.fit import Adapted
    from bot_dist.fit.candidates import Candidate
    from bot_dist.fit.cost import CalibrationCost
    from bot_dist.fit.own_text_cost import Writing


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """A planned fit along the axes of a recipe's target that shrink or grow by what is fitted to its source."""

    recipe: Recipe
    model: Model
    target: Model
    shrunk: Sequence[str]
    grown: Sequence[str]
    basis: Basis
    writing: Writing | None
    """The plan by which the source writes the text; None where it writes none."""

    @cached_property
    def tried(self) -> list[tuple[Candidate, ...]]:
        """The candidates at each stage: several where the recipe leaves open which, and their losses rank them."""
        from bot_dist.fit.candidates import candidates, measurable, stages_of

        recipe, model = self.recipe, self.model
        ranks = measurable(model) and self._amount.held_out > 0
        stages = [*stages_of(model, recipe, self.shrunk), *([tuple(self.grown)] if self.grown else [])]
        return [candidates(model, recipe, stage, data=self._has_data, ranks=ranks) for stage in stages]

    @property
    def sequential(self) -> bool:
        """Whether the best known fit follows the shrunk model block by block."""
        return any(stage[0].sequential for stage in self.tried)

    @cached_property
    def cost(self) -> CalibrationCost:
        """The cost of the fit. Raises PlanError where that is more than it may take."""
        return self._cost_of(self.tried)

    def notes(self, adapted: Adapted | None) -> list[str]:
        """Notes for the user on the fit, before it is made, or once it has been ``adapted``. Raises InputError where
        what shrinks would be fitted to too few tokens, and PlanError where it takes too much memory."""
        from bot_dist.report.shrinking import ranking_lines

        notes = [*self._ways(), *notes_on_text(self.recipe)]
        if not (self.shrunk or self.grown):
            return notes
        notes += [*self._on_data(), *self._on_amount()]
        notes += ranking_lines([stage.to_json() for stage in adapted.stages]) if adapted else self._on_ranking()
        return [*notes, self._on_cost()]

    @property
    def _has_data(self) -> bool:
        return has_data(self.recipe, self.model)

    @property
    def _amount(self) -> Amount:
        return calibration_amount(self.recipe, self.model)

    def _ways(self) -> Iterator[str]:
        """Notes on how axes shrink, and on those that grow by what is fitted."""
        from bot_dist.plan import regroups, rotation_refused, sequential_refused

        recipe, model = self.recipe, self.model
        verbs = {"shrinking": self.shrunk, "growing": self.grown}
        yield from (
            f"{verb} is fitted to the source along {', '.join(names)}" for verb, names in verbs.items() if names
        )
        target = model.resized(recipe.target)
        if regroups(model, target):
            before, after = model.sizes["kv_heads"], target.sizes["kv_heads"]
            heads = before * model.sizes["group"]
            how = "copied" if after > before else "averaged over those that become one"
            yield f"all {heads} query heads stay, and share other key/value heads: these are {how} ({before} → {after})"
        why_not = sequential_refused(model, target, recipe.transfer)
        if self.shrunk and why_not and recipe.calibrate.passes in ("auto", "sequential") and self._has_data:
            yield f"shrinking is fitted in one pass, not block by block: {why_not}"
        if "embed" in self.shrunk and self.basis == "permutation" and recipe.transfer.basis == "auto":
            refused = rotation_refused(model.family)
            yield f"'embed' keeps its coordinates of most energy: a rotation would not do, {refused}"

    def _on_data(self) -> Iterator[str]:
        """Notes on the data that are fitted to, where that is no text of the user's, and on what it takes to make
        them."""
        from bot_dist.fit.own_text_cost import MEMORY_RATE

        match data_for(self.recipe, self.model):
            case None:
                why = "there is no train.images: a start from statistics is much better"
                yield f"it is fitted to the weights alone, for {why}"
            case "random":
                causal = self.model.family.objective == "causal"
                why = "which do where whole blocks alone go" if causal else "for such a model writes no text"
                yield (
                    f"it is fitted to random tokens, {why}; a text of your own domain is better still: name it in "
                    f"calibrate.text (--calibrate)"
                )
            case "written":
                writing = self.writing
                assert writing is not None
                streamed = writing.blocks - writing.held
                again = f"; {streamed} of {writing.blocks} blocks are read again for every token" if streamed else ""
                yield (
                    f"it is fitted to a text that the model writes itself, {writing.sequences} × {writing.window} "
                    f"tokens at temperature 1; text of your own domain is far better: name it in calibrate.text "
                    f"(--calibrate)"
                )
                yield (
                    f"writing it takes {held(writing.shares, writing.share_bytes)}, {count(writing.flops, 'FLOP')} and "
                    f"{size(writing.read_bytes)} read: {duration(writing.seconds)} at {count(MEMORY_RATE, 'B/s')} of "
                    f"memory{again}"
                )

    def _on_amount(self) -> Iterator[str]:
        """A note where tokens are few. Raises InputError where they are too few."""
        from bot_dist.fit.suitable import check_enough, coordinates_told_by

        if self._has_data:
            sequential = any(candidate.sequential for stage in self.tried for candidate in stage)
            told = coordinates_told_by(self.model, self.target, self.shrunk, sequential=sequential)
            if note := check_enough(self._amount.fitted * self._amount.positions, told):
                yield note

    def _on_ranking(self) -> Iterator[str]:
        """Notes on which fits will be tried, and what that takes beside the first alone; or on why they are not."""
        from bot_dist.fit.candidates import candidates, measurable

        amount = self._amount
        more_s = self.cost.seconds - self._cost_of([stage[:1] for stage in self.tried]).seconds
        several = {"; ".join(candidate.name for candidate in stage) for stage in self.tried if len(stage) > 1}
        for names in sorted(several):
            yield (
                f"fits are tried and ranked by their loss on {amount.held_out * amount.positions:,} tokens that none "
                f"is fitted to, which takes {duration(more_s)} more than the first alone: {names}"
            )
        first, *others = candidates(self.model, self.recipe, self.shrunk, data=self._has_data, ranks=True)
        if others and not several:
            if not measurable(self.model):
                why = "the model has no head"
            elif data_for(self.recipe, self.model) == "random":
                why = "no text is named"
            else:
                why = "calibrate.held_out leaves none for it"
            yield f"fits are not ranked by their loss, for {why}: {first.name} is taken as it is"

    def _on_cost(self) -> str:
        from bot_dist.fit.cost import RATE

        cost, what = self.cost, "images" if self.model.family.objective == "image" else "text"
        text = f"{held(cost.shares, cost.share_bytes)} for the {what} and " if cost.shares else ""
        files = f", {size(cost.scratch_bytes)} of scratch files" if cost.shares else ""
        return (
            f"fitting takes {text}{size(cost.fit_bytes)} of memory for the fits{files}, and "
            f"{count(cost.flops + cost.measure_flops, 'FLOP')}: {duration(cost.seconds)} at {count(RATE, 'FLOP/s')}"
        )

    def _cost_of(self, tried: Sequence[Sequence[Candidate]]) -> CalibrationCost:
        from bot_dist.fit.cost import calibration_cost

        cluster, axes = self.recipe.cluster, [*self.shrunk, *self.grown]
        config = calibration(self.recipe, self.model)
        shares = min(cluster.tensor * cluster.data, self._amount.fitted) if self._has_data else 0
        cost = calibration_cost(self.model, self.target, axes, config, basis=self.basis, shares=shares, stages=tried)
        if (needed := max(cost.share_bytes, cost.fit_bytes)) > config.memory_limit:
            raise PlanError(
                f"calibrate.memory_limit is {config.memory_limit:,} bytes, and fitting {', '.join(axes)} takes about "
                f"{needed:,} in one process; use calibrate.memory_limit={-(-needed // 2**30)}GiB, or "
                f"transfer.analysis=wavelet, which averages"
            )
        return cost


def held(shares: int, nbytes: float) -> str:
    """The memory of so many processes, each of which holds so many bytes."""
    return f"{size(nbytes)} of memory" + (f" in each of {shares} processes" if shares > 1 else "")
