"""The frozen plan: one entry per module, and the steps that it unfolds into."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, TypeVar

from bot_dist.errors import PlanError
from bot_dist.model import Model, Weight
from bot_dist.operators import Operator, OperatorSpec, build_operator, origins
from bot_dist.plan.cost import step_bytes, step_peak
from bot_dist.plan.owners import balanced
from bot_dist.plan.rules import Fill
from bot_dist.results import Row, Shown
from bot_dist.tensors import Box, Cut, Mesh, box_size
from bot_dist.tensors.axes import Parameter, Range
from bot_dist.units import size

DETAILS = "details/"
"""Prefix of the arrays that hold what shrinking dropped."""

MOMENTS = "moments/"
"""Prefix of the arrays that hold AdamW's moments of a parameter; then come the moment's name and the parameter's."""

RESULTS = 1
"""Raised whenever the same plan comes to write other bytes: an unfinished store is not gone on with then."""

Moment = Literal["exp_avg", "exp_avg_sq"]
"""AdamW's first and second moment of a weight, by their names in ``torch.optim``."""

Copies = Literal["", "apart", "alike"]
"""How noise treats copies along an axis; empty where there is none on them."""

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class AxisPlan:
    """One axis of one module: how it is resampled, and how its target is cut into tiles."""

    axis: str
    n_source: int
    n_target: int
    spec: OperatorSpec | None
    """None: the operator of the axis before takes this one along (a composite one, such as ``heads × head_dim``)."""
    tile: int
    """Target indices per step: a multiple of those per shard, or all."""
    cut: Cut | None = None
    """Present where tensor parallelism cuts this axis, and its shards."""
    spans: int = 1
    """How many axes the operator acts on together, from this one on."""
    copies: Copies = ""
    """Of noise, where the axis grows by copies: different for those that the weight reads, so that they are told apart;
    the same for those that it writes into the residual stream, so that they stay the same to the last bit."""
    fill: Fill = "neutral"
    """What target indices hold that take nothing from the source."""
    centred: bool = False
    """Whether the mean over the source is subtracted first."""

    @property
    def changes(self) -> bool:
        """Whether an operator is applied along it."""
        return self.spec is not None and not self.spec.is_identity

    @property
    def alone(self) -> bool:
        """Whether its operator is a fitted one, or acts on several axes together: applied by itself, before the others
        are in one pass; after them where it undoes one."""
        return self.spec is not None and (self.spec.fitted or self.spans > 1)

    @property
    def restores(self) -> bool:
        """Whether its operator undoes one that has shrunk the axis."""
        return self.spec is not None and self.spec.policy == "restore"

    @property
    def constant(self) -> bool:
        """Whether its operator takes nothing from the source."""
        return self.spec is not None and self.spec.matrix.policy == "constant"

    @property
    def shard(self) -> int:
        """Target indices per shard."""
        return self.cut.tile if self.cut is not None else self.tile

    def owner(self, start: int) -> int | None:
        """The tensor-parallel rank that the tile from ``start`` on belongs to, if it belongs to one."""
        return self.cut.owner(start) if self.cut is not None and self.cut.tile == self.tile else None

    def tiles(self) -> list[Range]:
        n = self.n_target
        return [(start, min(n, start + self.tile)) for start in range(0, n, self.tile)]

    def operator(self) -> Operator:
        assert self.spec is not None, self
        return build_operator(self.spec)

    def needed(self, target: Range) -> tuple[Range, ...]:
        """Source ranges to read for a target range: the operator's support, and the part of the source that the
        target range stands for (so that the steps' energies add up to the source's)."""
        if self.spec is None or self.centred or self.alone:
            return ((0, self.n_source),)
        if self.spec.is_identity:
            return (target,)
        ranges = sorted((*self.operator().support(target), self.core(target)))
        merged: list[Range] = []
        for start, stop in ranges:
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(merged[-1][1], stop))
            elif stop > start:
                merged.append((start, stop))
        return tuple(merged)

    def core(self, target: Range) -> Range:
        """The source range that a target range stands for; over all tiles, a partition of the source."""
        return target[0] * self.n_source // self.n_target, target[1] * self.n_source // self.n_target


