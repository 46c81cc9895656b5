"""Batches to train on: a text's tokens, made once and kept; the order of samples; each rank's share of a batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, Protocol, TypeVar

import numpy as np

from bot_dist.data.shuffle import shuffled
from bot_dist.data.texts import identities, open_texts
from bot_dist.data.token_store import TokenStore, TokenStoreWriter
from bot_dist.data.tokenise import Tokenising, committed, make_store, shards_of
from bot_dist.errors import InputError
from bot_dist.events import OnEvent, ignore
from bot_dist.execute import ALONE
from bot_dist.recipe import ClusterConfig, TrainConfig
from bot_dist.storage.folder import Storage
from bot_dist.store.manifest import digest
from bot_dist.urls import absolute, label

if TYPE_CHECKING:
    import torch

PACKING = 3
"""Changes whenever the same text and tokenizer give other tokens, or other files."""

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Samples(Protocol[T_co]):
    """Samples that can be trained on, in the order in which they lie."""

    def __len__(self) -> int: ...

    def read(self, numbers: Sequence[int]) -> T_co:
        """Read the samples of these numbers, stacked."""


class Batches(Generic[T]):
    """Samples in a shuffled order that only ``seed`` decides; every epoch goes through all of them once, in a new one.

    How far a run has come is one number: the samples that it has consumed. What a step trains on does not depend on
    how many ranks share it, and nothing is held of the order.
    """

    def __init__(self, samples: Samples[T], batch: int, seed: int) -> None:
        self._samples, self._batch, self._seed = samples, batch, seed
        assert len(samples) > 0, "what is shorter than a batch is refused before"

    def batch(self, step: int, rank: int, world: int) -> T:
        """The ``batch / world`` samples that ``rank`` of ``world`` trains on in ``step``. Every step has ``batch``."""
        assert self._batch % world == 0, (self._batch, world)
        share = self._batch // world
        return self.read(step * self._batch + rank * share, share)

    def read(self, position: int, n: int) -> T:
        """``n`` samples, after ``position`` have been consumed."""
        return self._samples.read(self._numbers(position, n))

    def numbers(self, step: int) -> list[int]:
        """The numbers of the samples that ``step`` trains on, over all ranks."""
        return self._numbers(step * self._batch, self._batch)

    def _numbers(self, position: int, n: int) -> list[int]:
        epochs, places = np.divmod(np.arange(position, position + n), len(self._samples))
        numbers = [shuffled(places[epochs == e], len(self._samples), [self._seed, e]) for e in np.unique(epochs)]
        shuffled_numbers: list[int] = np.concatenate(numbers).tolist()
        return shuffled_numbers


@dataclass(frozen=True, kw_only=True)
class TokenFile:
    """Packed tokens: windows to train on first, held-out windows at the very end."""

    url: str
    """URL of a ``TokenStore``."""
    tokens: int
    context: int
    held_out: int
    """Number of windows of ``context`` tokens that are held out."""
    first: tuple[int, ...] = ()
    """The tokens that every window begins with, in place of its own."""
    last: tuple[int, ...] = ()
    """The tokens that every window ends with."""

    def train(self) -> Windows:
        """The windows that may be trained on: they don't overlap, and a rest that fills none is left out."""
        return Windows(self, start=0, n=self.tokens // self.context - self.held_out)

    def held_out_samples(self) -> torch.Tensor:
        """Read the held-out windows, a LongTensor ``(held_out, context)``."""
        start = self.tokens - self.held_out * self.context
        return Windows(self, start=start, n=self.held_out).read(range(self.held_out))


class Windows:
    """Samples of ``context`` tokens, one behind the other. Pickles as a URL and numbers."""

    def __init__(self, file: TokenFile, *, start: int, n: int) -> None:
        self._file, self._start, self._n = file, start, n

    def __len__(self) -> int:
        return self._n

    def read(self, numbers: Sequence[int]) -> torch.Tensor:
        """LongTensor ``(len(numbers), context)``. Raises CheckpointError for tokens that are damaged."""
        import torch

        file = self._file
        windows = self._store.read([self._start + i * file.context for i in numbers], file.context)
        windows[:, : len(file.first)] = file.first[: file.context]
        windows[:, max(file.context - len(file.last), 0) :] = file.last[: file.context]
        return torch.from_numpy(windows)

    @cached_property
    def _store(self) -> TokenStore:
        return TokenStore(self._file.url)

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_store"}


def prepare_tokens(
    config: TrainConfig,
    tokenizer_url: str,
    vocab_size: int,
    folder: str | Path,
    on_event: OnEvent = ignore,
    *,
    masked: bool = False,
    cluster: ClusterConfig = ALONE.config,
) -> TokenFile:
    """Tokenise ``config.text``, or take what an earlier run has made of the same content with the same tokenizer; what
    one has begun is gone on with. It is kept in ``config.token_cache``, or in ``tokens`` in the ``folder``.

    What stands before a document begins every window, too; windows of ``masked`` models end as the tokenizer ends a
    text.
    ``on_event`` is called as by ``committed`` and ``make_store``. ``cluster`` names
    the executor that tokenises much text; little is tokenised by threads of this process.

    Raises InputError when there is no text, a file can't be read or is changed meanwhile, a token is no row of the
    model's table, or the text is shorter than one batch and the held-out sequences.
    """
    from bot_dist.data.encoder import Encoder
    from bot_dist.formats.tokenizer import load_tokenizer

    texts = open_texts(config.text, config.column, limit=config.document_limit)
    encoder = Encoder(load_tokenizer(tokenizer_url), bos=config.bos, eos=config.eos)

    def check(largest: int) -> None:
        if largest >= vocab_size:
            raise InputError(
                f"train.text: the tokenizer of {label(tokenizer_url)} gives token {largest}, but the model's "
                f"vocabulary has {vocab_size}; the tokenizer does not belong to this model"
            )

    check(max([*encoder.before, *encoder.behind], default=0))
    cache = absolute(config.token_cache or str(Path(folder) / "tokens"))
    files = identities(texts, Storage(cache))
    contents = [[*text.kind, *(files[url].digest for url in text.sources)] for text in texts]
    key = {"packing": PACKING, "texts": contents, "tokenizer": encoder.digest}
    url = f"{cache}/{digest(key)}"
    store = committed(url, on_event)
    if store is None:
        writer = TokenStoreWriter(url, "uint16" if encoder.size <= 2**16 else "uint32")
        work = Tokenising(texts=texts, shards=shards_of(texts), encoder=encoder, writer=writer)
        store = make_store(work, key, files, lambda record: check(record.largest), on_event, cluster)
    check(store.largest)
    wanted = (config.batch + config.held_out) * config.context
    if len(store) < wanted:
        raise InputError(
            f"train.text: {len(store)} tokens in {len(texts)} file(s), wanted at least {wanted} (batch "
            f"{config.batch} + held_out {config.held_out} sequences of {config.context}); give more text or lower "
            f"train.context, train.batch or train.held_out"
        )
    return TokenFile(
        url=url,
        tokens=len(store),
        context=config.context,
        held_out=config.held_out,
        first=encoder.before,
        last=encoder.closing if masked else (),
    )
