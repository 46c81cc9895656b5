"""Making a plan of two models, a policy, a mesh and a memory limit."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from bot_dist.errors import PlanError, RecipeError, nearest
from bot_dist.model import Model, Weight
from bot_dist.operators import Diagonal, Fitted, OperatorSpec, Resample, filters
from bot_dist.plan import rules
from bot_dist.plan.axis_plan import AxisPlan, Copies
from bot_dist.plan.cost import dual_bytes
from bot_dist.plan.details import Details, ModuleDetails, detail_bands
from bot_dist.plan.fitted_table import OperatorTable, Place
from bot_dist.plan.function_kept import function_kept
from bot_dist.plan.module_plan import DetailPlan, ModulePlan, WeightPlan
from bot_dist.plan.optimizer_state import moments_of
from bot_dist.plan.plan import TransferPlan
from bot_dist.plan.rules import RESIDUAL, axis_rule
from bot_dist.plan.tiling import tiled
from bot_dist.recipe import TransferConfig
from bot_dist.tensors import Cut, Mesh
from bot_dist.tensors.axes import Role


@dataclasses.dataclass(frozen=True, kw_only=True)
class SourceModule:
    """Facts about one module of the source that a plan must know."""

    nbytes: int
    """Bytes on the source's storage."""
    dtype: str
    """The dtype in which the module is read."""
    learning_rate_factor: float = 1.0
    """The factor on Adam's learning rate that earlier transfers have given the module."""


def target_model(
    source: Model,
    target: Mapping[str, int],
    config: TransferConfig,
    *,
    rotated: bool = False,
    layers: Sequence[int] = (),
) -> Model:
    """The model that a transfer makes: of the sizes ``target``, its head untied where it must be. ``rotated`` says that
    the residual width is rotated, ``layers`` which of the source's layers are kept, if whole ones are."""
    model = source.resized(target, config.depth, layers)
    lazy = config.width_of(RESIDUAL, source.sizes[RESIDUAL], model.sizes[RESIDUAL]) == "lazy"
    if source.tied and (rotated or (lazy and source.family.norm == "layer")):
        return Model(model.family, {**model.config, "tie_word_embeddings": False})
    return model


def make_plan(
    source: Model,
    target: Model,
    config: TransferConfig,
    mesh: Mesh,
    *,
    modules: Mapping[str, SourceModule],
    source_id: str,
    whole_rows: bool = False,
    details: Details | None = None,
    fitted: OperatorTable | None = None,
    layers: Sequence[int] = (),
    literal: bool = False,
    exact: bool = False,
    notes: Sequence[str] = (),
    optimizer_step: int | None = None,
) -> TransferPlan:
    """Plan the transfer. ``modules`` describes the source's weights by name; ``whole_rows`` says that the source can't
    read part of a row. With ``details`` the source is read in Mallat's layout, and its bands are put together again.
    ``fitted`` operators take the place of others, ``layers`` of the source that of the layer axis's. ``literal``: they
    are all that is done, without factors on learning rates and, unless ``exact``, on weights. ``notes`` are added to
    the plan's own. With an ``optimizer_step`` AdamW's moments are carried along, which are those after so many steps.

    Raises PlanError when a policy does not fit, an axis can't be cut over the mesh, or no tile fits the memory limit
    (naming the smallest limit that works).
    """
    assert source.family is target.family
    _check_wavelets(source, config)
    places = fitted or {}
    residual_fitted = any(w.uses[i].axis == RESIDUAL for w in target.weights for i, _ in places.get(w.name, {}))
    planned: list[ModulePlan] = []
    weights: list[WeightPlan] = []
    bands: list[DetailPlan] = []
    for weight in target.weights:
        origin = _origin(source, weight)
        known = modules[origin.name]
        axes = _axes(source, target, weight, config, mesh, details, places.get(weight.name, {}), layers)
        dtype = known.dtype if config.dtype == "source" else config.dtype
        tells_apart = not literal and any(a.copies == "apart" for a in axes)
        module = WeightPlan(
            weight=weight,
            origin=origin,
            axes=axes,
            factors=()
            if details or (literal and not exact)
            else _factors(source, target, weight, config, residual_fitted),
            dtype=dtype,
            chunk=(),
            source_bytes=known.nbytes,
            source_dtype=known.dtype,
            whole_rows=whole_rows,
            init_std=target.init_std(weight),
            noise=config.noise_on_copies(dtype) if tells_apart else 0.0,
            seed=config.seed,
            learning_rate_factor=known.learning_rate_factor * (1.0 if literal else _learning_rate_factor(weight, axes)),
        )
        details_kept = [*detail_bands(module)] if config.keep_details else []
        weights.append(module)
        bands += details_kept
        planned += [module, *details_kept]
        if optimizer_step is not None:
            grows = target.sizes["layer"] > source.sizes["layer"]
            inserts = grows and config.depth_of(grows=True) == "identity"
            planned += moments_of(module, inserts=inserts)
    if config.keep_details and not bands:
        raise PlanError("transfer.keep_details: no axis shrinks, so nothing is dropped; use keep_details false")
    if config.noise not in ("auto", 0) and not any(module.noise for module in weights):
        raise PlanError("transfer.noise: no axis that a weight reads grows by copies, so there is no symmetry to break")
    return TransferPlan(
        source=source,
        target=target,
        source_id=source_id,
        modules=tiled(planned, config.memory_limit, mesh.size),
        mesh=mesh,
        memory_limit=config.memory_limit,
        allow_nonfinite=config.allow_nonfinite,
        optimizer_step=optimizer_step,
        function_kept=None if literal else function_kept(source.family, weights),
        notes=(*_notes(source, target, config), *_detail_notes(weights, bands, source.sizes["layer"]), *notes),
    )


