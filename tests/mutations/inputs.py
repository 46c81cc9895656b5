"""Inputs as they should be: small ones of every kind."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bot_dist.data.byte_tokenizer import save_byte_tokenizer
from tests.conftest import PICOS, randomised

LINES = [f"rain on the roof and rain on the road, {i} times over" for i in range(60)]
RECIPE = """
source: src
output: run
target: {embed: 12, layers: 2}
transfer: {wavelet: haar, analysis: wavelet, width: {embed: resample}, memory_limit: 64MiB, dtype: float32}
cluster: {executor: local, tensor: 1, data: 1}
calibrate: {tokens: 256, context: 32}
train: {steps: 3, batch: 2, learning_rate: 1.0e-3, text: [text.txt], context: 16}
overwrite: false
"""


def make_bases(folder: Path, run: Callable[..., Any]) -> dict[str, Path]:
    """By name, a folder with inputs; ``run(folder, *arguments)`` is the command line."""
    bases = {name: folder / name for name in ("llama", "sharded", "gguf", "vit", "store")}
    for base in bases.values():
        base.mkdir()
    _texts(bases["llama"])
    (bases["llama"] / "recipe.yaml").write_text(RECIPE)
    _save("llama", bases["llama"] / "src", vocab_size=300, tie_word_embeddings=True, eos_token_id=256)
    _save("llama", bases["sharded"] / "src", vocab_size=300, max_shard_size="20KB")
    _save("vit", bases["vit"] / "src", num_labels=2)
    _images(bases["vit"])
    for made, name in (("gguf", "src.gguf"), ("store", "store")):
        without = shutil.ignore_patterns("tokenizer*") if made == "gguf" else None
        shutil.copytree(bases["llama"] / "src", bases[made] / "src", ignore=without)
        verb = ["export", "store", name] if made == "gguf" else []
        for command in (["scale", "src", "store", "--executor", "local"], *([verb] if verb else [])):
            outcome = run(bases[made], *command)
            assert outcome.status == 0, outcome.err
    return bases


def _save(kind: str, folder: Path, max_shard_size: str = "1GB", **fields: Any) -> None:
    import transformers

    config, model, sizes = PICOS[kind]
    ids = {"bos_token_id": None, "eos_token_id": 256, "pad_token_id": None} if "vocab_size" in sizes else {}
    torch.manual_seed(0)
    made = getattr(transformers, model)(getattr(transformers, config)(**{**sizes, **ids, **fields}))
    randomised(made).save_pretrained(folder, max_shard_size=max_shard_size)  # type: ignore[operator]
    if "vocab_size" in sizes:
        save_byte_tokenizer(folder)
        generation = {"eos_token_id": [256], "temperature": 0.6, "do_sample": True, "transformers_version": "5.0.0"}
        (folder / "generation_config.json").write_text(json.dumps(generation))


def _texts(folder: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    (folder / "text.txt").write_text("\n".join(LINES))
    (folder / "text.jsonl").write_text("".join(json.dumps({"text": line, "n": 1}) + "\n" for line in LINES))
    pyarrow.parquet.write_table(pyarrow.table({"text": LINES}), folder / "text.parquet")
    with (folder / "text.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["text", "n"], *([line, 1] for line in LINES)])


def _images(folder: Path) -> None:
    from PIL import Image

    generator = np.random.default_rng(0)
    for name in ("red", "green"):
        (folder / "images" / name).mkdir(parents=True)
        for i in range(20):
            pixels = generator.integers(0, 255, (12, 12, 3), np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{i}.png")
    size = {"height": 12, "width": 12}
    processor = {"image_processor_type": "ViTImageProcessor", "size": size, "do_normalize": True}
    processor |= {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "resample": 2}
    (folder / "src/preprocessor_config.json").write_text(json.dumps(processor))
