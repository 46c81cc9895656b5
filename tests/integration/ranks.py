"""Ranks of a process group on this machine, without Ray: forked from a process that has imported what is slow."""

from __future__ import annotations

import gc
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing

from tests.forking import fork_server


def on_ranks(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """``work(*args)`` on every rank under DeepSpeed and gloo; what each rank returned."""
    fork_server()
    with tempfile.TemporaryDirectory() as folder:
        torch.multiprocessing.start_processes(
            _rank, (world, folder, work, args), nprocs=world, start_method="forkserver"
        )
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    from bot_dist.train.engine import connect

    gc.freeze()  # what was imported is no garbage, and looking for some in it takes a second each time
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world), LOCAL_WORLD_SIZE=str(world))
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    connect("cpu")
    Path(folder, str(rank)).write_bytes(pickle.dumps(work(*args)))
    dist.destroy_process_group()


def fit_on_ranks(settings: dict[str, Any], workers: int, device: str, folder: Path) -> list[dict[str, Any]]:
    """In the place of ``bot_dist.train.driver._fit``: ranks instead of Ray Train's workers, the same otherwise."""
    import ray
    from ray import cloudpickle

    from bot_dist.train.driver import _root_cause

    context = ray.get_runtime_context()
    found = on_ranks(workers, _train, cloudpickle.dumps(settings), context.gcs_address, context.namespace)
    failures = {rank: result for rank, result in enumerate(found) if isinstance(result, Exception)}
    if failures:
        raise _root_cause(SimpleNamespace(worker_failures=failures))
    return found[0]


def _train(settings: bytes, address: str, namespace: str) -> list[dict[str, Any]] | Exception:
    """What ``train_worker`` returns or raises, in a process that Ray knows as another driver."""
    import ray

    from bot_dist.train.worker import train_worker

    ray.init(address=address, namespace=namespace, log_to_driver=False, logging_level="ERROR")
    try:
        return train_worker(pickle.loads(settings))
    except Exception as error:
        return error
    finally:
        ray.shutdown()
