"""Which operators a transfer takes from statistics of the source: the second table beside ``rules.py``.

Shrinking adapts to the signal: units and heads are split into those that are kept and those that are dropped, which
the kept ones predict (lifting); the residual width is first rotated, where the family allows it, so that its leading
coordinates hold the most energy (a Karhunen–Loève basis), else its coordinates of most energy are kept, and maps see
the dropped ones as these predict them (but a tied head, which is the embedding). The table names the matrices and says
where each acts; what is in them is fitted later (``calibrate``).

On the residual width the formula of ``rules.py`` holds, write √(n_t/n_s) · Q and read √(n_s/n_t) · Q. A rotation is
invisible only to a norm without weights: those go into the maps that read, and the norms are constant. They keep the
size that their weights had, as a power of two, so that the maps that read keep theirs, and Adam's steps theirs beside
it; where blocks are averaged, all blocks' norms the same, for what reads them is averaged apart. LayerNorm never puts
out the all-ones direction, so that carries the norm's biases: they are constant, and the maps that read have what
the biases would have given them as their mean.

Where key/value heads and the query heads that share one change in opposite directions, nothing is fitted: all query
heads stay, in other groups, and key/value heads are copied, or the mean of those that become one (as in GQA,
arXiv 2305.13245).

What grows can be fitted too: its loudest units, heads or coordinates have the most copies (``spread``), each copy being
read with its part; or the residual width is rotated before new coordinates are put behind the old ones (``lazy``).

Where the fit follows the shrunk model block by block, what is written into the residual stream is corrected too: such
maps have a matrix of their own per block in the place of √(n_t/n_s) · Q, and all norms within blocks are as after a
rotation.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterator, Mapping

from bot_dist.errors import PlanError
from bot_dist.model import Family, Model, Weight
from bot_dist.operators import (
    Constant,
    Copy,
    Fitted,
    FittedConstant,
    FittedLifting,
    FittedMatrix,
    FittedSelection,
    OperatorSpec,
    Resample,
    Select,
)
from bot_dist.plan.fitted_names import FittedName, owner_of
from bot_dist.plan.rules import RESIDUAL
from bot_dist.recipe import Basis, TransferConfig

Place = tuple[int, int]
"""The axes that an operator acts on together, among ``Weight.uses``: the first, and how many."""
OperatorTable = Mapping[str, Mapping[Place, OperatorSpec]]
"""Per module, operators that take the place of those of ``rules.py``."""

HEADS = ("kv_heads", "group", "heads")
ORDER = {"layer": ("layer",), "embed": ("embed",), "heads": HEADS, "mlp": ("mlp",)}
"""What is fitted, in this order, and the axes that each is about."""


def norm_bias(n: int) -> float:
    """What a LayerNorm's bias holds after a rotation, along all of ``n`` coordinates: of length 1, so that what reads
    it learns as fast from it as from a bias of its own."""
    return 1 / math.sqrt(n)


def rotation_refused(family: Family) -> str | None:
    """Why the family's function would change with a rotation of the residual width; None where it does not."""
    if family.post_norm:
        return f"in family '{family.name}' every sublayer's sum is normalised with weights, one per coordinate"
    if any(w.into_residual and family.norm_of(w) for w in family.weights):
        return f"in family '{family.name}' a norm with a weight per coordinate writes into the residual stream"
    return None


def basis_of(source: Model, target: Model, wanted: Basis) -> Basis:
    """``rotation`` or ``permutation`` of the residual width; where it grows, a rotation only if that is ``wanted``.
    Raises PlanError where a rotation is asked for in vain."""
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
    """What of ``ORDER`` shrinks, and is to be fitted: layers where whole ones are kept, heads where they keep their
    width."""
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
    """What of ``ORDER`` grows by what is fitted. Raises PlanError where policies do not go together."""
    found = []
    for name in ("embed", "heads", "mlp"):
        sizes = {axis: (source.sizes[axis], target.sizes[axis]) for axis in ORDER[name] if axis in source.sizes}
        policies = {config.width_of(axis, *change) for axis, change in sizes.items() if change[1] > change[0]}
        if policies == {"spread"} and all(after >= before for before, after in sizes.values()):
            found.append(name)
        elif "spread" in policies:
            raise PlanError(f"transfer.width: {', '.join(sizes)} grow by spread together, or not at all")
        if name == RESIDUAL and policies and config.basis == "rotation":
            if policies != {"lazy"}:
                raise PlanError(
                    f"transfer.basis: a rotation puts new coordinates behind the old ones, and '{RESIDUAL}' grows by "
                    f"{', '.join(policies)}; use width {{{RESIDUAL}: lazy}}, or basis auto"
                )
            found.append(name)
    return found


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


