"""Operators from statistics of the source: a second table, beside that of ``rules.py``.

Shrinking adapts to the signal: units and heads are split into those that are kept and those that are dropped, which
the kept ones predict (lifting); the residual width is first rotated, where the family allows it, so that its leading
coordinates hold the most energy (a Karhunen–Loève basis), else its coordinates of most energy are kept, and maps see
the dropped ones as these predict them (but a tied head, which is the embedding). The table (``fitted_table.py``) names
the matrices and says where each acts; what is in them is fitted later (``fit/``).

On the residual width the formula of ``rules.py`` holds, write √(n_t/n_s) · Q and read √(n_s/n_t) · Q. A rotation is
invisible only to a norm without weights: those go into the maps that read, and the norms are constant. They keep the
size that their weights had, as a power of two, so that the maps that read keep theirs, and Adam's steps theirs beside
it; where blocks are averaged, all blocks' norms the same, for what reads them is averaged apart. LayerNorm never puts
out the all-ones direction, so that carries the norm's biases: they are constant, and the maps that read have what
the biases would have given them as their mean.

What grows can be fitted too: its loudest units, heads or coordinates have the most copies (``spread``), each copy being
read with its part; or the residual width is rotated before new coordinates are put behind the old ones (``lazy``).

Where the fit follows the shrunk model block by block, what is written into the residual stream is corrected too: such
maps have a matrix of their own per block in the place of √(n_t/n_s) · Q, and all norms within blocks are as after a
rotation.
"""

from __future__ import annotations

import math

from bot_dist.errors import PlanError
from bot_dist.model import Family, Model
from bot_dist.plan.rules import RESIDUAL
from bot_dist.recipe import Basis, TransferConfig

HEADS = ("kv_heads", "group", "heads")
ORDER = {"layer": ("layer",), "embed": ("embed",), "heads": HEADS, "mlp": ("mlp",)}
"""The names of what can be fitted, in the order of the fits, and the axes that each is about."""


def norm_bias(n: int) -> float:
    """The value that a LayerNorm's bias holds in all ``n`` coordinates after a rotation: the bias has length 1, so that
    what reads it learns as fast from it as from a bias of its own."""
    return 1 / math.sqrt(n)


def rotation_refused(family: Family) -> str | None:
    """Why the family's function would change with a rotation of the residual width; None where it would not."""
    if family.post_norm:
        return f"in family '{family.name}' every sublayer's sum is normalised with weights, one per coordinate"
    if any(w.into_residual and family.norm_of(w) for w in family.weights):
        return f"in family '{family.name}' a norm with a weight per coordinate writes into the residual stream"
    return None


def basis_of(source: Model, target: Model, wanted: Basis) -> Basis:
    """The basis of the residual width, ``rotation`` or ``permutation``; where the width grows, a rotation only if that
    is ``wanted``. Raises PlanError where a rotation is wanted and would change the function."""
    refused = rotation_refused(source.family)
    if wanted == "auto" and target.sizes[RESIDUAL] > source.sizes[RESIDUAL]:
        return "permutation"
    if wanted == "rotation" and refused:
        raise PlanError(
            f"transfer.basis: rotation would change the function: {refused}; use permutation (the coordinates with the "
            f"most energy are kept)"
        )
    return "permutation" if refused or wanted == "permutation" else "rotation"


def shrinking(source: Model, target: Model, config: TransferConfig) -> list[str]:
    """The names in ``ORDER`` that shrink and are to be fitted: layers where whole ones are kept or merged in pairs,
    heads where they keep their width and their groups."""
    other = {
        "layer": config.depth not in ("auto", "similar", "even", "pairs"),
        "heads": target.sizes["head_dim"] != source.sizes["head_dim"] or regroups(source, target),
    }
    return [
        name
        for name, axes in ORDER.items()
        if any(target.sizes.get(axis, 0) < source.sizes.get(axis, 0) for axis in axes) and not other.get(name)
    ]


def regroups(source: Model, target: Model) -> bool:
    """Whether more key/value heads come to be shared by fewer query heads each, or fewer by more."""
    before, after = ([model.sizes.get(axis, 0) for axis in ("kv_heads", "group")] for model in (source, target))
    return (after[0] - before[0]) * (after[1] - before[1]) < 0


def growing(source: Model, target: Model, config: TransferConfig) -> list[str]:
    """The names in ``ORDER`` that grow by fitted operators. Raises PlanError where policies do not go together."""
    names = []
    for name in ("embed", "heads", "mlp"):
        sizes = {axis: (source.sizes[axis], target.sizes[axis]) for axis in ORDER[name] if axis in source.sizes}
        policies = {config.width_of(axis, *change) for axis, change in sizes.items() if change[1] > change[0]}
        if policies == {"spread"} and all(after >= before for before, after in sizes.values()):
            names.append(name)
        elif "spread" in policies:
            raise PlanError(f"transfer.width: {', '.join(sizes)} grow by spread together, or not at all")
        if name == RESIDUAL and policies and config.basis == "rotation":
            if policies != {"lazy"}:
                raise PlanError(
                    f"transfer.basis: a rotation puts new coordinates behind the old ones, and '{RESIDUAL}' grows by "
                    f"{', '.join(policies)}; use width {{{RESIDUAL}: lazy}}, or basis auto"
                )
            names.append(name)
    return names


def averages(source: Model, target: Model, config: TransferConfig) -> bool:
    """Whether the target's blocks are averages of blocks that differ."""
    before, after = source.sizes["layer"], target.sizes["layer"]
    if after > before:
        return config.depth_of(grows=True) == "wavelet"
    return after < before and config.depth == "wavelet"


def sequential_refused(source: Model, target: Model, config: TransferConfig) -> str | None:
    """Why a fit can't follow the shrunk model block by block; None where it can."""
    if refused := rotation_refused(source.family):
        return refused
    if config.depth == "pairs":
        return "blocks are merged in pairs first"
    shrunk = shrinking(source, target, config)
    readers = source.readers(*(axis for name in shrunk if name != RESIDUAL for axis in ORDER[name]))
    if stray := [w.name for w in readers if not w.into_residual]:
        return f"{', '.join(stray)} would read less, and not write into the residual stream"
    fitted = {axis for name in shrunk for axis in ORDER[name]}
    others = sorted({axis for axis, n in source.sizes.items() if target.sizes[axis] != n} - fitted)
    return f"{', '.join(others)} change by other means" if others else None
