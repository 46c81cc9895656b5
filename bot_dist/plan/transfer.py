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
from typing import Any

from bot_dist.axes import ITEMSIZE, Parameter, Range
from bot_dist.errors import PlanError
from bot_dist.families import Model, Weight
from bot_dist.sharding import Box, Cut, Mesh, box_size
from bot_dist.wavelets import Operator, OperatorSpec, build_operator

FLOAT32 = ITEMSIZE["float32"]


@dataclass(frozen=True, kw_only=True)
class AxisPlan:
    """One axis of one module: how it is resampled, and how its target is cut into tiles."""

    axis: str
    spec: OperatorSpec
    tile: int
    cut: Cut | None = None
    """Present where tensor parallelism cuts this axis."""

    def tiles(self) -> list[Range]:
        n = self.spec.n_target
        return [(start, min(n, start + self.tile)) for start in range(0, n, self.tile)]

    def operator(self) -> Operator:
        return build_operator(self.spec)

    def needed(self, target: Range) -> tuple[Range, ...]:
        """Source ranges to read for a target range: the operator's support, and the part of the source that the
        target range stands for (so that the steps' energies add up to the source's)."""
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

    def widest(self) -> int:
        """Source indices that the tile with the largest support needs."""
        if self.spec.is_identity:
            return self.tile
        return max(sum(stop - start for start, stop in self.needed(t)) for t in self.tiles())

    def core(self, target: Range) -> Range:
        """The source range that a target range stands for; over all tiles, a partition of the source."""
        n_source, n_target = self.spec.n_source, self.spec.n_target
        return target[0] * n_source // n_target, target[1] * n_source // n_target


@dataclass(frozen=True, kw_only=True)
class ModulePlan:
    """One module: the same weight of every layer, its axes (the layer axis first, if it has one) and its tiles."""

    weight: Weight
    axes: tuple[AxisPlan, ...]
    scale: float
    """Factor on all of it, besides the operators' own."""
    dtype: str
    """Of the target."""
    chunk: tuple[int, ...]
    """Inner chunk of each parameter of the target (no layer axis)."""
    source_bytes: int
    """Of the module on the source's storage."""
    whole_rows: bool
    """Reading part of a row from there costs reading all of it."""

    @property
    def layered(self) -> bool:
        return self.weight.layered

    @property
    def shard(self) -> tuple[int, ...]:
        """Shard of each parameter of the target (no layer axis): what one step writes of one layer."""
        return tuple(a.tile for a in self.axes[1 if self.layered else 0 :])

    @property
    def order(self) -> tuple[int, ...]:
        """Axes in the order in which their operators are applied: those that shrink most first."""
        changing = [i for i, a in enumerate(self.axes) if not a.spec.is_identity]
        return tuple(sorted(changing, key=lambda i: self.axes[i].spec.n_target / self.axes[i].spec.n_source))

    @property
    def energy_gain(self) -> float:
        """Squared norm of the result over that of an orthonormal approximation band."""
        gain = self.scale
        for a in self.axes:
            if a.spec.silent_copies:
                continue  # each source layer once: all of its energy
            gain *= a.spec.row_sum / math.sqrt(a.spec.n_source / a.spec.n_target)
        return gain**2

    def source_shape(self) -> tuple[int, ...]:
        return tuple(a.spec.n_source for a in self.axes)

    def target_shape(self) -> tuple[int, ...]:
        return tuple(a.spec.n_target for a in self.axes)

    def layers(self, box: Box) -> Range:
        return box[0] if self.layered else (0, 1)

    def within_layer(self, box: Box) -> Box:
        return box[1:] if self.layered else box


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
class TransferPlan:
    """Everything a transfer does, module by module."""

    source: Model
    target: Model
    source_id: str
    """Identifies the source's contents."""
    modules: tuple[ModulePlan, ...]
    mesh: Mesh
    memory_limit: int
    """Bytes of tensors that one actor may hold."""

    def steps(self) -> Iterator[Step]:
        """The steps of all modules, made on demand."""
        for i in range(len(self.modules)):
            yield from self.module_steps(i)

    def module_steps(self, index: int) -> Iterator[Step]:
        module = self.modules[index]
        sides = [[(t, a.needed(t), a.core(t)) for t in a.tiles()] for a in module.axes]
        shared = index  # tiles that no axis assigns are dealt out in turn, from another actor for every module
        for number, tile in enumerate(itertools.product(*sides)):
            target = tuple(t for t, _, _ in tile)
            tensor = [a.cut.owner(t[0]) for a, t in zip(module.axes, target, strict=True) if a.cut is not None]
            owner = self.mesh.rank(tensor[0], shared % self.mesh.data) if tensor else shared % self.mesh.size
            shared += 1
            yield Step(
                id=f"{module.weight.name}-{number:05d}",
                module=index,
                owner=owner,
                target=target,
                source=tuple(needed for _, needed, _ in tile),
                core=tuple(core for _, _, core in tile),
            )

    def parameter(self, module: ModulePlan, layer: int) -> Parameter:
        """A parameter of the target."""
        return self.target.parameter(module.weight, layer)

    @cached_property
    def digest(self) -> str:
        """Identifies the plan: equal plans write equal stores."""
        data = {
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
                assert a.tiles()[-1][1] == a.spec.n_target, (module.weight.name, a)
        for i, module in enumerate(self.modules):
            written = 0
            for step in self.module_steps(i):
                written += box_size(step.target)
                assert 0 <= step.owner < self.mesh.size, step
                if (peak := step_peak(module, step.target, step.source_shape())) > self.memory_limit:
                    raise PlanError(f"{step.id} needs {peak:,} bytes, over the limit of {self.memory_limit:,}")
            assert written == math.prod(module.target_shape()), module.weight.name

    def to_json(self) -> dict[str, Any]:
        """What the manifest records of the plan."""
        return {
            "digest": self.digest,
            "mesh": dataclasses.asdict(self.mesh),
            "memory_limit": self.memory_limit,
            "operators": {
                m.weight.name: {a.axis: str(a.spec) for a in m.axes if not a.spec.is_identity} for m in self.modules
            },
        }


def step_peak(module: ModulePlan, target: Box, source_shape: tuple[int, ...]) -> int:
    """Bytes of tensors that a step holds at its worst moment.

    Reading: the source box in float32, and one layer of it twice more (as it is stored, and converted). Each
    operator: its input, and its result twice (sum and summand). Writing: the result, and one layer of it three times
    (cast, encoded, being sent).
    """
    shape = list(source_shape)
    layers = shape[0] if module.layered else 1
    peak = FLOAT32 * math.prod(shape) * (1 + 2 / max(1, layers))
    for i in module.order:
        before = math.prod(shape)
        shape[i] = target[i][1] - target[i][0]
        peak = max(peak, FLOAT32 * (before + 2 * math.prod(shape)))
    layers = shape[0] if module.layered else 1
    return int(max(peak, FLOAT32 * math.prod(shape) * (1 + 3 / max(1, layers))))
