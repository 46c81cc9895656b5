"""Text to token windows: the token file of a run, and the order in which windows are trained on."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash
from numpy.typing import NDArray

from bot_dist.convert.storage import read_file, resolve_all
from bot_dist.convert.text import Tokens, pack_text
from bot_dist.errors import InputError
from bot_dist.recipe import TrainConfig
from bot_dist.urls import label

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """Packed tokens on disk: windows to train on first, held-out windows at the very end."""

    path: str
    """Of a ``.npy`` with int32 tokens."""
    tokens: int
    context: int
    held_out: int
    """Windows of ``context`` tokens."""

    def train(self) -> Tokens:
        """Memory map of the tokens that may be trained on."""
        tokens: Tokens = np.load(self.path, mmap_mode="r")
        return tokens[: self.tokens - self.held_out * self.context]

    def held_out_windows(self) -> torch.Tensor:
        """LongTensor ``(held_out, context)``."""
        import torch

        tokens = np.load(self.path, mmap_mode="r")[self.tokens - self.held_out * self.context :]
        return torch.from_numpy(tokens.astype(np.int64).reshape(self.held_out, self.context))


class Batches:
    """The windows of a text in a shuffled order that only ``seed`` decides.

    Non-overlapping windows of ``context`` tokens; every epoch goes through all of them once, in a new order. What a
    step trains on does not depend on how many ranks share it.
    """

    def __init__(self, tokens: Tokens, context: int, batch: int, seed: int) -> None:
        self._tokens, self._context, self._batch, self._seed = tokens, context, batch, seed
        self._windows = len(tokens) // context
        assert self._windows > 0, "prepare_tokens refuses a text that is shorter than one batch"
        self._order: tuple[int, NDArray[np.int64]] = (-1, np.empty(0, np.int64))

    def batch(self, step: int, rank: int, world: int) -> torch.Tensor:
        """LongTensor ``(batch / world, context)``: what ``rank`` of ``world`` trains on in ``step``."""
        import torch

        assert self._batch % world == 0, (self._batch, world)
        share = self._batch // world
        first = step * self._batch + rank * share
        rows = [self._window(i) for i in range(first, first + share)]
        return torch.from_numpy(np.stack(rows).astype(np.int64))

    def _window(self, index: int) -> Tokens:
        epoch, position = divmod(index, self._windows)
        if self._order[0] != epoch:
            self._order = (epoch, np.random.default_rng([self._seed, epoch]).permutation(self._windows))
        start = int(self._order[1][position]) * self._context
        return self._tokens[start : start + self._context]


def text_files(config: TrainConfig) -> list[str]:
    """The files that ``config.text`` names, sorted.

    Raises InputError when there are none, or the batch doesn't divide over the workers.
    """
    if config.batch % config.workers:
        raise InputError(
            f"train.batch is {config.batch} sequences, not divisible over train.workers={config.workers}; "
            f"use train.batch={-(-config.batch // config.workers) * config.workers}"
        )
    files = sorted({file for pattern in config.text for file in resolve_all(pattern)})
    if not files:
        raise InputError("train.text names no file; give paths, fsspec URLs or package://PACKAGE/FILE")
    return files


def prepare_tokens(config: TrainConfig, tokenizer_url: str, vocab_size: int, folder: str | Path) -> TokenFile:
    """Tokenise ``config.text`` into ``folder``, or take what an earlier run with the same files and tokenizer left.

    Raises InputError when there is no text, a file can't be read, ``batch`` is not divisible by ``workers``, a token is
    no row of the model's table, or the text is shorter than one batch and the held-out sequences.
    """
    from bot_dist.convert.tokenizer import load_tokenizer

    files = text_files(config)
    tokenizer = load_tokenizer(tokenizer_url)
    key = {"packing": 1, "files": [_identity(file) for file in files], "tokenizer": _tokenizer_digest(tokenizer)}
    path, key_path = Path(folder) / "tokens.npy", Path(folder) / "tokens.json"
    if key_path.exists() and path.exists() and json.loads(key_path.read_text()) == key:
        tokens: Tokens = np.load(path, mmap_mode="r")
    else:
        tokens = pack_text(files, tokenizer)
        path.parent.mkdir(parents=True, exist_ok=True)
        key_path.unlink(missing_ok=True)
        np.save(path, tokens)
        key_path.write_text(json.dumps(key))
    _check(tokens, config, tokenizer_url, vocab_size, len(files))
    return TokenFile(path=str(path.resolve()), tokens=len(tokens), context=config.context, held_out=config.held_out)


def _check(tokens: Tokens, config: TrainConfig, tokenizer_url: str, vocab_size: int, files: int) -> None:
    if int(tokens.max()) >= vocab_size:
        raise InputError(
            f"train.text: the tokenizer of {tokenizer_url} gives token {int(tokens.max())}, but the model's vocabulary "
            f"has {vocab_size}; the tokenizer does not belong to this model"
        )
    wanted = (config.batch + config.held_out) * config.context
    if len(tokens) < wanted:
        raise InputError(
            f"train.text: {len(tokens)} tokens in {files} file(s), wanted at least {wanted} (batch {config.batch} + "
            f"held_out {config.held_out} sequences of {config.context}); give more text or lower train.context, "
            f"train.batch or train.held_out"
        )


def _identity(file: str) -> list[Any]:
    """What tells one version of a file from another: its name, size and content."""
    content = read_file(file)
    return [label(file), len(content), xxhash.xxh3_128_hexdigest(content)]


def _tokenizer_digest(tokenizer: Any) -> str:
    parts = [sorted(tokenizer.get_vocab().items()), tokenizer.eos_token_id]
    backend = getattr(tokenizer, "backend_tokenizer", None)  # merges and normalisation; sentencepiece has none
    parts.append(backend.to_str() if backend is not None else type(tokenizer).__name__)
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()
