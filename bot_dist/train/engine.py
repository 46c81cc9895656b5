"""Building and ending a DeepSpeed ZeRO-3 engine. Imported by workers only: it loads DeepSpeed and transformers."""

from __future__ import annotations

import gc
import logging
import os
import warnings
from typing import Any, Literal

import torch

from bot_dist.families import Model
from bot_dist.recipe import TrainConfig

BETAS = (0.9, 0.95)
"""Of AdamW, as in GPT-3 and Llama."""


def connect(device: Literal["cpu", "cuda"]) -> None:
    """Put DeepSpeed on the process group that Ray Train has opened."""
    os.environ["DS_ACCELERATOR"] = device
    # DeepSpeed calls collectives by names that torch 2.13 deprecates.
    warnings.filterwarnings("ignore", message=r"`torch\.distributed\.", category=FutureWarning)
    import deepspeed

    deepspeed.utils.logger.setLevel(logging.WARNING)
    if device == "cpu":
        # DeepSpeed would compile this op with a C++ compiler, under a lock that a killed worker leaves behind for ever.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="nccl" if device == "cuda" else "gloo", verbose=False)


def start(
    model: Model, train: TrainConfig, *, world: int, device: Literal["cpu", "cuda"], trains: bool
) -> tuple[torch.nn.Module, Any]:
    """The ``transformers`` model of ``model`` under ZeRO-3 and its engine; the weights are not set yet.

    float32 on CPU, bfloat16 with float32 masters on CUDA where the configuration's dtype is bfloat16. Without
    ``trains`` there is no optimizer, and no state of one.
    """
    import deepspeed

    ds_config = _ds_config(model, train, world=world, device=device)
    module = _build(model, ds_config)
    optimizer = None
    if trains:
        groups = _groups(module, model, train.weight_decay)
        optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, betas=BETAS)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=ds_config)
    return module, engine


def stop(module: torch.nn.Module, engine: Any) -> None:
    """Free what an engine holds. The caller drops its own references too."""
    engine.destroy()
    for p in module.parameters():
        p.grad = None
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _ds_config(model: Model, train: TrainConfig, *, world: int, device: str) -> dict[str, Any]:
    dtype = model.config.get("dtype") or model.config.get("torch_dtype")
    return {
        "train_batch_size": train.batch,
        "train_micro_batch_size_per_gpu": train.batch // world,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": train.clip,
        "bf16": {"enabled": device == "cuda" and str(dtype).removeprefix("torch.") == "bfloat16"},
        "zero_optimization": {"stage": train.stage, "reduce_bucket_size": 2**24},
        "steps_per_print": 2**31,
    }


def _build(model: Model, ds_config: dict[str, Any]) -> torch.nn.Module:
    import deepspeed
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights
    from transformers.integrations.deepspeed import prevent_arange_dtype_change

    fields = {k: v for k, v in model.config.items() if k not in ("model_type", "dtype", "torch_dtype")}
    config = AutoConfig.for_model(model.config["model_type"], **fields)
    dtype = torch.bfloat16 if ds_config["bf16"]["enabled"] else torch.float32
    with no_init_weights(), prevent_arange_dtype_change(), deepspeed.zero.Init(config_dict_or_path=ds_config):
        build: Any = AutoModelForCausalLM.from_config
        module: torch.nn.Module = build(config, attn_implementation="sdpa", dtype=dtype)
    module.tie_weights()  # type: ignore[operator]  # no_init_weights has skipped it
    return module


def _groups(module: torch.nn.Module, model: Model, weight_decay: float) -> list[dict[str, Any]]:
    decayed = {model.inside[p.name] for weight, _, p in model.parameters() if weight.kind in ("matrix", "table")}
    with_decay = [p for name, p in module.named_parameters() if name in decayed]
    without = [p for name, p in module.named_parameters() if name not in decayed]
    groups = [{"params": with_decay, "weight_decay": weight_decay}, {"params": without, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
