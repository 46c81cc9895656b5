"""A text that a causal model writes itself, for where there is none to calibrate it on.

It is sampled token by token, with a cache of keys and values, as the model is: at temperature 1, from the token that
begins documents. Sequences are shared out in groups of a size that does not depend on how many there are to write them,
and each has random numbers of its own: so whoever writes, it is the same text.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from bot_dist.data.calibration_windows import OPENING
from bot_dist.errors import InputError
from bot_dist.events import OnEvent, ignore
from bot_dist.events.calibrate import OWN_TEXT, TakenUp, TextProgress, TextWritten
from bot_dist.execute import Executor
from bot_dist.fit.own_text_cost import Writing
from bot_dist.fit.statistics_share import Scratch, check_finite, write_whole
from bot_dist.fit.streamed_model import StreamedModel
from bot_dist.formats.source import Source
from bot_dist.formats.sources.config_only import Shapes
from bot_dist.model import Model
from bot_dist.storage import disk
from bot_dist.store.manifest import digest
from bot_dist.tensors.random import uniform
from bot_dist.urls import absolute, label

VERSION = 1
"""Version of what is written: a text of another version is written anew."""
SEED = 0
CHUNK = 32
"""Tokens of every sequence of a group that a step writes."""
TOKENS = "tokens"
DRAWN = f"a text of one's own, seed {SEED}"
"""Key of the random numbers."""


def write_text(
    source: Source,
    model: Model,
    planned: Writing,
    begin: int | None,
    folder: str | Path,
    *,
    executor: Executor,
    on_event: OnEvent = ignore,
) -> torch.Tensor:
    """A LongTensor ``(sequences, window + 1)``: ``begin`` (None: any token), and what ``model``, whose weights are in
    ``source``, writes after it. The same text, where ``folder`` (a path that all nodes see) has it, is taken from
    there; else it is kept there.

    ``on_event`` gets a TakenUp; or a TextProgress after each step, and a TextWritten. Raises InputError where weights
    are not finite or there are none, SourceError when the source is not the model's, CheckpointError when the folder
    can't be written.
    """
    if isinstance(source, Shapes):
        raise InputError(f"{label(source.url)} is a configuration without weights; give the model itself")
    length = planned.window + 1
    wanted = {
        "version": VERSION,
        "seed": SEED,
        "source": source.provenance(),
        "config": model.config,
        "begin": begin,
        "sequences": planned.sequences,
        "length": length,
    }
    path = Path(absolute(str(folder))) / f"written-{digest(wanted)}.safetensors"
    n_tokens, started = planned.sequences * length, time.perf_counter()

    if (kept := _kept(path)) is not None:
        on_event(TakenUp(purpose=OWN_TEXT, url=str(path), tokens=n_tokens, loss=None))
        return kept
    source.check(model)
    with disk.writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch = tempfile.mkdtemp(prefix="writing-", suffix=".scratch", dir=path.parent)
    work = WritingWork(
        source=source,
        model=model,
        begin=begin,
        sequences=planned.sequences,
        length=length,
        group=planned.group,
        held=planned.held,
        scratch=scratch,
        shares=planned.shares,
    )
    tokens = torch.empty(work.sequences, work.length, dtype=torch.int64)

    def on_step(step: int) -> None:
        if work.ends_group(step):
            for share in range(work.shares):
                rows = work.rows(step, share)
                tokens[rows.start : rows.stop] = load_file(work.part(step, share))[TOKENS]
            work.discard(step)
        seconds = time.perf_counter() - started
        on_event(TextProgress(tokens=(step + 1) * n_tokens // work.steps, of=n_tokens, seconds=seconds))

    try:
        executor.run_shares(work, on_step)
        write_whole(path, {TOKENS: tokens})
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    on_event(TextWritten(url=str(path), tokens=n_tokens, seconds=time.perf_counter() - started))
    return tokens


def _kept(path: Path) -> torch.Tensor | None:
    """The text in a file; None where it is not there, or torn by a crash of the machine."""
    try:
        return load_file(path)[TOKENS]
    except (FileNotFoundError, SafetensorError, KeyError):
        return None


def written_windows(text: torch.Tensor, *, every: bool) -> torch.Tensor:
    """Windows ``(sequences, length - 1)`` of a text ``(sequences, length)``: ``every`` one begins as its sequence does;
    or one of ``OPENING``, as of other texts, and the others behind the first token."""
    opens = torch.arange(len(text)) % OPENING == 0
    return torch.where(opens[:, None] | every, text[:, :-1], text[:, 1:])


def random_tokens(model: Model, sequences: int, window: int) -> torch.Tensor:
    """A LongTensor ``(sequences, window)``, always the same."""
    drawn = uniform(f"random tokens, seed {SEED}", (sequences, window), ((0, sequences), (0, window)))
    return (torch.from_numpy(drawn).double() * model.sizes["vocab"]).long()


@dataclass(frozen=True, kw_only=True)
class WritingWork(Scratch):
    """A text that is to be written, as a small and picklable description."""

    source: Source
    model: Model
    begin: int | None
    """The token that every sequence begins with; None: any, a random one."""
    sequences: int
    length: int
    """Tokens of each sequence, its first included."""
    group: int
    """Sequences that are written side by side; share ``i`` has groups ``i``, ``i + shares`` and so on."""
    held: int
    """Blocks whose weights stay in memory; those of the others are read for every token."""
    ahead: ClassVar[Literal[0, 1]] = 1

    @property
    def chunks(self) -> int:
        """Steps that write a group."""
        return -(-self.length // CHUNK)

    @property
    def steps(self) -> int:
        return -(-self.sequences // (self.group * self.shares)) * self.chunks

    def rows(self, step: int, share: int) -> range:
        """The sequences that a share writes on in a step."""
        first = (step // self.chunks * self.shares + share) * self.group
        return range(min(first, self.sequences), min(first + self.group, self.sequences))

    def ends_group(self, step: int) -> bool:
        return (step + 1) % self.chunks == 0

    def open(self, share: int) -> WritingShare:
        return WritingShare(self, share)


class WritingShare:
    """Holds the weights around the blocks and of the first blocks, and the cache of one group."""

    def __init__(self, work: WritingWork, share: int) -> None:
        self._work, self._share = work, share
        self._model = StreamedModel(work.source, work.model)
        self._rows = range(0)
        self._tokens = torch.empty(0, 0, dtype=torch.int64)
        self._drawn = torch.empty(0, 0)
        self._cache: Any = None

    def close(self) -> None:
        self._model.free()

    def run(self, step: int, keep: bool = True) -> None:
        """Write on. Raises InputError where logits are not finite."""
        if not keep:
            return
        rows = self._work.rows(step, self._share)
        if rows and rows != self._rows:
            self._begin(rows)
        if rows:
            self._write(min((step % self._work.chunks + 1) * CHUNK, self._work.length))
        if self._work.ends_group(step):
            tokens = self._tokens if rows else torch.empty(0, self._work.length, dtype=torch.int64)
            self._work.put(step, self._share, {TOKENS: tokens})

    def _begin(self, rows: range) -> None:
        import transformers

        work, model = self._work, self._work.model
        sizes = (work.sequences, work.length)
        self._rows = rows
        self._drawn = torch.from_numpy(uniform(DRAWN, sizes, ((rows.start, rows.stop), (0, work.length)))).double()
        self._tokens = (self._drawn[:, :1] * model.sizes["vocab"]).long()
        if work.begin is not None:
            self._tokens = torch.full_like(self._tokens, work.begin)
        config: Any = self._model.module.config
        self._cache = transformers.DynamicCache(config=config)

    def _write(self, length: int) -> None:
        with self._model.reading(self._work.held) as module:
            while (written := self._tokens.shape[1]) < length:
                outputs = module(input_ids=self._tokens[:, -1:], past_key_values=self._cache, use_cache=True)
                logits = outputs["logits"][:, -1]
                check_finite(logits, self._work.source, "logits")
                self._tokens = torch.cat([self._tokens, sampled(logits, self._drawn[:, written, None])], dim=1)


def sampled(logits: torch.Tensor, drawn: torch.Tensor) -> torch.Tensor:
    """Tokens ``(n, 1)`` by the probabilities of ``logits`` ``(n, vocab)``, of ``drawn`` ``(n, 1)`` from [0, 1)."""
    below = logits.double().softmax(-1).cumsum(-1)
    return torch.searchsorted(below, drawn * below[:, -1:], right=True).clamp_(max=logits.shape[-1] - 1)
