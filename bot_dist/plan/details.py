"""Details, which shrinking drops: the bands that a plan keeps, and how a later plan puts them back.

Along one axis ``d = D · w``, and ``w = R · [a; d]`` (``operators.details``). Over several axes there is a band for
every choice of approximation (``a``) or detail (``d``) per axis, as the seven detail bands of a 3-D DWT. Laid out side
by side along every axis, first ``a`` then ``d`` (Mallat's layout), they are one tensor of the original shape.

Operators that were fitted differ in three ways. One that acts on several axes together has its details along the first
of these, all others being 1. What it keeps may be worth fewer numbers than it has (``OperatorSpec.n_details``), and a
constant nothing: then the whole source is its detail. And it may belong to more than its axis: if it differs per source
layer, to the layers, where these have shrunk too; if its axis has not shrunk at all, to all that have.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bot_dist.errors import PlanError
from bot_dist.model import Model
from bot_dist.operators import OperatorSpec, spec_from_json, spec_to_json
from bot_dist.plan.axis_plan import AxisPlan
from bot_dist.plan.module_plan import DetailPlan, ModulePlan, WeightPlan, fields_of
from bot_dist.plan.rules import RESIDUAL


@dataclass(frozen=True, kw_only=True)
class Shrunk:
    """The operator that changed a module along consecutive axes, together."""

    axes: tuple[str, ...]
    spec: OperatorSpec | None
    """The operator; None where the axes did not change."""

    @property
    def constant(self) -> bool:
        """Whether nothing was taken from the source, so that all of it is the detail."""
        return self.spec is not None and self.spec.takes_nothing


@dataclass(frozen=True, kw_only=True)
class ModuleDetails:
    """How one module was shrunk."""

    operators: tuple[Shrunk, ...]
    """The operators along its axes, in their order (a name of an axis may come twice)."""
    factors: Mapping[str, float]
    """Factors on the whole module, per axis whose change asked for one (``ModulePlan.factors``)."""


@dataclass(frozen=True, kw_only=True)
class Details:
    """How a model was shrunk whose details were kept."""

    config: Mapping[str, Any]
    """The configuration of the model before it was shrunk."""
    modules: Mapping[str, ModuleDetails]

    def to_json(self) -> dict[str, Any]:
        modules = {
            name: {
                "operators": [[" ".join(o.axes), o.spec and spec_to_json(o.spec)] for o in module.operators],
                "factors": dict(module.factors),
            }
            for name, module in self.modules.items()
        }
        return {"config": self.config, "modules": modules}

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Details:
        modules = {
            name: ModuleDetails(
                operators=tuple(
                    Shrunk(axes=tuple(axes.split()), spec=spec and spec_from_json(spec))
                    for axes, spec in module["operators"]
                ),
                factors=module["factors"],
            )
            for name, module in data["modules"].items()
        }
        return Details(config=data["config"], modules=modules)

    def at(self, url: str) -> Details:
        """The same with full places of its fitted operators: places within a store become places in that at ``url``."""
        return self._renamed(lambda handle: f"{url}/{handle}")

    def within(self, url: str) -> Details:
        """The same with places of its fitted operators within the store at ``url``, wherever that may be taken to: the
        inverse of ``at``."""
        return self._renamed(lambda handle: handle.removeprefix(f"{url}/"))

    def _renamed(self, named: Callable[[str], str]) -> Details:
        def of(each: Shrunk) -> Shrunk:
            return dataclasses.replace(each, spec=each.spec and each.spec.renamed(named))

        return self._each(of)

    def _each(self, of: Callable[[Shrunk], Shrunk]) -> Details:
        modules = {
            name: dataclasses.replace(m, operators=tuple(of(each) for each in m.operators))
            for name, m in self.modules.items()
        }
        return dataclasses.replace(self, modules=modules)

    def along(self, axes: frozenset[str], stored: Model) -> Details:
        """Only those operators and factors that are due to the change of ``axes``, none of them ``parted``, into those
        of ``stored``."""
        changed = self.changed(stored)
        kept = self._each(lambda o: o if _because_of(o, changed) <= axes else dataclasses.replace(o, spec=None))
        modules = {
            name: dataclasses.replace(m, factors={axis: factor for axis, factor in m.factors.items() if axis in axes})
            for name, m in kept.modules.items()
        }
        return Details(config=self.config, modules=modules)

    def changed(self, stored: Model) -> frozenset[str]:
        """The axes whose size in the ``stored`` model differs from that before it was shrunk."""
        before = Model(stored.family, dict(self.config)).sizes
        return frozenset(axis for axis, n in stored.sizes.items() if n != before[axis])

    def restored(self, stored: Model, target: Model) -> frozenset[str]:
        """The axes along which ``target`` has its size from before the shrinking, if along all others it has the size
        that is stored; else none."""
        before = Model(target.family, dict(self.config)).sizes
        changed = {axis for axis, n in target.sizes.items() if n != stored.sizes[axis]}
        return frozenset(changed) if all(target.sizes[a] == before[a] for a in changed) else frozenset()

    def parted(self, stored: Model, axes: frozenset[str]) -> frozenset[str]:
        """All axes that can be restored only together with some of ``axes``, where these are not all that belong
        together; empty where there are none."""
        changed = self.changed(stored)
        groups = {_because_of(o, changed) for m in self.modules.values() for o in m.operators if o.spec is not None}
        return frozenset().union(*(group for group in groups if group & axes and not group <= axes))

    def restored_model(self, target: Model, axes: Collection[str]) -> Model:
        """``target`` with all that its configuration has lost: the whole one, if it has its old sizes along every axis;
        else what is per layer, if the layers are restored, and the tie of its head, if the residual width is."""
        if Model(target.family, dict(self.config)).sizes == target.sizes:
            return Model(target.family, dict(self.config))
        fields = target.family.per_layer_fields if "layer" in axes else ()
        fields += ("tie_word_embeddings",) if RESIDUAL in axes else ()
        kept = {key: value for key, value in target.config.items() if key not in fields}
        return Model(target.family, {**kept, **{key: self.config[key] for key in fields if key in self.config}})


def _because_of(shrunk: Shrunk, changed: frozenset[str]) -> frozenset[str]:
    """The axes whose change an operator belongs to, and with all of which it is undone."""
    names = {"head_dim" if axis == "qkv" else axis for axis in shrunk.axes}  # slots take its correction
    if not names & changed:
        return changed
    per_layer = shrunk.spec is not None and shrunk.spec.per_layer
    return changed & {*names, *(("layer",) if per_layer else ())}


def details_of(source: Model, modules: tuple[ModulePlan, ...]) -> Details:
    """The details of a plan's ``modules``: all that must be known to undo these."""
    return Details(
        config=source.config,
        modules={
            m.name: ModuleDetails(
                operators=tuple(
                    Shrunk(
                        axes=tuple(b.axis for b in m.axes[i : i + a.spans]),
                        spec=a.spec if a.changes else None,
                    )
                    for i, a in enumerate(m.axes)
                    if a.spec is not None
                ),
                factors=dict(m.factors),
            )
            for m in modules
            if not m.derived
        },
    )


