"""Tokenising texts into a store: little of it by threads of this process, much by Ray Data, to the same bytes.

A shard is a task: its worker reads the text by ranges, tokenises a MiB or so at a time, and writes the shard itself.
Nothing but numbers of shards and their records goes through Ray.
"""

from __future__ import annotations

import functools
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import numpy as np

from bot_dist import errors
from bot_dist.data.encoder import Encoder
from bot_dist.data.texts import Identity, Piece, TextFile
from bot_dist.data.token_store import ShardRecord, TokenStore, TokenStoreWriter
from bot_dist.errors import BotDistError, CheckpointError, CheckpointMissingError, InputError
from bot_dist.events import OnEvent, ignore
from bot_dist.events.training import Tokenised, TokensDamaged
from bot_dist.execute.process import usable_cpus
from bot_dist.storage.files import version
from bot_dist.storage.folder import Storage
from bot_dist.store.manifest import MANIFEST
from bot_dist.urls import label

SHARDS = 256
"""That a text is cut into, if they are neither smaller nor larger than these:"""
SMALLEST, LARGEST = 2**20, 2**26
"""Bytes of text in a shard, about."""
LOCAL = 2**25
"""Bytes of text that are tokenised here: Ray's workers take longer to start."""


class Part(NamedTuple):
    """A range of a text."""

    text: int
    start: int
    stop: int


class Shard(NamedTuple):
    """What is tokenised, and stored, as one."""

    parts: tuple[Part, ...]
    nbytes: int
    """Of text, about."""


def shards_of(texts: Sequence[TextFile]) -> list[Shard]:
    """The texts in order, cut by nothing but their sizes."""
    nbytes = sum(size for text in texts for *_, size in text.ranges(LARGEST))
    wanted = min(max(nbytes // SHARDS, SMALLEST), LARGEST)
    found: list[Shard] = []
    parts: list[Part] = []
    held = 0
    for number, text in enumerate(texts):
        for start, stop, size in text.ranges(wanted):
            parts.append(Part(number, start, stop))
            held += size
            if held >= wanted:
                found.append(Shard(tuple(parts), held))
                parts, held = [], 0
    return [*found, Shard(tuple(parts), held)] if parts else found


@dataclass(frozen=True, kw_only=True)
class Tokenising:
    """All that is to be done, and what any process needs to do it."""

    texts: Sequence[TextFile]
    shards: Sequence[Shard]
    encoder: Encoder
    writer: TokenStoreWriter

    def run(self, number: int) -> ShardRecord:
        """Write a shard. Raises InputError for what can't be read or is no text."""
        parts = self.shards[number].parts
        documents = dict.fromkeys((part.text for part in parts), 0)

        def pieces(part: Part) -> Iterator[Piece]:
            for piece in self.texts[part.text].pieces(part.start, part.stop):
                documents[part.text] += piece.ends
                yield piece

        tokens = [*self.encoder.tokens(itertools.chain.from_iterable(map(pieces, parts)))]
        return self.writer.write(number, np.concatenate(tokens) if tokens else np.empty(0, np.int32), documents)


def committed(url: str, on_event: OnEvent = ignore) -> TokenStore | None:
    """The store that is there, with all its shards. One that is damaged becomes an unfinished one, of which whole
    shards are taken up, and a TokensDamaged event says why."""
    try:
        store = TokenStore(url)
        store.check_sizes()
    except CheckpointMissingError:
        return None
    except CheckpointError as error:
        on_event(TokensDamaged(why=str(error)))
        Storage(url).remove(MANIFEST)
        return None
    return store


def make_store(
    work: Tokenising,
    key: Any,
    files: Mapping[str, Identity],
    check: Callable[[ShardRecord], None],
    on_event: OnEvent = ignore,
) -> TokenStore:
    """Write all shards that are not there, and commit them under ``key``. ``files`` are the texts' as they were when
    the key was made. ``check`` may raise over a shard; nothing is committed then.

    ``on_event`` gets a Tokenised after each shard: how much of the text is done.

    Raises InputError for a text that has no document, is no text, or was changed meanwhile.
    """
    records = work.writer.written()
    todo = [number for number in range(len(work.shards)) if number not in records]
    assert max(records, default=0) < len(work.shards), "one key, two ways to cut the texts"
    for record in records.values():
        check(record)
    done, nbytes = sum(work.shards[number].nbytes for number in records), sum(shard.nbytes for shard in work.shards)
    for number, record in tokenise(work, todo):
        check(record)
        records[number] = record
        done += work.shards[number].nbytes
        on_event(Tokenised(bytes=done, of_bytes=nbytes))
    for url, identity in files.items():
        if version(url) != identity.version:
            work.writer.discard(len(work.shards))
            raise InputError(f"{label(url)} was changed while it was tokenised; nothing is kept, run it again")
    for number, text in enumerate(work.texts):
        if not any(record.documents.get(str(number)) for record in records.values()):
            raise InputError(f"train.text: {label(text.url)} has no text in it; leave it out")
    work.writer.commit([records[number] for number in range(len(work.shards))], key)
    return TokenStore(work.writer.storage.url)


def tokenise(work: Tokenising, numbers: Sequence[int]) -> Iterator[tuple[int, ShardRecord]]:
    """Write those shards; each with its record when it is done, in any order. Raises as ``Tokenising.run``.

    Ray must be initialised where there is more text in them than ``LOCAL`` bytes.
    """
    if sum(work.shards[number].nbytes for number in numbers) <= LOCAL:
        return _here(work, numbers)
    return _by_ray(work, numbers)


def _here(work: Tokenising, numbers: Sequence[int]) -> Iterator[tuple[int, ShardRecord]]:
    with ThreadPoolExecutor(usable_cpus(), thread_name_prefix="bot_dist-tokenise") as pool:
        try:
            yield from zip(numbers, pool.map(work.run, numbers), strict=True)
        finally:
            pool.shutdown(cancel_futures=True)


def _by_ray(work: Tokenising, numbers: Sequence[int]) -> Iterator[tuple[int, ShardRecord]]:
    import ray
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    ray.data.DataContext.get_current().enable_progress_bars = False
    reference = [ray.put(work)]  # in a list, so that Ray Data does not fetch it for every task
    rows = ray.data.from_items([{"shard": number} for number in numbers], override_num_blocks=len(numbers))
    done: Iterable[dict[str, Any]] = rows.map(cast(Any, _by_task), fn_args=(reference,), num_cpus=1).iter_rows()
    for row in done:
        if row["error"]:
            raise getattr(errors, row["error"])(row["found"])
        yield row["shard"], ShardRecord(**json.loads(row["found"]))


def _by_task(row: dict[str, Any], reference: Sequence[Any]) -> dict[str, Any]:
    """``row`` with the shard's record, or with an error of ours: Ray would wrap it, and log a traceback."""
    try:
        return {**row, "error": "", "found": _fetched(reference[0]).run(row["shard"]).to_bytes().decode()}
    except BotDistError as error:
        return {**row, "error": type(error).__name__, "found": str(error)}


@functools.lru_cache(maxsize=1)
def _fetched(reference: Any) -> Tokenising:
    """The work, once in a worker's life."""
    import ray

    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a task has one core
    work: Tokenising = ray.get(reference)
    return work
