"""Tokenising texts into a store: little of it by threads of this process, much by any executor, to the same bytes.

A shard is a task: its worker reads the text by ranges, tokenises a MiB or so at a time, and writes the shard itself.
Nothing but numbers of shards and their records comes back from it.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bot_dist.data.encoder import Encoder
from bot_dist.data.texts import Identity, Piece, TextFile
from bot_dist.data.token_store import ShardRecord, TokenStore, TokenStoreWriter
from bot_dist.errors import CheckpointError, CheckpointMissingError, InputError
from bot_dist.events import OnEvent, ignore
from bot_dist.events.training import Tokenised, TokensDamaged
from bot_dist.execute import ALONE, create_executor
from bot_dist.recipe import ClusterConfig
from bot_dist.storage.files import version
from bot_dist.storage.folder import Storage
from bot_dist.store.manifest import MANIFEST
from bot_dist.urls import label

SHARDS = 256
"""That a text is cut into, if they are neither smaller nor larger than these:"""
SMALLEST, LARGEST = 2**20, 2**26
"""Bytes of text in a shard, about."""
LOCAL = 2**25
"""Bytes of text that are tokenised here: the workers of another executor may take longer to start."""


class Part(NamedTuple):
    """A range of a text."""

    text: int
    start: int
    stop: int


class Shard(NamedTuple):
    """Parts of texts that are tokenised, and stored, as one."""

    parts: tuple[Part, ...]
    nbytes: int
    """Bytes of the text, about."""


def shards_of(texts: Sequence[TextFile]) -> list[Shard]:
    """The texts in order, cut by nothing but their sizes."""
    nbytes = sum(size for text in texts for *_, size in text.ranges(LARGEST))
    wanted = min(max(nbytes // SHARDS, SMALLEST), LARGEST)
    shards: list[Shard] = []
    parts: list[Part] = []
    held = 0
    for number, text in enumerate(texts):
        for start, stop, size in text.ranges(wanted):
            parts.append(Part(number, start, stop))
            held += size
            if held >= wanted:
                shards.append(Shard(tuple(parts), held))
                parts, held = [], 0
    return [*shards, Shard(tuple(parts), held)] if parts else shards


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
    cluster: ClusterConfig = ALONE.config,
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

    def on_shard(number: int, record: ShardRecord) -> None:
        nonlocal done
        check(record)
        records[number] = record
        done += work.shards[number].nbytes
        on_event(Tokenised(bytes=done, of_bytes=nbytes))

    tokenise(work, todo, on_shard, cluster)
    for url, identity in files.items():
        if version(url) != identity.version:
            work.writer.discard(len(work.shards))
            raise InputError(f"{label(url)} was changed while it was tokenised; nothing is kept, run it again")
    for number, text in enumerate(work.texts):
        if not any(record.documents.get(str(number)) for record in records.values()):
            raise InputError(f"train.text: {label(text.url)} has no text in it; leave it out")
    work.writer.commit([records[number] for number in range(len(work.shards))], key)
    return TokenStore(work.writer.storage.url)


def tokenise(
    work: Tokenising, numbers: Sequence[int], on_shard: Callable[[int, ShardRecord], None], cluster: ClusterConfig
) -> None:
    """Write those shards; ``on_shard`` is called with each and its record when it is done, in any order. Raises as
    ``Tokenising.run``."""
    little = sum(work.shards[number].nbytes for number in numbers) <= LOCAL
    with create_executor(ALONE.config if little else cluster) as executor:
        executor.run_tasks(work.run, numbers, lambda i, record: on_shard(numbers[i], record), executor.at_once())
