"""The trainer beside a bare DeepSpeed loop on the same model, batch and stage, as ratios within one run.

python -m tests.benchmarks.training [--steps 20] [--repeat 3] [--stage 3] [--layers 6]

The model has SmolLM2-135M's width and vocabulary and fewer layers, in a folder of ``transformers``; two ranks train it.
The bare loop is what one writes without us: ``from_pretrained`` under ``zero.Init`` (stage 3),
``deepspeed.initialize``, and forward, backward, step.

- step: both in the same processes, a step of the one after a step of the other; the median of the pairs but the first.
  The bar is 1.05.
- start: from nothing but imports until the first step is done, in processes of their own, by turns. The bar is 1.
- stall: what the training stands still for where a state is saved, over a step of median length. The bar is 0.1.
- first step, training: the highest resident memory of a rank until the first step is done, and until ``STEPS`` are,
  when ZeRO-3 knows what to prefetch. Less than 1 is wanted.
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
from typing import TYPE_CHECKING, Any

import torch

from bot_dist.data.batches import Batches
from bot_dist.execute.process import peak_rss_bytes, reset_peak_rss
from bot_dist.model import model_of
from bot_dist.recipe import TrainConfig
from bot_dist.train.objectives import CausalLM, Data
from bot_dist.train.optimizers.adamw import BETAS
from bot_dist.train.results import RunResult, TrainRun
from tests.integration.ranks import on_ranks

if TYPE_CHECKING:
    from bot_dist.train.worker import Place

WORLD, CONTEXT, BATCH = 2, 128, 16
STEPS = 4
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


class Bare:
    """What one writes without us."""

    def __init__(self, folder: str, train: TrainConfig) -> None:
        import deepspeed
        from transformers import AutoModelForCausalLM
        from transformers.integrations.deepspeed import HfDeepSpeedConfig

        config = {
            "train_micro_batch_size_per_gpu": BATCH // WORLD,
            "gradient_clipping": train.clip,
            "zero_optimization": {"stage": train.stage, "reduce_bucket_size": 2**24},
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
        }
        under_zero_init = HfDeepSpeedConfig(config) if train.stage == 3 else None
        module = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, use_cache=False)
        del under_zero_init
        optimizer = torch.optim.AdamW(module.parameters(), lr=train.learning_rate, betas=BETAS, fused=True)
        self.engine, *_ = deepspeed.initialize(model=module, optimizer=optimizer, config=config)
        self.engine.train()

    def step(self, tokens: torch.Tensor) -> None:
        self.engine.backward(self.engine(input_ids=tokens, labels=tokens).loss)
        self.engine.step()


class Paired(Batches[torch.Tensor]):
    """Batches for ours; the bare loop takes its step on each before ours gets it."""

    def __init__(self, tokens: Tokens, bare: Bare) -> None:
        super().__init__(tokens, BATCH, 0)
        self._bare = bare
        self.seconds: list[float] = []

    def batch(self, step: int, rank: int, world: int) -> torch.Tensor:
        tokens, begun = super().batch(step, rank, world), time.perf_counter()
        self._bare.step(tokens)
        self.seconds.append(time.perf_counter() - begun)
        return tokens


def train_ours(
    folder: str, train: TrainConfig, batches: Batches[torch.Tensor], follow: Any, states: Place | None = None
) -> RunResult:
    from bot_dist.train.worker import Trainer

    config = json.loads(Path(folder, "config.json").read_text())
    return Trainer(
        TrainRun(name="ours", config=config, url=folder, steps=train.steps),
        train=train,
        data=Data(batches=batches, held_out=Tokens(WORLD).tokens, tokens_per_sample=CONTEXT),
        objective=CausalLM(),
        tokenizer_url="",
        on_event=follow,
        device="cpu",
        states=states,
    ).run()


def step_ratios(folder: str, train: TrainConfig) -> list[float]:
    """Of our steps over bare ones; a step of ours holds the bare one before it, which is taken off."""
    batches = Paired(Tokens(train.steps * BATCH), Bare(folder, train))
    ours = train_ours(folder, train, batches, lambda event: None).losses
    pairs = [(step.seconds - bare, bare) for step, bare in zip(ours, batches.seconds, strict=True)]
    print(f"step, ours and bare: {', '.join(f'{mine:.2f} {bare:.2f}' for mine, bare in pairs)}")
    return [mine / bare for mine, bare in pairs[1:]]


def stalls(folder: str, train: TrainConfig, states: str) -> list[float]:
    """What each save of a state takes of the loop, over a step."""
    from bot_dist.train.state import States
    from bot_dist.train.worker import Place

    seconds: list[float] = []
    save = States.save

    def timed(*args: Any) -> None:
        begun = time.perf_counter()
        save(*args)
        seconds.append(time.perf_counter() - begun)

    States.save = timed  # type: ignore[method-assign]
    saving = train.model_copy(update={"save_every": train.steps // 3, "keep": 1})
    batches = Batches(Tokens(train.steps * BATCH), BATCH, 0)
    steps = train_ours(folder, saving, batches, lambda event: None, Place(url=states, data="random")).losses
    step = statistics.median(step.seconds for step in steps)
    print(
        f"steps: {', '.join(f'{step.seconds:.2f}' for step in steps)}; saves: {', '.join(f'{s:.2f}' for s in seconds)}"
    )
    return [each / step for each in seconds]


class Watched(Batches[torch.Tensor]):
    """Batches that know the highest resident memory until each of them was asked for."""

    def __init__(self) -> None:
        super().__init__(Tokens(STEPS * BATCH), BATCH, 0)
        self.peaks: list[int] = []

    def batch(self, step: int, rank: int, world: int) -> torch.Tensor:
        self.peaks.append(peak_rss_bytes())
        return super().batch(step, rank, world)

    def memory(self) -> dict[str, float]:
        return {"first step": self.peaks[1], "training": peak_rss_bytes()}


def start_ours(folder: str, train: TrainConfig) -> dict[str, float]:
    batches = Watched()
    result = train_ours(folder, train.model_copy(update={"steps": STEPS}), batches, lambda event: None)
    assert result.first_step_s is not None
    return {"start": result.first_step_s, **batches.memory()}


def start_bare(folder: str, train: TrainConfig) -> dict[str, float]:
    import torch.distributed as dist

    reset_peak_rss()
    begun = time.perf_counter()
    bare, batches, start = Bare(folder, train), Watched(), 0.0
    for step in range(STEPS):
        bare.step(batches.batch(step, dist.get_rank(), WORLD))
        start = start or time.perf_counter() - begun
    return {"start": start, **batches.memory()}


def save_model(folder: str, layers: int) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**SMOLLM2, num_hidden_layers=layers)).save_pretrained(folder)


def _highest(ranks: Sequence[dict[str, float]]) -> dict[str, float]:
    return {name: max(rank[name] for rank in ranks) for name in ranks[0]}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--stage", type=int, default=3)
    parser.add_argument("--layers", type=int, default=6)
    options = parser.parse_args()
    train = TrainConfig(steps=options.steps, stage=options.stage, batch=BATCH, workers=WORLD, evaluate_every=10**6)
    with tempfile.TemporaryDirectory() as folder:
        save_model(folder, options.layers)
        n = model_of(json.loads(Path(folder, "config.json").read_text())).n_parameters
        load = os.getloadavg()[0]
        print(f"{platform.machine()}, {os.cpu_count()} cores, load {load:.1f} before; {n / 1e6:.1f} M parameters")
        ratios = {"step": on_ranks(WORLD, step_ratios, folder, train)[0]}
        ratios["stall"] = on_ranks(WORLD, stalls, folder, train, f"{folder}/states")[0]
        for _ in range(options.repeat):
            ours, bare = (_highest(on_ranks(WORLD, start, folder, train)) for start in (start_ours, start_bare))
            shown = (f"{name} {ours[name]:.4g}, {bare[name]:.4g}" for name in ours)
            print(f"ours, bare (seconds, bytes): {'; '.join(shown)}")
            for name in ours:
                ratios.setdefault(name, []).append(ours[name] / bare[name])
    for name, found in ratios.items():
        print(f"  {name}: {statistics.median(found):.2f}  ({', '.join(f'{ratio:.2f}' for ratio in found)})")


if __name__ == "__main__":
    main()