def adaptive(
    source: Model,
    target: Model,
    basis: Basis,
    axes: Collection[str],
    *,
    sequential: bool = False,
    averaged: bool = False,
) -> dict[str, dict[Place, OperatorSpec]]:
    """The fitted operators along ``axes`` (``embed``, ``mlp``, ``heads``), with names for handles and without digests;
    ``basis`` is what ``basis_of`` gave. ``sequential``: with what corrects the maps that write into the stream;
    ``averaged``: of ``averages``. What grows is spread, but the residual width in a rotated basis."""
    found: dict[str, dict[Place, OperatorSpec]] = {}
    for weight in target.weights:
        for i, use in enumerate(weight.uses):
            spec, spans = None, 1
            name = "heads" if use.axis in ("kv_heads", "heads") else use.axis
            grows = any(target.sizes.get(axis, 0) > source.sizes.get(axis, 0) for axis in ORDER.get(name, ()))
            if name == "heads" and regroups(source, target):
                spec, spans = _regrouped(source, target, weight, i)
            elif name in axes and grows and not (name == RESIDUAL and basis == "rotation"):
                spec, spans = _spread(source, target, weight, i)
            elif use.axis == RESIDUAL and sequential and weight.layered and weight.into_residual:
                spec = _matrix(FittedName(axis=RESIDUAL, part="write", owner=owner_of(weight.name)))
            elif use.axis == RESIDUAL and "embed" in axes:
                if basis == "rotation" or (sequential and weight.layered):
                    spec = _rotated(source, target, weight, use.role, averaged)
                else:
                    spec = _permuted(source, target, weight, use.role, predicts=not sequential)
            elif use.axis == "mlp" and "mlp" in axes:
                owner = owner_of(target.reader_of(weight, "mlp").name)
                if use.role == "read":
                    spec = _lifting(FittedName(axis="mlp", part="read", owner=owner))
                else:
                    spec = _selection(FittedName(axis="mlp", part="kept", owner=owner))
            elif name == "heads" and name in axes:
                spec, spans = _heads(target, weight, i)
            if spec is None:
                continue
            names = [u.axis for u in weight.uses[i : i + spans]]
            n_source, n_target = (math.prod(model.sizes[name] for name in names) for model in (source, target))
            sized = dataclasses.replace(spec, n_source=n_source, n_target=n_target)
            centred = use.axis == RESIDUAL and source.family.norm == "layer"  # then the all-ones direction may be empty
            if centred and isinstance(sized, FittedMatrix) and not grows:
                sized = dataclasses.replace(sized, rank=n_target - 1)
            found.setdefault(weight.name, {})[i, spans] = sized
    return found


def operators(fitted: OperatorTable) -> dict[str, Fitted]:
    """What must be fitted, by name. Raises PlanError where two modules mean different operators by one name."""
    found: dict[str, tuple[str, Fitted]] = {}
    for module, _, spec in _kept(fitted):
        first, kept = found.setdefault(spec.name, (module, spec.as_kept()))
        if kept != spec.as_kept():
            raise PlanError(
                f"{first} and {module} take one fitted operator, {spec.name}, which is {kept.change} in one and "
                f"{spec.change} in the other; each must have an operator of its own"
            )
    return {name: kept for name, (_, kept) in found.items()}


def placed(fitted: OperatorTable, stored: Mapping[str, Fitted]) -> dict[str, dict[Place, OperatorSpec]]:
    """The table with what has been fitted."""
    found = {name: dict(places) for name, places in fitted.items()}
    for module, place, spec in _kept(fitted):
        kept = stored[spec.name]
        found[module][place] = dataclasses.replace(spec, handle=kept.handle, digest=kept.digest)
    return found


def _kept(fitted: OperatorTable) -> Iterator[tuple[str, Place, Fitted]]:
    for module, places in fitted.items():
        for place, spec in places.items():
            if isinstance(spec, Fitted):
                yield module, place, spec


def _matrix(name: FittedName, *, per_layer: bool = True, gain: float = 1.0) -> FittedMatrix:
    return FittedMatrix(n_source=1, n_target=1, handle=str(name), per_layer=per_layer, gain=gain)


def _lifting(name: FittedName, *, per_layer: bool = True, gain: float = 1.0) -> FittedLifting:
    return FittedLifting(n_source=1, n_target=1, handle=str(name), per_layer=per_layer, gain=gain)


def _selection(name: FittedName, *, per_layer: bool = True, gain: float = 1.0, split: float = 0.0) -> FittedSelection:
    return FittedSelection(n_source=1, n_target=1, handle=str(name), per_layer=per_layer, gain=gain, split=split)