def _check_wavelets(source: Model, config: TransferConfig) -> None:
    """Raise RecipeError on an unknown wavelet, and on a wavelet or width policy for a module or axis that the family
    does not have, even where it would not be used."""
    named = config.wavelet if isinstance(config.wavelet, dict) else {"": config.wavelet}
    for wavelet in named.values():
        filters(wavelet)
    names = {w.name for w in source.weights}
    modules = {".".join(name.split(".")[: i + 1]) for name in names for i in range(name.count(".") + 1)}
    axes = {use.axis for w in source.weights for use in w.uses if use.role != "fixed"}
    keys = [("wavelet", key, {*axes, "layer"}) for key in named if key]
    keys += [("width", axis, axes) for axis in config.width] if isinstance(config.width, dict) else []
    for option, key, known in keys:
        module, _, axis = key.rpartition(":")
        if module and module not in modules:
            raise RecipeError(
                f"transfer.{option}: family '{source.family.name}' has no module {module!r}; {nearest(module, modules)}"
            )
        if axis not in known:
            raise RecipeError(
                f"transfer.{option}: family '{source.family.name}' has no axis {axis!r} to choose for; "
                f"{nearest(axis, known)}" + ("; for layers set transfer.depth" if axis == "layer" else "")
            )


def _origin(source: Model, weight: Weight) -> Weight:
    """The source's weight that ``weight`` is made of: its own, or the table that an untied head was tied to."""
    if weight in source.weights:
        return weight
    return next(w for w in source.weights if w.kind == "table" and _axis_names(w) == _axis_names(weight))


def _axis_names(weight: Weight) -> list[str]:
    return [use.axis for use in weight.uses]