@dataclass(frozen=True, kw_only=True)
class ModulePlan:
    """One module: the same weight of every layer, its axes (the layer axis first, if it has one) and its tiles."""

    weight: Weight
    origin: Weight
    """The source's weight: the same, or the table that an untied head is made of."""
    axes: tuple[AxisPlan, ...]
    dtype: str
    """Of the target."""
    chunk: tuple[int, ...]
    """Inner chunk of each array that is written."""
    source_bytes: int
    """Of the module on the source's storage."""
    source_dtype: str
    """In which it is read."""
    whole_rows: bool
    """Reading part of a row from there costs reading all of it."""
    factors: tuple[tuple[str, float], ...] = ()
    """On all of it, besides the operators' own: per axis whose change asks for one."""
    init_std: float = 0.0
    """Standard deviation of what is filled with the family's initialisation."""
    noise: float = 0.0
    """Strength of the noise on copies (``AxisPlan.copies``)."""
    seed: int = 0
    """Of noise and initialisation."""
    learning_rate_factor: float = 1.0
    """For Adam; weight decay takes the inverse."""
    band: str = ""
    """Of the details that shrinking drops: one letter per axis, ``d`` where it is the detail band, ``a`` elsewhere.
    Empty for the model's own weights."""

    moment: Moment | None = None
    """Which of AdamW's moments of the weight it is, and not the weight."""

    @property
    def derived(self) -> bool:
        """Whether it is no weight of the model: a detail band or a moment."""
        return bool(self.band or self.moment)

    @property
    def layered(self) -> bool:
        return self.weight.layered

    @property
    def scale(self) -> float:
        return math.prod(factor for _, factor in self.factors)

    @property
    def shift(self) -> float:
        """Added at the end, so that what the model adds to the weights is scaled with them."""
        return 0.0 if self.derived else self.weight.offset * (self.scale - 1)

    @property
    def name(self) -> str:
        if self.moment:
            return moment_name(self.moment, self.weight.name)
        return f"{DETAILS}{self.weight.name}/{self.band}" if self.band else self.weight.name

    @property
    def stacked(self) -> bool:
        """Whether all layers are written to one array. Those of a detail band are no layers of a model."""
        return bool(self.band)

    @property
    def shard(self) -> tuple[int, ...]:
        """Shard of each array that is written: of one layer, or of all where they are stacked."""
        return self.within_array(tuple(a.shard for a in self.axes))

    @property
    def order(self) -> tuple[int, ...]:
        """Axes in the order in which their operators are applied: those applied alone; the innermost first where they
        shrink; the innermost last where they grow; those applied alone that undo others."""
        changing = [(i, a) for i, a in enumerate(self.axes) if a.changes]

        def key(item: tuple[int, AxisPlan]) -> tuple[int, bool, int]:
            i, a = item
            assert a.spec is not None
            grows = a.spec.n_target > a.spec.n_source
            when = (2 if a.restores else 0) if a.alone else 1
            return when, grows, i if grows else -i

        return tuple(i for i, _ in sorted(changing, key=key))

    @property
    def random(self) -> bool:
        """Whether any of it is drawn."""
        return self.noise > 0 or any(a.fill == "init" for a in self.axes)

    @cached_property
    def energy_gain(self) -> float:
        """Squared norm of the result over that of an orthonormal approximation band: per operator, the mean of the
        squares of its singular values. Of fitted operators, which are not known here, and of constants 1."""
        gain = self.scale**2
        for a in self.axes:
            if a.changes and not a.alone and not a.constant:
                gain *= float((a.operator().taps ** 2).sum()) / min(a.n_source, a.n_target)
        return gain

    def described(self) -> dict[str, str]:
        """Per axis that changes, what happens to it; by name, in one line where a weight has an axis twice."""
        found: dict[str, str] = {}
        for a in self.axes:
            if a.changes:
                found[a.axis] = f"{found[a.axis]}, {a.spec}" if a.axis in found else str(a.spec)
        return found

    @property
    def row_axes(self) -> int:
        """How many axes, from the outermost, a part can be read of without reading all of it."""
        return int(self.layered) + len(self.origin.dims[0]) if self.whole_rows else len(self.axes)

    def source_shape(self) -> tuple[int, ...]:
        return tuple(a.n_source for a in self.axes)

    def target_shape(self) -> tuple[int, ...]:
        return tuple(a.n_target for a in self.axes)

    @property
    def n_tiles(self) -> int:
        return math.prod(len(a.tiles()) for a in self.axes)

    def layers(self, box: Box) -> Range:
        return box[0] if self.layered else (0, 1)

    def within_layer(self, box: Box) -> Box:
        return box[1:] if self.layered else box

    def within_array(self, sides: tuple[T, ...]) -> tuple[T, ...]:
        """The sides, one per axis, that an array that is written has."""
        return sides[1:] if self.layered and not self.stacked else sides


