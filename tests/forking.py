"""A server of forks that find loaded what is slow to import: one in a session, for drivers that die and for ranks."""

from __future__ import annotations

import multiprocessing
import multiprocessing.forkserver
import os
from multiprocessing.context import ForkServerContext
from unittest import mock

PRELOADED = [
    "bot_dist.train.worker",
    "deepspeed.moe.ep_experts",
    "deepspeed.runtime.superoffload.superoffload_stage3",
    "deepspeed.utils.pin_memory",
    "ray",
    "tests.chaos.drivers",
    "torch._dynamo",
    "torch._inductor.compile_fx",
    "transformers.integrations.deepspeed",
    "transformers.models.bert.modeling_bert",
    "transformers.models.gemma2.modeling_gemma2",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
    "transformers.models.vit.modeling_vit",
]
"""What transfers need, and what building and ending an engine imports."""


def fork_server() -> ForkServerContext:
    """The context that starts processes there. They have the environment of when it was first asked for."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, DS_ACCELERATOR="cpu"):
        multiprocessing.forkserver.ensure_running()
    return context
