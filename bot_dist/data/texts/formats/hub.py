"""Data sets that Hugging Face's ``datasets`` loads by name, streamed: ``hf-datasets://NAME?split=SPLIT``."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar
from urllib.parse import parse_qsl

from bot_dist.data.texts.formats import TextFormat
from bot_dist.data.texts.pieces import Piece, pieces_of, too_large
from bot_dist.errors import InputError, MissingPackageError, blamed, nearest, some
from bot_dist.storage.files import size_bytes
from bot_dist.urls import DATASETS

OPTIONS = ("split", "config", "revision")
_COMMIT = re.compile(r"hf://datasets/[^@]+@([0-9a-f]{40})/")

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class DatasetName:
    """A data set on the hub or in a local folder, as ``load_dataset`` takes it."""

    url: str
    path: str
    split: str = "train"
    config: str | None = None
    revision: str | None = None

    @classmethod
    def parse(cls, url: str) -> DatasetName:
        """``hf-datasets://NAME?split=…&config=…&revision=…``; NAME may be a path. Raises InputError."""
        path, _, query = url.removeprefix(DATASETS).partition("?")
        options = dict(parse_qsl(query, keep_blank_values=True))
        for key in options.keys() - {*OPTIONS}:
            raise InputError(f"{url}: unknown option '{key}'; {nearest(key, OPTIONS)}")
        if not path:
            raise InputError(f"{url}: write {DATASETS}NAME?split=train, with config= and revision= where it has them")
        return cls(url=url, path=path, **options)

    def load(self, section: str, *, streaming: bool) -> Any:
        """Its ``Dataset`` or ``IterableDataset``. Raises InputError, MissingPackageError."""
        return self._asked(section, lambda d: d.load_dataset(**self._named(), split=self.split, streaming=streaming))

    def files(self, section: str) -> tuple[str, ...]:
        """The data files that it is made of, as URLs. Raises as ``load``."""
        builder = self._asked(section, lambda d: d.load_dataset_builder(**self._named()))
        return tuple(map(str, (builder.config.data_files or {}).get(self.split, ())))

    def pinned(self, files: Sequence[str]) -> DatasetName:
        """Itself at the commit that its ``files`` are of, so that nobody reads a later one; on the hub alone."""
        commits = {match[1] for file in files if (match := _COMMIT.match(file))}
        return replace(self, revision=commits.pop()) if len(commits) == 1 else self

    def _named(self) -> dict[str, Any]:
        return {"path": self.path, "name": self.config, "revision": self.revision}

    def _asked(self, section: str, call: Callable[[Any], T]) -> T:
        try:
            import datasets
        except ImportError:
            raise MissingPackageError(f"{self.url} needs the package 'datasets'; pip install datasets") from None
        datasets.disable_progress_bars()
        with blamed(lambda why: _unloadable(section, self.url, why)):
            return call(datasets)


@dataclass(frozen=True, kw_only=True)
class HubText:
    """A column of strings, a document per row. Ranges are of its shards, which are its files as a rule."""

    name: DatasetName
    section: str
    column: str
    limit: int
    """Bytes that a document may have."""
    shards: int
    sources: tuple[str, ...]
    nbytes: int
    """Bytes of the files together."""

    @classmethod
    def open(cls, url: str, section: str, column: str, limit: int) -> HubText:
        """Raises InputError when it can't be loaded or has no such column."""
        name = DatasetName.parse(url)
        loaded = name.load(f"{section}.text", streaming=True)
        columns = loaded.column_names
        if columns is None:  # known from its rows alone
            with blamed(lambda why: _unloadable(f"{section}.text", url, why)):
                columns = [*next(iter(loaded), {})]
        if column not in columns:
            raise InputError(
                f"{section}.text: {url} has no column '{column}'; columns: {some(columns)}; set {section}.column"
            )
        files = name.files(f"{section}.text")
        if not files:
            raise InputError(f"{section}.text: {url} is not made of files, whose content would tell if it was changed")
        nbytes = sum(size_bytes(file) or 0 for file in files)
        name = name.pinned(files)
        return cls(
            name=name,
            section=section,
            column=column,
            limit=limit,
            shards=loaded.num_shards,
            sources=files,
            nbytes=nbytes,
        )

    @property
    def url(self) -> str:
        return self.name.url

    @property
    def kind(self) -> tuple[str, ...]:
        return ("dataset", self.column, self.name.split, str(self.name.config))

    def ranges(self, nbytes: int) -> list[tuple[int, int, int]]:
        return [(i, i + 1, self.nbytes // self.shards) for i in range(self.shards)]

    def pieces(self, start: int, stop: int) -> Iterator[Piece]:
        loaded = self.name.load(f"{self.section}.text", streaming=True)
        where, rows = self.url, 0

        def unreadable(why: str) -> InputError:
            return InputError(f"{self.section}.text: {where} can't be read after {rows} rows: {why}")

        for number in range(start, stop):
            where, rows = f"{self.url}: shard {number}", 0
            with blamed(unreadable):
                for row in loaded.shard(self.shards, number):
                    document = row[self.column]
                    if not isinstance(document, str | None):
                        raise ValueError(f"'{self.column}' is of type {type(document).__name__}, wanted a string")
                    if document and len(document.encode()) > self.limit:
                        raise too_large(f"{where}, row {rows},", self.section, self.limit)
                    yield from pieces_of(document or "")
                    rows += 1


def _unloadable(section: str, url: str, why: str) -> InputError:
    return InputError(f"{section}: {url}: datasets can't load it: {why}")


FORMAT = TextFormat(open=HubText.open, scheme=DATASETS)
