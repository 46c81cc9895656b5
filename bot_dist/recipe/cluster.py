"""The section ``cluster`` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bot_dist.recipe.values import Config

ExecutorName = Literal["ray", "local"]


class ClusterConfig(Config):
    """Who executes the transfer and the training."""

    executor: ExecutorName = "ray"
    """Ray shard actors, or this process (same bytes, no Ray)."""
    address: str | None = None
    """Address of a running Ray cluster; None: RAY_ADDRESS if set, else a cluster embedded in this process."""
    wait_s: int = Field(default=0, ge=0)
    """Seconds to wait for nodes that are still joining, until the cluster has a CPU per actor or worker."""
    allow_unauthenticated: bool = False
    """Run on a cluster that other machines reach and that wants no token, so that any of them may run code on it."""
    tensor: int = Field(default=1, ge=1)
    """Tensor-parallel degree: how many ways heads, FFN units and vocabulary are cut over the shard actors."""
    data: int = Field(default=1, ge=1)
    """Actors per tensor-parallel rank; they share out layers and tiles."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device on which actors transform and workers train; ``auto`` takes CUDA where it is there."""
    side_by_side: int | None = Field(default=None, ge=1)
    """How many members of a family, or runs of a comparison, are trained at once; None: as many as the cluster has CPUs
    for (or GPUs, where they train on those). Those on one node share its CPUs out."""
