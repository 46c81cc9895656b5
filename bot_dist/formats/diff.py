"""Two sources compared: configuration, parameters, and values, streamed side by side where digests can't tell."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import torch

from bot_dist.formats.hf_config import huggingface_config
from bot_dist.formats.source import Source, read_flat
from bot_dist.model import model_of
from bot_dist.results import Result, Row
from bot_dist.store import CheckpointReader
from bot_dist.tensors.axes import Parameter

PIECE = 2**21
"""Elements read at once of either source: rows, as many as fit, and at least one."""
_BLOCK = 2**18
"""Elements that arithmetic in float64 is done on at once."""
_BITS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, kw_only=True)
class Values:
    """How the values of a parameter differ."""

    elements: int
    """Number of elements that differ: in their bits, or, where the dtypes differ, in value."""
    max_abs: float
    """Largest absolute difference; NaN where one side has NaN and the other not the same."""
    relative: float
    """Frobenius norm of the difference, divided by that of the first parameter."""


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How one parameter differs."""

    name: str
    what: str
    """Difference in words, such as ``only in the first`` or ``shape 4×2, 4×3``; empty where only values differ."""
    values: Values | None = None
    """Difference of the values; None where they were not read, or can't be compared."""

    def __str__(self) -> str:
        if (v := self.values) is None:
            return self.what
        numbers = f"{v.elements:,} values, by at most {v.max_abs:.3g}, relative norm {v.relative:.3g}"
        return f"{self.what}; {numbers}" if self.what else numbers


@dataclass(frozen=True, kw_only=True, repr=False)
class Diff(Result):
    """The differences between two sources."""

    config: dict[str, tuple[Any, Any]]
    """Keys of the configuration, written out with all defaults, whose values differ."""
    parameters: list[Difference]
    by_digests: int
    """Parameters known to be equal without reading them."""
    by_reading: int
    """Parameters found equal by reading both."""
    undecided: dict[str, int]
    """Parameters of like shape whose values were not compared, with their elements."""

    @property
    def equal(self) -> bool:
        """Whether no difference was found."""
        return not self.config and not self.parameters

    def rows(self) -> Iterator[Row]:
        yield "equal", f"{self.by_digests} parameters by their digests, {self.by_reading} by reading both"
        if self.undecided:
            yield "not compared", f"{len(self.undecided)} parameters"
        for key, (first, second) in self.config.items():
            yield f"config.{key}", f"{first} → {second}"
        for difference in self.parameters:
            yield difference.name, str(difference)


def diff_metadata(a: Source, b: Source) -> Diff:
    """Compare two sources by configurations, shapes, dtypes and digests alone. No value is read.

    Raises SourceError when a source is not the model that its configuration describes.
    """
    first, second = _parameters(a), _parameters(b)
    differences: list[Difference] = []
    undecided: dict[str, int] = {}
    equal = 0
    for name in {**first, **second}:
        if name not in first or name not in second:
            differences.append(Difference(name=name, what=f"only in the {'first' if name in first else 'second'}"))
            continue
        what = _metadata(a, b, first[name], second[name])
        same = _same_digests(a, b, name)
        if same is False:
            what = [*what, "digests"]
        if what:
            differences.append(Difference(name=name, what="; ".join(what)))
        if same:
            equal += 1
        elif first[name].shape == second[name].shape:
            undecided[name] = first[name].size
    configs = [_config(source) for source in (a, b)]
    keys = sorted({*configs[0], *configs[1]})
    pairs = {key: (configs[0].get(key), configs[1].get(key)) for key in keys}
    return Diff(
        config={key: (x, y) for key, (x, y) in pairs.items() if x != y},
        parameters=differences,
        by_digests=equal,
        by_reading=0,
        undecided=undecided,
    )


