"""The frozen plan of a whole transfer, and the steps that it unfolds into."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from bot_dist.errors import PlanError
from bot_dist.model import Model
from bot_dist.operators import origins
from bot_dist.plan.cost import step_bytes, step_peak
from bot_dist.plan.function_kept import FunctionKept
from bot_dist.plan.module_plan import ModulePlan, OptimizerStatePlan
from bot_dist.plan.owners import balanced
from bot_dist.results import Row, Shown
from bot_dist.tensors import Box, Mesh, box_size
from bot_dist.tensors.axes import Parameter, Range
from bot_dist.units import size

RESULTS = 1
"""A number that is raised whenever the same plan comes to write other bytes: an unfinished store is not gone on with
then."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """The work on one tile: read ``source``, apply the module's operators, write ``target``. Idempotent."""

    id: str
    module: int
    owner: int
    """The rank of the actor that the tile belongs to."""
    target: Box
    source: tuple[tuple[Range, ...], ...]
    """The source ranges to read, per axis."""
    core: Box
    """The part of the source whose energy this step counts."""

    def source_shape(self) -> tuple[int, ...]:
        return tuple(sum(stop - start for start, stop in ranges) for ranges in self.source)


@dataclass(frozen=True, kw_only=True, repr=False)
class TransferPlan(Shown):
    """Everything a transfer does, module by module."""

    source: Model
    target: Model
    source_id: str
    """The identity of the source's contents."""
    modules: tuple[ModulePlan, ...]
    mesh: Mesh
    memory_limit: int
    """Bytes of tensors that one actor may hold."""
    allow_nonfinite: bool = False
    """Whether to go on where the source holds NaN or infinity, or what comes of it is too large for the target's
    dtype."""
    notes: tuple[str, ...] = ()
    """Notes for the user about the plan, a line each."""
    optimizer_step: int | None = None
    """The steps that AdamW had taken whose moments are carried along; None where none are."""
    function_kept: FunctionKept | None = None
    """Whether the target computes what its source does; None where nothing is said of it, for the rule is that of a
    baseline."""

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
        """The steps of a module, not yet given to owners."""
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
        """The owner of each step, per module."""
        costs: list[int] = []
        ranks: list[int | None] = []
        for index, module in enumerate(self.modules):
            for step in self._tiles(index):
                costs.append(sum(step_bytes(module, step)))
                owners = [a.owner(start) for a, (start, _) in zip(module.axes, step.target, strict=True)]
                ranks.append(next((owner for owner in owners if owner is not None), None))
        given = iter(balanced(costs, ranks, self.mesh).tolist())
        return [list(itertools.islice(given, m.n_tiles)) for m in self.modules]

    def written(self, module: ModulePlan, target: Box | None = None) -> list[Parameter]:
        """The arrays that the module is written to, in the order of the layers of ``target`` (by default all)."""
        if module.stacked:
            axes = tuple(a.axis for a in module.axes)
            return [Parameter(name=module.name, axes=axes, sizes=module.target_shape(), dims=(1,) * len(axes))]
        layers = module.layers(target) if target else (0, self.target.weight_layers(module.weight))
        return [module.array_of(self.target.parameter(module.weight, layer)) for layer in range(*layers)]

    def read(self, module: ModulePlan, layer: int) -> Parameter:
        """The array of the source that a layer of the module is read from."""
        return module.array_of(self.source.parameter(module.origin, layer))

    @property
    def optimizer_state_exact(self) -> bool:
        """Whether AdamW's moments, where they are carried along, stay what they are."""
        states = (m for m in self.modules if isinstance(m, OptimizerStatePlan))
        return not any(a.changes for m in states for a in m.axes)

    @cached_property
    def inserted_layers(self) -> tuple[int, ...]:
        """The indices of the target's blocks that identity depth puts in, which change nothing yet."""
        layers = (m.axes[0].spec for m in self.modules if m.layered and not m.derived and m.weight.into_residual)
        spec = next((spec for spec in layers if spec is not None and spec.mutes), None)
        if spec is None:
            return ()
        of = origins(spec.n_source, spec.n_target).tolist()
        return tuple(i for i in range(1, len(of)) if of[i] == of[i - 1])

    @cached_property
    def digest(self) -> str:
        """The identity of the plan, 32 hexadecimal digits: plans with equal ones write equal stores."""
        data = {
            "results": RESULTS,
            "family": self.target.family.name,
            "source": [self.source_id, self.source.config],
            "target": self.target.config,
            "modules": [module.to_json() for module in self.modules],
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
        """The record of the plan in the manifest of a store, as plain data."""
        return {
            "digest": self.digest,
            "mesh": dataclasses.asdict(self.mesh),
            "memory_limit": self.memory_limit,
            "operators": {m.name: m.described() for m in self.modules if not m.derived},
            "inserted_layers": self.inserted_layers,
            "function_kept": str(self.function_kept) if self.function_kept else None,
            "notes": self.notes,
        }