def detail_bands(module: WeightPlan) -> Iterator[DetailPlan]:
    """The detail bands of a module, one plan each, not yet cut into tiles. A head that was tied has none: the table
    that it is made of has them.

    Raises PlanError where an axis grows: nothing is dropped there, but nothing could be given back either.
    """
    shrinks, constant = [], []
    for i, a in enumerate(module.axes):
        if a.n_target > a.n_source:
            raise PlanError(
                f"{module.name}: axis '{a.axis}' grows ({a.n_source} → {a.n_target}), and keep_details is for plans "
                f"that only shrink; shrink first and grow from that store, or use keep_details false"
            )
        if a.constant:
            constant.append(i)
        elif a.spec is not None and a.spec.n_details:
            shrinks.append(i)
    if module.weight != module.origin:
        return
    for size in range(len(shrinks) + 1):
        for chosen in itertools.combinations(shrinks, size):
            if chosen or constant:
                yield _band(module, (*chosen, *constant))


def _band(module: WeightPlan, chosen: tuple[int, ...]) -> DetailPlan:
    """The band that is the detail along the operators of the ``chosen`` axes."""
    axes = [_uncut(a) for a in module.axes]
    letters = ["a"] * len(axes)
    for i in chosen:
        first, *others = module.axes[i : i + module.axes[i].spans]
        axes[i] = _detail(module, first)
        axes[i + 1 : i + first.spans] = [dataclasses.replace(a, n_target=1, tile=1, cut=None) for a in others]
        letters[i : i + first.spans] = ["d"] * first.spans
    dropped = {a.axis for a, letter in zip(axes, letters, strict=True) if letter == "d"}
    changed = {
        "axes": tuple(axes),
        "factors": tuple((axis, factor) for axis, factor in module.factors if axis not in dropped),
    }
    return DetailPlan(**{**fields_of(module), **changed}, band="".join(letters))


def _detail(module: ModulePlan, a: AxisPlan) -> AxisPlan:
    assert a.spec is not None
    spec = a.spec.detail()
    spec.check(f"{module.name}: axis '{a.axis}'")
    return dataclasses.replace(a, n_target=spec.n_target, spec=spec, tile=spec.n_target, cut=None)


def _uncut(a: AxisPlan) -> AxisPlan:
    return dataclasses.replace(a, tile=a.n_target, cut=None)
