"""Simulation: how long a plan would take on given hardware, from the plan alone.

An actor's reading and writing overlap with its transforming (``LANES`` steps are in progress), so what it takes is the
largest of three times: bytes over the storage's bandwidth (which all actors share), over its part of the node's
network, and over its device's memory bandwidth (bytes in and out of the transform); requests wait for their first byte
``LANES`` at a time. The whole takes as long as its slowest actor.
"""

from __future__ import annotations

import math
from dataclasses import MISSING, dataclass, fields

from bot_dist.errors import RecipeError, nearest
from bot_dist.plan.cost import step_bytes, step_peak
from bot_dist.plan.module_plan import ModulePlan
from bot_dist.plan.plan import Step, TransferPlan
from bot_dist.plan.tiling import LANES
from bot_dist.tensors import box_size
from bot_dist.tensors.axes import ITEMSIZE

GB = 1e9
EXAMPLE = "storage_gb_s=100,network_gb_s=12.5,device_gb_s=1500"


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """The speed of a cluster. Bandwidths are in GB/s (10⁹ bytes)."""

    storage_gb_s: float
    """Bandwidth of the storage, for all actors together, in GB/s."""
    network_gb_s: float
    """Bandwidth of the network of each node, in GB/s."""
    device_gb_s: float
    """Bandwidth of the transform of each actor, bytes in and out together, in GB/s."""
    actors_per_node: int = 8
    request_s: float = 0.1
    """Seconds from asking for a file or range to its first byte."""


def parse_hardware(text: str) -> Hardware:
    """The hardware that a text such as ``"storage_gb_s=100,network_gb_s=12.5,device_gb_s=1500"`` describes. Raises
    RecipeError on a text that it does not understand."""
    known = {field.name: field for field in fields(Hardware)}
    given: dict[str, float] = {}
    for item in text.split(","):
        name, _, value = item.partition("=")
        if name.strip() not in known:
            raise RecipeError(f"hardware: unknown {name.strip()!r}; {nearest(name.strip(), known)}")
        try:
            given[name.strip()] = float(value)
        except ValueError:
            raise RecipeError(f"hardware: {name.strip()} is {value!r}, wanted a number") from None
        if not 0 < given[name.strip()] < math.inf:
            raise RecipeError(f"hardware: {name.strip()} is {value}, wanted a number above 0")
    if absent := [name for name, field in known.items() if field.default is MISSING and name not in given]:
        raise RecipeError(f"hardware: {', '.join(absent)} missing; write for example {EXAMPLE}")
    return Hardware(**{name: int(n) if name == "actors_per_node" else n for name, n in given.items()})  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class ActorCost:
    """The work of one actor in a simulated run."""

    rank: int
    steps: int
    bytes_read: int
    bytes_written: int
    requests: int
    peak_bytes: int
    """Bytes of tensors held at the worst moment: by the ``LANES`` largest steps, or by the largest one where so many
    don't fit the limit."""
    seconds: dict[str, float]
    """Seconds that each of what could limit the actor takes: ``storage``, ``network``, ``device``, ``requests``."""

    @property
    def limit(self) -> str:
        """The key of ``seconds`` that takes longest."""
        return max(self.seconds, key=lambda what: self.seconds[what])

    @property
    def total_s(self) -> float:
        return self.seconds[self.limit]


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A simulated run, actor by actor."""

    actors: tuple[ActorCost, ...]

    @property
    def slowest(self) -> ActorCost:
        return max(self.actors, key=lambda actor: actor.total_s)

    @property
    def limit(self) -> str:
        """The limit of the run: that of its slowest actor."""
        return self.slowest.limit


def simulate(plan: TransferPlan, hardware: Hardware) -> Simulation:
    """Unfold the plan's steps and add up what each actor would do."""
    n = plan.mesh.size
    steps, read, written, requests, computed = ([0] * n for _ in range(5))
    largest: list[list[int]] = [[0] * LANES for _ in range(n)]
    for index, module in enumerate(plan.modules):
        for step in plan.module_steps(index):
            i = step.owner
            bytes_read, bytes_written = step_bytes(module, step)
            steps[i] += 1
            read[i] += bytes_read
            written[i] += bytes_written
            requests[i] += _requests(module, step)
            computed[i] += bytes_written + math.prod(step.source_shape()) * ITEMSIZE[module.source_dtype]
            peak = step_peak(module, step.target, step.source_shape())
            largest[i] = sorted((*largest[i], peak))[1:]
    share = hardware.network_gb_s / min(hardware.actors_per_node, n)
    return Simulation(
        actors=tuple(
            ActorCost(
                rank=i,
                steps=steps[i],
                bytes_read=read[i],
                bytes_written=written[i],
                requests=requests[i],
                peak_bytes=sum(largest[i]) if sum(largest[i]) <= plan.memory_limit else largest[i][-1],
                seconds={
                    "storage": (read[i] + written[i]) / GB / (hardware.storage_gb_s / n),
                    "network": (read[i] + written[i]) / GB / share,
                    "device": computed[i] / GB / hardware.device_gb_s,
                    "requests": requests[i] * hardware.request_s / LANES,
                },
            )
            for i in range(n)
        )
    )


def _requests(module: ModulePlan, step: Step) -> int:
    """Ranges that a step reads and files that it writes: one of each per layer and piece."""
    pieces = math.prod(len(ranges) for ranges in step.source[int(module.layered) :])
    layers_in = step.source_shape()[0] if module.layered else 1
    sides = module.within_array(tuple(zip(step.target, module.axes, strict=True)))
    files = math.prod(-(-(stop - start) // a.shard) for (start, stop), a in sides)
    layers_out = box_size(step.target[:1]) if module.layered and not module.stacked else 1
    return pieces * layers_in + files * layers_out
