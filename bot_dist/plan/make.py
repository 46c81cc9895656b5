"""From two models, a policy, a mesh and a memory limit to a plan."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from bot_dist.axes import ITEMSIZE
from bot_dist.errors import PlanError, RecipeError, nearest
from bot_dist.families import Model, Weight
from bot_dist.plan.gains import row_sum, tied_head_factor
from bot_dist.plan.transfer import AxisPlan, ModulePlan, TransferPlan, step_peak
from bot_dist.recipe import TransferConfig
from bot_dist.sharding import Cut, Mesh, chunk_shape
from bot_dist.wavelets import OperatorSpec, check_supported, filters

STEP_BYTES = 2**26
"""A step's target is at most this large: progress shows, and little is done twice after an interruption."""


def make_plan(
    source: Model,
    target: Model,
    config: TransferConfig,
    mesh: Mesh,
    *,
    source_bytes: Mapping[str, int],
    source_dtype: Mapping[str, str],
    source_id: str,
    whole_rows: bool = False,
) -> TransferPlan:
    """Plan the transfer. ``source_bytes`` and ``source_dtype`` are per module: bytes on storage, and dtype read;
    ``whole_rows`` says that the source can't read part of a row.

    Raises PlanError when a ratio is not supported, an axis can't be cut over the mesh, or no tile fits the memory
    limit (naming the smallest limit that works).
    """
    assert source.family is target.family
    if source.weights != target.weights:
        raise PlanError("source and target differ in whether the head is tied; keep tie_word_embeddings")
    _check_wavelets(source, config)
    modules, smallest = [], 0
    for weight in source.weights:
        dtype = source_dtype[weight.name] if config.dtype == "source" else config.dtype
        module = ModulePlan(
            weight=weight,
            axes=_axes(source, target, weight, config, mesh),
            scale=_scale(source, target, weight, config),
            dtype=dtype,
            chunk=(),
            source_bytes=source_bytes[weight.name],
            whole_rows=whole_rows,
        )
        while not (fits := _peak(module) <= config.memory_limit) or _step_bytes(module) > STEP_BYTES:
            smaller = _smaller(module)
            if smaller is None:
                break
            module = smaller
        if not fits:
            smallest = max(smallest, _peak(module))
        modules.append(dataclasses.replace(module, chunk=chunk_shape(module.shard, ITEMSIZE[dtype])))
    if smallest:
        raise PlanError(
            f"memory limit of {config.memory_limit:,} bytes per actor: no tile is small enough; "
            f"the smallest that works is {smallest:,} bytes"
        )
    return TransferPlan(
        source=source,
        target=target,
        source_id=source_id,
        modules=tuple(modules),
        mesh=mesh,
        memory_limit=config.memory_limit,
    )


def _check_wavelets(source: Model, config: TransferConfig) -> None:
    """Raise RecipeError on a wavelet that does not exist, for an axis that does not, even where none is used."""
    if isinstance(config.wavelet, str):
        filters(config.wavelet)
        return
    for axis, wavelet in config.wavelet.items():
        if axis not in source.sizes:
            raise RecipeError(
                f"transfer.wavelet: family '{source.family.name}' has no axis {axis!r}; {nearest(axis, source.sizes)}"
            )
        filters(wavelet)


def _axes(source: Model, target: Model, weight: Weight, config: TransferConfig, mesh: Mesh) -> tuple[AxisPlan, ...]:
    uses = [(use.axis, use.role) for use in weight.uses]
    cut_axis = next((axis for axis in source.family.tensor_axes if axis in dict(uses)), None)
    if weight.layered:
        uses.insert(0, ("layer", "layer"))
    axes = []
    for axis, role in uses:
        n_source, n_target = source.sizes[axis], target.sizes[axis]
        identity = axis == "layer" and config.depth == "identity" and n_source != n_target
        spec = OperatorSpec(
            n_source=n_source,
            n_target=n_target,
            row_sum=1.0 if identity else row_sum(weight, role, config.gain, n_source, n_target),
            wavelet=config.wavelet if isinstance(config.wavelet, str) else config.wavelet.get(axis, "haar"),
            boundary="symmetric" if axis == "layer" else "periodic",
            policy="identity" if identity else "wavelet",
            silent_copies=identity and weight.into_residual,
        )
        check_supported(spec, f"{weight.name}: axis '{axis}'")
        cut = None
        if axis == cut_axis:
            if mesh.tensor > n_target:
                raise PlanError(
                    f"{weight.name}: axis '{axis}' has {n_target} indices, fewer than the tensor-parallel degree "
                    f"{mesh.tensor}; use a degree of at most {n_target}"
                )
            cut = Cut(size=n_target, degree=mesh.tensor)
        axes.append(AxisPlan(axis=axis, spec=spec, tile=cut.tile if cut else n_target, cut=cut))
    return tuple(axes)


def _scale(source: Model, target: Model, weight: Weight, config: TransferConfig) -> float:
    if source.tied and weight.name in source.family.before_head:
        return tied_head_factor(config.gain, source.sizes["embed"], target.sizes["embed"])
    return 1.0


def _peak(module: ModulePlan) -> int:
    """Of the module's worst step."""
    needed = tuple(a.widest() for a in module.axes)
    return step_peak(module, tuple((0, a.tile) for a in module.axes), needed)


def _step_bytes(module: ModulePlan) -> int:
    return math.prod(a.tile for a in module.axes) * ITEMSIZE[module.dtype]


def _smaller(module: ModulePlan) -> ModulePlan | None:
    """The module with tiles of half the size along its outermost axis that can be cut, None if there is none.

    Rows stay whole: the innermost axis is cut only where tensor parallelism does.
    """
    for i, a in enumerate(module.axes):
        if a.tile > 1 and (a.cut is not None or i < len(module.axes) - 1):
            cut = dataclasses.replace(a.cut, tiles=a.cut.tiles * 2) if a.cut is not None else None
            tile = cut.tile if cut is not None else -(-a.tile // 2)
            if tile < a.tile:
                axes = (*module.axes[:i], dataclasses.replace(a, tile=tile, cut=cut), *module.axes[i + 1 :])
                return dataclasses.replace(module, axes=axes)
    return None