@dataclass(frozen=True, kw_only=True)
class Step:
    """One tile: read ``source``, apply the module's operators, write ``target``. Idempotent."""

    id: str
    module: int
    owner: int
    """Rank of the actor that the tile belongs to."""
    target: Box
    source: tuple[tuple[Range, ...], ...]
    """Per axis, the source ranges to read."""
    core: Box
    """The part of the source whose energy this step counts."""

    def source_shape(self) -> tuple[int, ...]:
        return tuple(sum(stop - start for start, stop in ranges) for ranges in self.source)


@dataclass(frozen=True, kw_only=True)
class FunctionKept:
    """Whether a target computes what its source does."""

    verdict: Literal["exactly", "up to rounding", "not"]
    """``exactly``: its weights are such that in exact arithmetic it does."""
    because: tuple[str, ...] = ()
    """What is rounded, or why it does not."""

    def __str__(self) -> str:
        found = "; ".join(self.because)
        return {"exactly": "exactly", "up to rounding": f"up to rounding ({found})", "not": f"not, because {found}"}[
            self.verdict
        ]


@dataclass(frozen=True, kw_only=True, repr=False)
class TransferPlan(Shown):
    """Everything a transfer does, module by module."""

    source: Model
    target: Model
    source_id: str
    """Identifies the source's contents."""
    modules: tuple[ModulePlan, ...]
    mesh: Mesh
    memory_limit: int
    """Bytes of tensors that one actor may hold."""
    allow_nonfinite: bool = False
    """Go on where the source holds NaN or infinity, or what comes of it is too large for the target's dtype."""
    notes: tuple[str, ...] = ()
    """What the user should know about it."""
    optimizer_step: int | None = None
    """How many steps AdamW had taken whose moments are carried along; None: none are."""
    function_kept: FunctionKept | None = None
    """None: nothing is said of it, for the rule is that of a baseline."""

    def rows(self) -> Iterator[Row]:
        before, after = self.source.sizes, self.target.sizes
        changed = {name: (n, after[name]) for name, n in before.items() if n != after.get(name, n)}
        yield "sizes", ", ".join(f"{name} {n} → {m}" for name, (n, m) in changed.items()) or "all kept"
        yield "parameters", f"{self.source.n_parameters:,} → {self.target.n_parameters:,}"
        if self.function_kept is not None:
            yield "function kept", str(self.function_kept)
        yield "mesh", f"tensor {self.mesh.tensor} × data {self.mesh.data}, {size(self.memory_limit)} for each actor"
        for note in self.notes:
            yield "note", note
        for module in self.modules:
            if not module.derived:
                yield module.name, ", ".join(f"{axis} {how}" for axis, how in module.described().items()) or "kept"

    def steps(self) -> Iterator[Step]:
        """The steps of all modules, made on demand."""
        for i in range(len(self.modules)):
            yield from self.module_steps(i)

    def module_steps(self, index: int) -> Iterator[Step]:
        for step, owner in zip(self._tiles(index), self._owners[index], strict=True):
            yield dataclasses.replace(step, owner=owner)

    def _tiles(self, index: int) -> Iterator[Step]:
        """A module's steps, not yet given to anyone."""
        module = self.modules[index]
        sides = [[(t, a.needed(t), a.core(t)) for t in a.tiles()] for a in module.axes]
        for number, tile in enumerate(itertools.product(*sides)):
            yield Step(
                id=f"{module.name.replace('/', '-')}-{number:05d}",
                module=index,
                owner=0,
                target=tuple(target for target, _, _ in tile),
                source=tuple(needed for _, needed, _ in tile),
                core=tuple(core for _, _, core in tile),
            )

    @cached_property
    def _owners(self) -> list[list[int]]:
        """Per module, the owner of each step."""
        costs: list[int] = []
        ranks: list[int | None] = []
        for index, module in enumerate(self.modules):
            for step in self._tiles(index):
                costs.append(sum(step_bytes(module, step)))
                owners = [a.owner(start) for a, (start, _) in zip(module.axes, step.target, strict=True)]
                ranks.append(next((owner for owner in owners if owner is not None), None))
        found = iter(balanced(costs, ranks, self.mesh).tolist())
        return [list(itertools.islice(found, m.n_tiles)) for m in self.modules]

    def written(self, module: ModulePlan, target: Box | None = None) -> list[Parameter]:
        """The arrays that the module is written to, in the order of the layers of ``target`` (by default all)."""
        if module.stacked:
            axes = tuple(a.axis for a in module.axes)
            return [Parameter(name=module.name, axes=axes, sizes=module.target_shape(), dims=(1,) * len(axes))]
        layers = module.layers(target) if target else (0, self.target.weight_layers(module.weight))
        return [_of(module, self.target.parameter(module.weight, layer)) for layer in range(*layers)]

    def read(self, module: ModulePlan, layer: int) -> Parameter:
        """The array of the source that a layer of the module is read from."""
        return _of(module, self.source.parameter(module.origin, layer))

    @cached_property
    def inserted_layers(self) -> tuple[int, ...]:
        """The target's blocks that identity depth puts in: they change nothing yet."""
        layers = (m.axes[0].spec for m in self.modules if m.layered and not m.derived and m.weight.into_residual)
        spec = next((spec for spec in layers if spec is not None and spec.speaks != "every"), None)
        if spec is None:
            return ()
        of = origins(spec.n_source, spec.n_target).tolist()
        return tuple(i for i in range(1, len(of)) if of[i] == of[i - 1])

    @cached_property
    def digest(self) -> str:
        """Identifies the plan: equal plans write equal stores."""
        data = {
            "results": RESULTS,
            "family": self.target.family.name,
            "source": [self.source_id, self.source.config],
            "target": self.target.config,
            "modules": [dataclasses.asdict(module) for module in self.modules],
            "mesh": dataclasses.asdict(self.mesh),
            "memory_limit": self.memory_limit,
        }
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:32]

    def validate(self) -> None:
        """Raise PlanError unless every step is within bounds and its memory, and all write every element once."""
        for module in self.modules:
            for a in module.axes:
                assert a.tiles()[-1][1] == a.n_target, (module.name, a)
        for i, module in enumerate(self.modules):
            written = 0
            for step in self.module_steps(i):
                written += box_size(step.target)
                assert 0 <= step.owner < self.mesh.size, step
                if (peak := step_peak(module, step.target, step.source_shape())) > self.memory_limit:
                    raise PlanError(f"{step.id} needs {peak:,} bytes, over the limit of {self.memory_limit:,}")
            assert written == math.prod(module.target_shape()), module.name

    def to_json(self) -> dict[str, Any]:
        """What the manifest records of the plan."""
        return {
            "digest": self.digest,
            "mesh": dataclasses.asdict(self.mesh),
            "memory_limit": self.memory_limit,
            "operators": {m.name: m.described() for m in self.modules if not m.derived},
            "inserted_layers": self.inserted_layers,
            "function_kept": str(self.function_kept) if self.function_kept else None,
            "notes": self.notes,
        }


def moment_name(moment: Moment, name: str) -> str:
    """Of the array that holds a moment of a parameter."""
    return f"{MOMENTS}{moment}/{name}"


def _of(module: ModulePlan, parameter: Parameter) -> Parameter:
    """What a module has of a parameter: itself, or a moment."""
    if module.moment is None:
        return parameter
    return dataclasses.replace(parameter, name=moment_name(module.moment, parameter.name))
