"""Meeting of the workers of a training, at a store of torch's that listens on its node's own address alone.

The one that Ray Train and torch make by default listens on every interface of the machine, and takes no token.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import ray
import torch.distributed as dist
from ray.train import get_context
from ray.train.torch import TorchConfig
from ray.train.torch.config import _set_torch_distributed_env_vars, _TorchBackend
from torch._C._distributed_c10d import TCPStore


@dataclass
class ProcessGroup(TorchConfig):
    """Opens a torch process group over the workers of Ray Train."""

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _Meeting


class _Meeting(_TorchBackend):
    """Ray Train's own backend, but for where the workers meet."""

    def on_start(self, worker_group: Any, backend_config: Any) -> None:
        host, port = worker_group.execute_single(0, _listen, len(worker_group))
        worker_group.execute(_join, backend_config, host, port)


_served: TCPStore | None = None
"""Rank 0's, which the others meet at; it lives as long as its process."""


def _listen(world_size: int) -> tuple[str, int]:
    """Make the store, on this node's address in Ray; returns where it is."""
    global _served
    host = ray.util.get_node_ip_address()
    listener = socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    port = int(listener.getsockname()[1])
    _served = TCPStore(
        host, port, world_size, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach()
    )
    return host, port


def _join(config: TorchConfig, host: str, port: int) -> None:
    """Open the process group on a worker."""
    context = get_context()
    rank, size = context.get_world_rank(), context.get_world_size()
    _set_torch_distributed_env_vars()
    os.environ.update(MASTER_ADDR=host, MASTER_PORT=str(port))  # DeepSpeed reads all these
    if host == "127.0.0.1":  # all are on this machine: what they say to each other stays in it
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    store = TCPStore(host, port, size, is_master=False) if _served is None else _served
    timeout = timedelta(seconds=config.timeout_s)
    dist.init_process_group(config.backend, store=store, rank=rank, world_size=size, timeout=timeout)