def _axes(
    source: Model,
    target: Model,
    weight: Weight,
    config: TransferConfig,
    mesh: Mesh,
    details: Details | None,
    fitted: Mapping[Place, OperatorSpec],
    layers: Sequence[int],
) -> tuple[AxisPlan, ...]:
    uses = [(use.axis, use.role) for use in weight.uses]
    cut_axis = next((axis for axis in source.family.tensor_axes if axis in dict(uses)), None)
    tied_table = _origin(source, source.head) if target.tied and source.head is not None else None
    if weight.layered:
        uses.insert(0, ("layer", "layer"))
    axes: list[AxisPlan] = []
    for axis, role in uses:
        n_source, n_target = source.sizes[axis], target.sizes[axis]
        where = f"{weight.name}: axis '{axis}'"
        rule = axis_rule(source.family, weight, axis, role, n_source, n_target, config)
        spec = _query_slots(source, target, weight, config) if axis == "qkv" else rule.spec
        if role == "layer" and layers:
            spec = rules.kept_layers(source.family, weight, layers, n_source, config.depth)
        spec.check(where)
        cut = Cut(size=n_target, degree=min(mesh.tensor, n_target)) if axis == cut_axis else None
        axes.append(
            AxisPlan(
                axis=axis,
                n_source=n_source,
                n_target=n_target,
                spec=spec,
                tile=cut.tile if cut else n_target,
                cut=cut,
                copies=_copies(spec, axis, role, where, config) if weight.kind == "matrix" else "",
                fill=rule.fill,
                centred=rule.centred and weight != tied_table,
            )
        )
    for place, spec in fitted.items():
        _fit(axes, weight, place, spec)
    if details:
        _restore(axes, weight, details.modules[weight.name])
    return tuple(axes)


def _query_slots(source: Model, target: Model, weight: Weight, config: TransferConfig) -> OperatorSpec:
    """The operator along the slots of a fused weight: that of queries takes the correction of the softmax scale."""
    n = source.sizes["qkv"]
    if not weight.query or "head_dim" not in _changed(source, target):
        return Resample(n_source=n, n_target=n)
    factor = rules.query_factor(config, source.sizes["head_dim"], target.sizes["head_dim"])
    return Diagonal(n_source=n, n_target=n, factors=(factor, *[1.0] * (n - 1)))


def _copies(spec: OperatorSpec, axis: str, role: Role, where: str, config: TransferConfig) -> Copies:
    """How noise treats the copies that the operator ``spec`` makes. Raises PlanError, naming the axis by ``where``,
    where noise is asked for and the operator makes no copies of what is read, but mixes it."""
    if config.noise_on_copies("float32") == 0 or spec.n_target <= spec.n_source:
        return ""
    if role == "write":
        return "alike" if axis == RESIDUAL and spec.takes_origin else ""
    if role == "read" and spec.takes_origin:
        return "apart"
    if role == "read" and spec.mixes and config.noise != "auto":
        raise PlanError(
            f"{where} ({spec.n_source} → {spec.n_target}) is resampled by {spec}, which makes no copies, so "
            f"transfer.noise would be seen; use noise 0, an integer ratio of haar, or width copy"
        )
    return ""


def _fit(axes: list[AxisPlan], weight: Weight, place: Place, spec: OperatorSpec) -> None:
    """Put a fitted operator in the place of those of consecutive ``axes``. Raises PlanError if it is of another size,
    or differs per layer where the weight has no layers."""
    first, spans = place[0] + weight.layered, place[1]
    taken = axes[first : first + spans]
    sizes = math.prod(a.n_source for a in taken), math.prod(a.n_target for a in taken)
    if (spec.n_source, spec.n_target) != sizes:
        names = " × ".join(a.axis for a in taken)
        raise PlanError(
            f"{weight.name}: the operator '{spec}' on {names} is {spec.n_target} × {spec.n_source}, "
            f"wanted {sizes[1]} × {sizes[0]}"
        )
    if spec.per_layer and not weight.layered:
        raise PlanError(f"{weight.name}: the operator '{spec}' differs per layer, and this weight has no layers")
    fill = taken[0].fill if spec.padded else "neutral"
    taken = [dataclasses.replace(a, fill=fill, copies="", centred=False) for a in taken]
    axes[first] = dataclasses.replace(taken[0], spec=spec, spans=len(taken))
    for i, a in enumerate(taken[1:], start=first + 1):
        axes[i] = dataclasses.replace(a, spec=None, tile=a.n_target, cut=None)