def diff_values(a: Source, b: Source, known: Diff, threads: int, progress: Callable[[int], None]) -> Diff:
    """Decide the parameters that ``known`` leaves undecided, by reading both sources.

    ``progress`` gets the elements of every piece. Each thread holds a piece of either source.
    """
    first, second = _parameters(a), _parameters(b)
    pieces = [(name, *piece) for name in known.undecided for piece in _pieces(first[name])]

    def read(piece: tuple[str, int, int]) -> _Sums:
        name, start, stop = piece
        return _compare(read_flat(a, first[name], start, stop), read_flat(b, second[name], start, stop))

    decided: dict[str, Values] = {}
    pool = ThreadPoolExecutor(threads, thread_name_prefix="bot_dist-diff")
    try:
        results = zip(pieces, pool.map(read, pieces), strict=True)
        for name, group in itertools.groupby(results, key=lambda result: result[0][0]):
            total = _Sums()
            for (_, start, stop), sums in group:
                total = total.plus(sums)
                progress(stop - start)
            if total.elements:
                decided[name] = total.values()
    finally:
        pool.shutdown(cancel_futures=True)
    by_name = {difference.name: difference for difference in known.parameters}
    by_name |= {
        name: replace(by_name.get(name, Difference(name=name, what="")), values=v) for name, v in decided.items()
    }
    return replace(
        known,
        parameters=[by_name[name] for name in {**first, **second} if name in by_name],
        by_reading=sum(name not in by_name for name in known.undecided),
        undecided={},
    )


@dataclass(frozen=True)
class _Sums:
    """The sums over pieces of a parameter."""

    elements: int = 0
    max_abs: float = 0.0
    squares: float = 0.0
    """Sum of the squares of the difference."""
    squares_first: float = 0.0

    def plus(self, other: _Sums) -> _Sums:
        return _Sums(
            self.elements + other.elements,
            math.nan if math.isnan(self.max_abs + other.max_abs) else max(self.max_abs, other.max_abs),
            self.squares + other.squares,
            self.squares_first + other.squares_first,
        )

    def values(self) -> Values:
        norm = math.sqrt(self.squares_first)
        relative = math.sqrt(self.squares) / norm if norm else math.inf
        return Values(elements=self.elements, max_abs=self.max_abs, relative=relative)


def _compare(a: torch.Tensor, b: torch.Tensor) -> _Sums:
    total = _Sums()
    for x, y in zip(a.split(_BLOCK), b.split(_BLOCK), strict=True):
        if x.dtype == y.dtype:
            same = x.view(_BITS[x.itemsize]) == y.view(_BITS[y.itemsize])
        else:
            same = x.double() == y.double()
        elements = int((~same).sum())
        wide = x.double()
        difference = (wide - y.double()).masked_fill_(same, 0) if elements else wide.new_zeros(1)
        sums = _Sums(elements, difference.abs().max().item(), difference.square().sum().item(), wide.dot(wide).item())
        total = total.plus(sums)
    return total


def _pieces(parameter: Parameter) -> Iterator[tuple[int, int]]:
    """Flat ranges of whole rows."""
    row = math.prod(parameter.shape[1:])
    step = max(1, PIECE // row) * row
    for start in range(0, parameter.size, step):
        yield start, min(start + step, parameter.size)


def _parameters(source: Source) -> dict[str, Parameter]:
    """All that a source holds, the details of a store included."""
    model = model_of(source.config)
    source.check(model)
    if isinstance(source, CheckpointReader):
        return {name: stored.parameter for name, stored in source.manifest.parameters.items()}
    return {parameter.name: parameter for _, _, parameter in model.parameters()}


def _metadata(a: Source, b: Source, x: Parameter, y: Parameter) -> list[str]:
    """The differences of a parameter besides its values, in words."""
    pairs = {
        "shape": ("×".join(map(str, x.shape)), "×".join(map(str, y.shape))),
        "dtype": tuple(str(s.dtype(p)).removeprefix("torch.") for s, p in ((a, x), (b, y))),
    }
    if isinstance(a, CheckpointReader) and isinstance(b, CheckpointReader):  # no other source has it
        pairs["learning rate factor"] = tuple(f"{s.learning_rate_factor(p):g}" for s, p in ((a, x), (b, y)))
    return [f"{what} {', '.join(pair)}" for what, pair in pairs.items() if pair[0] != pair[1]]


def _same_digests(a: Source, b: Source, name: str) -> bool | None:
    """Whether the bytes of a parameter are the same; None where only reading tells."""
    if not isinstance(a, CheckpointReader) or not isinstance(b, CheckpointReader):
        return None
    x, y = a.stored(name), b.stored(name)
    if (x.parameter.sizes, x.dtype, x.chunk) != (y.parameter.sizes, y.dtype, y.chunk):
        return None
    return a.manifest.digests[name] == b.manifest.digests[name]


def _config(source: Source) -> dict[str, Any]:
    """The model's configuration with every default, without what is of its files."""
    config = huggingface_config(model_of(source.config).resized({}))
    return {key: value for key, value in config.items() if key not in ("dtype", "transformers_version")}
