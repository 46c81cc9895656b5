"""Growing by copies of units and heads, whose readers take each copy's part.

- HyperCloning (Samragh et al., *Scaling Smart*, arXiv 2409.12903), for integer ratios:
  ``W.repeat(n_out, n_in) / n_in``; biases, norms and embeddings are tiled; heads are repeated, and keep their width;
  the head's input is divided by n. Without its optional noise.
- bert2BERT's function-preserving initialisation (FPI; Chen et al., ACL 2022, arXiv 2110.07143; as Net2Net), for any:
  unit i is a copy of unit i mod n, where the paper draws those beyond n. Off integers the residual stream's norms see
  some units more often than others, and the function is kept only nearly.
"""

from __future__ import annotations

from bot_dist.errors import PlanError
from bot_dist.evaluate.baselines.rule import Rule, changed, only_grows, refuse_axes
from bot_dist.families import Model
from bot_dist.plan import Fitted
from bot_dist.wavelets import OperatorSpec


def hypercloning(source: Model, target: Model) -> Rule:
    for axis, (before, after) in changed(source, target).items():
        if axis != "layer" and after % before:
            raise PlanError(
                f"axis '{axis}' ({before} → {after}): HyperCloning is for integer ratios; use a multiple of {before}, "
                f"or bert2bert-fpi"
            )
    return Rule(name="HyperCloning", operators=_copies("HyperCloning", source, target), exact=True)


def fpi(source: Model, target: Model) -> Rule:
    return Rule(name="bert2BERT, FPI", operators=_copies("bert2BERT", source, target), exact=True)


def _copies(what: str, source: Model, target: Model) -> Fitted:
    only_grows(what, source, target)
    refuse_axes(what, source, target, "head_dim", "position")
    return {
        weight.name: {
            (i, 1): OperatorSpec(
                n_source=source.sizes[use.axis],
                n_target=target.sizes[use.axis],
                policy="select",
                indices=tuple(j % source.sizes[use.axis] for j in range(target.sizes[use.axis])),
                split=1.0 if use.role == "read" else 0.0,
            )
            for i, use in enumerate(weight.uses)
            if target.sizes[use.axis] != source.sizes[use.axis]
        }
        for weight in target.weights
    }
