"""A comparison: one source, several ways to the same target, all trained alike and measured against scratch.

What is done is kept in the output folder under a key of everything that decides it, so that a comparison goes on where
it was left, and takes again what an earlier one with another list of methods has measured.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bot_dist.evaluate.comparison import ComparisonRecipe, PretrainConfig
from bot_dist.planning import OnEvent
from bot_dist.recipe import ClusterConfig, TrainConfig
from bot_dist.urls import absolute, label


def _pretrained(pretrain: PretrainConfig, output: Path, cluster: ClusterConfig, on_event: OnEvent) -> dict[str, Any]:
    """Train the source; what was measured, with its ``url``."""
    from bot_dist.convert.byte_tokenizer import save_byte_tokenizer
    from bot_dist.convert.tokenizer import load_tokenizer
    from bot_dist.evaluate.untrained import untrained_config
    from bot_dist.train.driver import TrainRun
    from bot_dist.train.driver import pretrain as train

    tokenizer_url = pretrain.tokenizer
    if tokenizer_url == "bytes":
        tokenizer_url = str(output / "tokenizer")
        save_byte_tokenizer(tokenizer_url)
    config = untrained_config(
        pretrain.model_type, pretrain.sizes, pretrain.fields, load_tokenizer(absolute(tokenizer_url))
    )
    key = digest({"config": config, "train": _decisive(pretrain.train)})
    kept = output / "results" / f"source-{key}.json"
    if kept.is_file():
        return json.loads(kept.read_text())
    url = str(output / f"source-{key}.zarr")
    result = train(
        [TrainRun(name="source", config=config, url=None, steps=pretrain.train.steps, save_url=url, overwrite=True)],
        train=pretrain.train,
        cluster=cluster,
        tokenizer_url=tokenizer_url,
        output=str(output / "source"),
        on_event=lambda event: on_event({"stage": "pretrain", **event}),
    )
    return _keep(kept, {"key": key, "url": url, "config": config, **result.to_json()})


def _decisive(train: TrainConfig) -> dict[str, Any]:
    """All that decides what a training gives: its settings and its text."""
    from bot_dist.convert.storage import read_file, resolve_all

    files = sorted({file for pattern in train.text for file in resolve_all(pattern)})
    text = [hashlib.sha256(read_file(file)).hexdigest() for file in files]
    return {**train.model_dump(exclude={"text"}), "text": text}


def digest(data: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:12]


def _keep(path: Path, result: dict[str, Any]) -> dict[str, Any]:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(result, indent=1))
    partial.replace(path)
    return result
