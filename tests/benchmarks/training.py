"""The trainer beside a bare DeepSpeed loop on the same model, batch and stage, as ratios within one run.

python tests/benchmarks/training.py [--steps 8] [--repeat 3] [--stage 3] [--layers 6]

The model has SmolLM2-135M's width and vocabulary and fewer layers, in a folder of ``transformers``. Two ranks, started
anew for every measurement, train it; ours and bare ones take turns. The bare loop is what one writes without us:
``from_pretrained`` under ``zero.Init`` (stage 3), ``deepspeed.initialize``, and forward, backward, step.

- step: the median of the steps but the first two. The bar is 1.05.
- start: from nothing but imports until the first step is done. The bar is 1.
- memory: the highest resident memory of a rank until then. Less than 1 is wanted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from bot_dist.families import model_of
from bot_dist.recipe import TrainConfig
from bot_dist.train.data import Batches
from bot_dist.train.objectives import CausalLM, Data
from bot_dist.train.optimizer import BETAS
from bot_dist.train.results import TrainRun
from tests.integration.ranks import on_ranks

WORLD, CONTEXT, BATCH = 2, 128, 4
WARM = 2
"""Steps that are not counted."""
SMOLLM2 = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "tie_word_embeddings": True,
}


class Tokens:
    """Random ones."""

    def __init__(self, n: int) -> None:
        self.tokens = torch.randint(SMOLLM2["vocab_size"], (n, CONTEXT), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def read(self, numbers: Sequence[int]) -> torch.Tensor:
        return self.tokens[list(numbers)]


def ours(folder: str, train: TrainConfig) -> dict[str, Any]:
    from bot_dist.train.events import Events
    from bot_dist.train.worker import Trainer

    tokens = Tokens(train.steps * BATCH)
    config = json.loads(Path(folder, "config.json").read_text())
    result = Trainer(
        TrainRun(name="ours", config=config, url=folder, steps=train.steps),
        train=train,
        data=Data(batches=Batches(tokens, BATCH, 0), held_out=tokens.tokens[:WORLD], tokens_per_sample=CONTEXT),
        objective=CausalLM(),
        tokenizer_url="",
        events=Events(lambda event: None),
        device="cpu",
    ).run()
    seconds = [step.seconds for step in result.losses]
    return {"seconds": seconds, "start_s": result.first_step_s, "peak": max(result.peak_rss_bytes)}


def bare(folder: str, train: TrainConfig) -> dict[str, Any]:
    import deepspeed
    import torch.distributed as dist
    from transformers import AutoModelForCausalLM
    from transformers.integrations.deepspeed import HfDeepSpeedConfig

    from bot_dist.train.worker import _peak_rss_bytes, _reset_peak_rss

    batches = Batches(Tokens(train.steps * BATCH), BATCH, 0)
    config = {
        "train_micro_batch_size_per_gpu": BATCH // WORLD,
        "gradient_clipping": train.clip,
        "zero_optimization": {"stage": train.stage, "reduce_bucket_size": 2**24},
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    _reset_peak_rss()
    begun = time.perf_counter()
    under_zero_init = HfDeepSpeedConfig(config) if train.stage == 3 else None
    module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_cache=False)
    optimizer = torch.optim.AdamW(module.parameters(), lr=train.learning_rate, betas=BETAS, fused=True)
    engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
    del under_zero_init
    engine.train()
    seconds: list[float] = []
    for step in range(train.steps):
        before = time.perf_counter()
        tokens = batches.batch(step, dist.get_rank(), WORLD)
        engine.backward(engine(input_ids=tokens, labels=tokens).loss)
        engine.step()
        now = time.perf_counter()
        seconds.append(now - before)
        if step == 0:
            start_s = now - begun
    peaks: list[Any] = [None] * WORLD
    dist.all_gather_object(peaks, _peak_rss_bytes())
    return {"seconds": seconds, "start_s": start_s, "peak": max(peaks)}


def save_model(folder: str, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMOLLM2, num_hidden_layers=layers)).save_pretrained(folder)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    train = TrainConfig(
        steps=options.steps, stage=options.stage, batch=BATCH, workers=WORLD, evaluate_every=options.steps + 1
    )
    ratios: dict[str, list[float]] = {"step": [], "start": [], "memory": []}
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, options.layers)
        n = model_of(json.loads(Path(folder, "config.json").read_text())).n_parameters
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before; {n / 1e6:.1f} M parameters")
        for _ in range(options.repeat):
            mine, theirs = on_ranks(WORLD, ours, folder, train)[0], on_ranks(WORLD, bare, folder, train)[0]
            steps = [statistics.median(found["seconds"][WARM:]) for found in (mine, theirs)]
            ratios["step"].append(steps[0] / steps[1])
            ratios["start"].append(mine["start_s"] / theirs["start_s"])
            ratios["memory"].append(mine["peak"] / theirs["peak"])
            print(
                f"ours, bare: step {steps[0]:.2f}, {steps[1]:.2f} s; start {mine['start_s']:.1f}, "
                f"{theirs['start_s']:.1f} s; peak {mine['peak'] / 1e6:.0f}, {theirs['peak'] / 1e6:.0f} MB"
            )
    for name, found in ratios.items():
        print(f"  {name}: {statistics.median(found):.2f}  ({', '.join(f'{ratio:.2f}' for ratio in found)})")


if __name__ == "__main__":
    main()