def _rotated(source: Model, target: Model, weight: Weight, role: str, averaged: bool) -> OperatorSpec:
    root = math.sqrt(target.sizes[RESIDUAL] / source.sizes[RESIDUAL])
    if norm := source.family.norm_of(weight):
        if role == "write":
            bias = norm_bias(min(source.sizes[RESIDUAL], target.sizes[RESIDUAL]))
            return Constant(n_source=1, n_target=1, value=bias)
        per_layer = weight.layered and not averaged
        name = FittedName(axis=RESIDUAL, part="gain", owner=norm)
        return FittedConstant(n_source=1, n_target=1, handle=str(name), per_layer=per_layer)
    if role == "read":
        name = FittedName(axis=RESIDUAL, part="read", owner=source.family.norm_before(weight))
        return _matrix(name, per_layer=weight.layered)
    return _matrix(FittedName(axis=RESIDUAL, part="write"), per_layer=False, gain=root)


def _permuted(source: Model, target: Model, weight: Weight, role: str, *, predicts: bool = False) -> OperatorSpec:
    ratio = target.sizes[RESIDUAL] / source.sizes[RESIDUAL]
    root = 1.0 if source.family.post_norm else math.sqrt(ratio)
    gain = 1.0 if source.family.norm_of(weight) else (1 / root if role == "read" else root)
    if predicts and role == "read" and (reader := source.family.read_with(weight)):
        name = FittedName(axis=RESIDUAL, part="read", owner=reader)
        return _lifting(name, per_layer=weight.layered, gain=gain)
    return _selection(FittedName(axis=RESIDUAL, part="kept"), per_layer=False, gain=gain)


def _spread(source: Model, target: Model, weight: Weight, i: int) -> tuple[OperatorSpec, int]:
    """Copies: what reads the c copies of a unit or head takes 1/c of each, what reads or writes those of a coordinate
    of the residual stream 1/√c."""
    use = weight.uses[i]
    if use.axis == RESIDUAL:
        kept = _permuted(source, target, weight, use.role)
        split = 0.0 if source.family.norm_of(weight) else 0.5
        return _selection(FittedName(axis=RESIDUAL, part="spread"), per_layer=False, gain=kept.gain, split=split), 1
    split = 1.0 if use.role == "read" else 0.0
    if use.axis == "mlp":
        owner = owner_of(target.reader_of(weight, "mlp").name)
        return _selection(FittedName(axis="mlp", part="spread", owner=owner), split=split), 1
    heads, part = _composite(weight, i)
    return _selection(_of_heads(target, weight, part), split=split), heads


def _regrouped(source: Model, target: Model, weight: Weight, i: int) -> tuple[OperatorSpec, int]:
    """Every query head as it is; copies of the key/value heads, or means of those that become one. Raises PlanError
    where a query head would have no key/value head of its own."""
    (kv, group), (new_kv, new_group) = (
        [model.sizes[axis] for axis in ("kv_heads", "group")] for model in (source, target)
    )
    heads, new_heads = kv * group, new_kv * new_group
    if new_heads != heads:
        first = (
            f"first target.heads={new_heads} target.kv_heads={new_heads // group}, which keep {group} per key/value "
            f"head"
        )
        raise PlanError(
            f"target heads={new_heads} with kv_heads={new_kv}, from {heads} with {kv}: query heads change in number, "
            f"or share key/value heads otherwise, not both in one step; "
            + (f"{first}, or " if new_heads % group == 0 else "")
            + f"set target.heads={heads}"
        )
    if new_kv % kv and kv % new_kv:
        known = [n for n in range(1, heads + 1) if heads % n == 0 and not (n % kv and kv % n)]
        raise PlanError(
            f"target kv_heads={new_kv}, from {kv}: {heads} query heads can't share them as they do now; set "
            f"target.kv_heads={' or '.join(map(str, known))}"
        )
    spans, name = _composite(weight, i)
    if name == "query":
        return Select(n_source=1, n_target=1, indices=tuple(range(heads))), spans
    return (Resample if new_kv < kv else Copy)(n_source=1, n_target=1), spans


def _composite(weight: Weight, i: int) -> tuple[int, str]:
    """How many axes, from the i-th on, are those of heads, and whose heads they are."""
    names = [use.axis for use in weight.uses[i:]]
    heads = 2 if names[:2] == ["kv_heads", "group"] else 1
    return heads, "keyvalue" if names[0] == "kv_heads" and heads == 1 else "query"


def _of_heads(model: Model, weight: Weight, part: str) -> FittedName:
    return FittedName(axis="heads", part=part, owner=owner_of(model.reader_of(weight, "kv_heads", "heads").name))


def _heads(model: Model, weight: Weight, i: int) -> tuple[OperatorSpec, int]:
    """Whole heads are kept or dropped; what reads them sees their coordinates, all together."""
    heads, part = _composite(weight, i)
    if weight.uses[i].role == "read":
        return _lifting(_of_heads(model, weight, "read")), heads + 1
    return _selection(_of_heads(model, weight, part)), heads
