"""Ranks of a process group on this machine, without Ray: forked from a process that has imported what is slow."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing

PRELOADED = [
    "bot_dist.checkpoint",
    "deepspeed.moe.ep_experts",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.utils.pin_memory",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "transformers.integrations.deepspeed",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.vit.modeling_vit",
]
"""What building and ending an engine imports."""


def on_ranks(world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
    """``work(*args)`` on every rank under DeepSpeed and gloo; what each rank returned."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, DS_ACCELERATOR="cpu"):
        torch.multiprocessing.start_processes(
            _rank, (world, folder, work, args), nprocs=world, start_method="forkserver"
        )
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(world)]


def _rank(rank: int, world: int, folder: str, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    from bot_dist.train.engine import connect

    gc.freeze()  # what was imported is no garbage, and looking for some in it takes a second each time
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world))
    dist.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    connect("cpu")
    Path(folder, str(rank)).write_bytes(pickle.dumps(work(*args)))
    dist.destroy_process_group()
