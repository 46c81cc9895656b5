"""All kinds of faults, and how often each is tried."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tests.chaos import damage
from tests.chaos.actor_faults import (
    clock_of_actors,
    hung_actor,
    killed_actor,
    killed_driver_of_actors,
    lost_node,
    poison_step,
    replaced_node,
)
from tests.chaos.arena import Run
from tests.chaos.dying_faults import (
    clock,
    crash,
    crash_while_replacing,
    full_disk,
    killed_command,
    killed_command_ray,
    killed_process,
    power_cut,
)
from tests.chaos.rival_faults import two_drivers, two_plans, two_plans_overwrite, zombie
from tests.chaos.storage_faults import of_committed, of_unfinished, s3, s3_ray, stale_manifest


@dataclass(frozen=True)
class Kind:
    """A kind of fault."""

    run: Run
    runs: int
    """In the long form."""
    needs: Literal["", "s3", "ray", "ray and s3", "nodes"] = ""


KINDS: dict[str, Kind] = {
    "the process dies at an operation of storage": Kind(crash, 120),
    "the machine dies at one; what was not synced is lost": Kind(power_cut, 120),
    "the process dies while it replaces a store": Kind(crash_while_replacing, 40),
    "SIGKILL of a process at any time": Kind(killed_process, 40),
    "SIGKILL of `bot_dist scale`, in process": Kind(killed_command, 6),
    "SIGKILL of `bot_dist scale`, with a Ray of its own": Kind(killed_command_ray, 4),
    "a full disk, then room": Kind(full_disk, 20),
    "a clock that jumps by days": Kind(clock, 10),
    "two drivers, same command": Kind(two_drivers, 30),
    "two drivers, two plans": Kind(two_plans, 20),
    "two drivers, two plans, one may overwrite": Kind(two_plans_overwrite, 30),
    "a given-up writer goes on": Kind(zombie, 10),
    **{f"committed: {name}": Kind(of_committed(name), 20) for name in damage.COMMITTED},
    "committed: an earlier manifest put back": Kind(stale_manifest, 6),
    **{f"before resuming: {name}": Kind(of_unfinished(name), 12) for name in damage.UNFINISHED},
    "S3 answers wrongly": Kind(s3, 20, "s3"),
    "S3 answers wrongly, Ray actors": Kind(s3_ray, 6, "ray and s3"),
    "SIGKILL of a shard actor in a phase": Kind(killed_actor, 40, "ray"),
    "a shard actor hangs": Kind(hung_actor, 12, "ray"),
    "a step that kills its actors": Kind(poison_step, 4, "ray"),
    "a clock that jumps in the actors": Kind(clock_of_actors, 4, "ray"),
    "Ctrl-C of a driver of actors": Kind(killed_driver_of_actors, 6, "ray"),
    "a node is lost": Kind(lost_node, 5, "nodes"),
    "a node is lost, another joins": Kind(replaced_node, 5, "nodes"),
}