def _restore(axes: list[AxisPlan], weight: Weight, details: ModuleDetails) -> None:
    """Put operators into ``axes`` that undo those which have shrunk a module; its source is in Mallat's layout then.
    Raises PlanError where one can't be undone."""
    first = 0
    for shrunk in details.operators:
        stop = first + len(shrunk.axes)
        if shrunk.spec is not None:
            spec = shrunk.spec.restoring()
            spec.check(f"{weight.name}: axis '{axes[first].axis}'")
            own, *others = (dataclasses.replace(a, copies="") for a in axes[first:stop])
            axes[first] = dataclasses.replace(own, n_source=spec.n_source, spec=spec, spans=stop - first)
            axes[first + 1 : stop] = [
                dataclasses.replace(a, n_source=1, spec=None, tile=a.n_target, cut=None) for a in others
            ]
        first = stop


def _changed(source: Model, target: Model) -> set[str]:
    return {axis for axis, n in source.sizes.items() if target.sizes[axis] != n}


def _factors(
    source: Model, target: Model, weight: Weight, config: TransferConfig, fitted: bool
) -> tuple[tuple[str, float], ...]:
    """Factors on the whole weight that the family asks for besides the operators, by the axis that changes."""
    changed, factors = _changed(source, target), []
    if RESIDUAL in changed:
        n_source, n_target = source.sizes[RESIDUAL], target.sizes[RESIDUAL]
        root = math.sqrt(n_source / n_target)
        factor = root if weight.root_width else 1.0
        if target.tied and weight.name in source.family.before_head:
            table_is_scaled = any(w.root_width for w in source.weights)
            head = n_source / n_target if fitted else rules.tied_head_factor(config, n_source, n_target)
            factor = head / (root if table_is_scaled else 1.0)
        factors.append((RESIDUAL, factor))
    if "head_dim" in changed and weight.query and "qkv" not in _axis_names(weight):
        factors.append(("head_dim", rules.query_factor(config, source.sizes["head_dim"], target.sizes["head_dim"])))
    return tuple((axis, factor) for axis, factor in factors if factor != 1)


def _learning_rate_factor(weight: Weight, axes: tuple[AxisPlan, ...]) -> float:
    roles: list[Role] = [use.role for use in weight.uses]
    if weight.layered:
        roles.insert(0, "layer")
    factor = 1.0
    restored = [(a.spec.of_weights, role) for a, role in zip(axes, roles, strict=True) if a.spec and a.restores]
    for of, role in restored:  # from what the store has
        factor /= rules.learning_rate_factor(weight, role, of.n_source, of.n_target, of)
    if restored:
        return factor
    for a, role in zip(axes, roles, strict=True):
        factor *= rules.learning_rate_factor(weight, role, a.n_source, a.n_target, a.spec)
    return factor


def _notes(source: Model, target: Model, config: TransferConfig) -> tuple[str, ...]:
    """Notes for the user about the plan: why a head is untied."""
    notes = []
    if source.tied and target.head is not None and not target.tied:
        more = target.parameter(target.head).size
        lazily = target.sizes[RESIDUAL] > source.sizes[RESIDUAL] and config.basis != "rotation"
        notes.append(
            f"the head is untied ({more:,} parameters more): a tied one can't keep its function when '{RESIDUAL}' "
            f"{'grows lazily under LayerNorm' if lazily else 'is rotated'}"
        )
    return tuple(notes)


def _detail_notes(weights: Sequence[WeightPlan], bands: Sequence[DetailPlan], layers: int) -> list[str]:
    """Notes for the user about details: how many are kept beside the target, and when they can be given back."""
    if not bands:
        return []
    every = [a for m in weights for a in m.axes]
    axes = {a.axis for a in every if a.n_target < a.n_source}
    values = sum(math.prod(m.target_shape()) for m in bands)
    notes = [f"details of {', '.join(sorted(axes))} are kept: {values:,} values beside the target's own"]
    fitted = {a.spec.name: a.spec for a in every if isinstance(a.spec, Fitted)}
    if nbytes := sum(dual_bytes(spec, layers) for spec in fitted.values()):
        notes.append(f"what undoes the fitted matrices takes {nbytes:,} bytes beside them")
    if "layer" in axes and any(spec.per_layer for spec in fitted.values()):
        notes.append("what is fitted differs per layer, so it is undone only together with the layers")
    return notes
