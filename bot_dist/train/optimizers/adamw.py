"""AdamW, of torch."""

from __future__ import annotations

from typing import Any

import torch

from bot_dist.recipe import TrainConfig
from bot_dist.train.optimizers import Optimizer

BETAS = (0.9, 0.95)
"""Decay rates of both moments, as in GPT-3 and Llama."""


def adamw(groups: list[dict[str, Any]], train: TrainConfig) -> torch.optim.AdamW:
    """One pass over memory per step, without a compiler on any device."""
    return torch.optim.AdamW(groups, lr=train.learning_rate, betas=BETAS, fused=True)


OPTIMIZER = Optimizer(
    make=adamw,
    states=("exp_avg", "exp_avg_sq"),
    deepspeed={"zero_force_ds_cpu_optimizer": False},  # DeepSpeed's own has to be compiled first
)
