"""What shrinking drops: the detail bands that a plan keeps, and how a later plan puts them back.

Along one axis ``d = D · w``, and ``w = R · [a; d]`` (``wavelets.details``). Over several axes there is a band for every
choice of approximation (``a``) or detail (``d``) per axis, as the seven detail bands of a 3-D DWT. Laid out side by
side along every axis, first ``a`` then ``d`` (Mallat's layout), they are one tensor of the original shape.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bot_dist.errors import PlanError
from bot_dist.families import Model
from bot_dist.plan.transfer import AxisPlan, ModulePlan
from bot_dist.wavelets import OperatorSpec, check_supported, spec_from_json


@dataclass(frozen=True, kw_only=True)
class ModuleDetails:
    """How one module was shrunk."""

    operators: tuple[tuple[str, OperatorSpec | None], ...]
    """Its axes in order (one may come twice), and what changed it along them."""
    factors: Mapping[str, float]
    """``ModulePlan.factors`` of its approximation band."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """How a model was shrunk whose details were kept."""

    config: Mapping[str, Any]
    """Of the model before."""
    modules: Mapping[str, ModuleDetails]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Details:
        modules = {
            name: ModuleDetails(
                operators=tuple((axis, spec and spec_from_json(spec)) for axis, spec in module["operators"]),
                factors=module["factors"],
            )
            for name, module in data["modules"].items()
        }
        return Details(config=data["config"], modules=modules)

    def along(self, axes: Collection[str]) -> Details:
        """Only what was done because these axes changed."""
        ours = {*axes, *(("qkv",) if "head_dim" in axes else ())}
        modules = {
            name: ModuleDetails(
                operators=tuple((axis, spec if axis in ours else None) for axis, spec in m.operators),
                factors={axis: factor for axis, factor in m.factors.items() if axis in ours},
            )
            for name, m in self.modules.items()
        }
        return Details(config=self.config, modules=modules)

    @property
    def axes(self) -> list[str]:
        """Axes that were changed."""
        changed = {axis for m in self.modules.values() for axis, spec in m.operators if spec is not None}
        return sorted(changed - {"qkv"})  # which changes along with head_dim

    def restored(self, stored: Model, target: Model) -> frozenset[str]:
        """The axes along which ``target`` has its size from before the shrinking, if along all others it has the size
        that is stored; else none."""
        before = Model(target.family, dict(self.config)).sizes
        changed = {axis for axis, n in target.sizes.items() if n != stored.sizes[axis]}
        return frozenset(changed) if all(target.sizes[a] == before[a] for a in changed) else frozenset()

    def restored_model(self, target: Model, axes: Collection[str]) -> Model:
        """``target`` with all that its configuration has lost: the whole one, if it has its old sizes along every axis;
        else what is per layer, if the layers are restored."""
        if Model(target.family, dict(self.config)).sizes == target.sizes:
            return Model(target.family, dict(self.config))
        fields = target.family.per_layer_fields if "layer" in axes else ()
        kept = {key: value for key, value in target.config.items() if key not in fields}
        return Model(target.family, {**kept, **{key: self.config[key] for key in fields if key in self.config}})


def details_of(source: Model, modules: tuple[ModulePlan, ...]) -> Details:
    """What must be known to undo ``modules``."""
    return Details(
        config=source.config,
        modules={
            m.name: ModuleDetails(
                operators=tuple((a.axis, a.spec if a.changes else None) for a in m.axes), factors=dict(m.factors)
            )
            for m in modules
            if not m.band
        },
    )


def detail_bands(module: ModulePlan) -> Iterator[ModulePlan]:
    """The module's detail bands, one plan each, not yet cut into tiles.

    Raises PlanError where an axis grows: nothing is dropped there, but nothing could be given back either.
    """
    shrinks = []
    for i, a in enumerate(module.axes):
        if a.n_target > a.n_source:
            raise PlanError(
                f"{module.name}: axis '{a.axis}' grows ({a.n_source} → {a.n_target}), and keep_details is for plans "
                f"that only shrink; shrink first and grow from that store, or use keep_details false"
            )
        if a.changes and a.n_target < a.n_source:
            shrinks.append(i)
    for size in range(1, len(shrinks) + 1):
        for chosen in itertools.combinations(shrinks, size):
            axes = tuple(_detail(module, a) if i in chosen else _uncut(a) for i, a in enumerate(module.axes))
            dropped = {module.axes[i].axis for i in chosen}
            yield dataclasses.replace(
                module,
                axes=axes,
                factors=tuple((axis, factor) for axis, factor in module.factors if axis not in dropped),
                band="".join("d" if i in chosen else "a" for i in range(len(axes))),
            )


def _detail(module: ModulePlan, a: AxisPlan) -> AxisPlan:
    assert a.spec is not None
    n = a.n_source - a.n_target
    spec = OperatorSpec(n_source=a.n_source, n_target=n, policy="detail", of=a.spec)
    check_supported(spec, f"{module.name}: axis '{a.axis}'")
    return dataclasses.replace(a, n_target=n, spec=spec, tile=n, cut=None)


def _uncut(a: AxisPlan) -> AxisPlan:
    return dataclasses.replace(a, tile=a.n_target, cut=None)


def restoring(spec: OperatorSpec) -> OperatorSpec:
    """The operator that undoes ``spec``, on the approximation and detail bands side by side."""
    if spec.policy == "diagonal":
        return dataclasses.replace(spec, diagonal=tuple(1 / value for value in spec.diagonal))
    return OperatorSpec(n_source=spec.n_source, n_target=spec.n_source, policy="restore", of=spec)
