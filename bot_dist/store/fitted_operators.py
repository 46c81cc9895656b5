"""Operators that were fitted rather than built: matrices in a store of their own, read a block of rows at a time.

A plan names one by ``URL#NAME`` and its digest. The store has the format of a checkpoint, so every block is checked.
An array is ``(target, source)``, or ``(layer, target, source)`` with one matrix per source layer; where an operator
only selects, it is the source index that each target index takes, with ``source`` of size 1. A constant is ``(value,)``
of size 1, or ``(layer, value)``. Values are float32: what they are rounded to when they are applied. What else an
operator takes lies beside it (``operators.fitted``). The digest of an operator is that of all its arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt
import xxhash

from bot_dist.errors import CheckpointError
from bot_dist.operators import SUFFIXES, Fitted, OperatorSpec, ReadKept
from bot_dist.storage.folder import Storage
from bot_dist.store.layout import StoredParameter, array_layout
from bot_dist.store.manifest import ATTEMPTS, OPERATORS
from bot_dist.store.reader import CheckpointReader
from bot_dist.store.writer import CheckpointWriter
from bot_dist.tensors.axes import Range

if TYPE_CHECKING:
    import torch

Matrices = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


class OperatorWriter:
    """An attempt at a store of fitted operators. Whoever fits them hands them over one by one, and commits.

    ``operators`` are by name, without handle and digest, for a source of so many ``layers``. ``undone`` says whether
    what undoes them is stored too, ``moments`` whether what AdamW's moments take is. ``attempt`` identifies what they
    are fitted to. Raises CheckpointExistsError when something else is there.
    """

    def __init__(
        self,
        url: str,
        operators: Mapping[str, Fitted],
        *,
        layers: int,
        attempt: str,
        undone: bool = False,
        moments: bool = False,
    ) -> None:
        self._operators, self._layers = operators, layers
        self._beside = {name: spec.beside(undone=undone, moments=moments) for name, spec in operators.items()}
        layouts = [
            _layout(name + suffix, sizes, layers if spec.per_layer else None)
            for name, spec in operators.items()
            for suffix, sizes in {"": spec.sizes, **self._beside[name]}.items()
        ]
        self._writer = CheckpointWriter.create(url, layouts, config={}, attempt=attempt)
        self._digests: dict[str, dict[str, bytes]] = {layout.parameter.name: {} for layout in layouts}

    def places(self) -> Iterator[tuple[str, int]]:
        """The name of every operator with each layer of its own, layer by layer: all that has to be written."""
        for layer in range(self._layers):
            yield from ((name, layer) for name, spec in self._operators.items() if spec.per_layer or not layer)

    def write(self, name: str, layer: int, matrix: npt.ArrayLike) -> None:
        """Store an operator: a matrix ``(n_target, n_source)``, ``(n_target,)`` source indices, or the number of a
        constant. Raises PlanError where it can't be undone and has to be."""
        spec = self._operators[name]
        values = np.asarray(matrix, dtype=np.float32)
        what = f"fitted {name}{f', layer {layer}' if spec.per_layer else ''}"
        arrays = {"": (spec.sizes, values)}
        for suffix, sizes in self._beside[name].items():
            made = spec.made_beside(suffix, values.astype(np.float64), what)
            arrays[suffix] = sizes, np.asarray(made, dtype=np.float32)
        for suffix, (sizes, content) in arrays.items():
            tensor, of = _tensor(content, sizes), layer if spec.per_layer else None
            self._digests[name + suffix] |= self._writer.write_array(name + suffix, tensor, of)

    def commit(self, provenance: Mapping[str, object]) -> None:
        """Make the attempt the store, once all of it is written."""
        self._writer.commit(self._digests, provenance)


def stored_operators(url: str, operators: Mapping[str, Fitted], attempt: str) -> dict[str, Fitted]:
    """The specifications that stand in plans for the operators that were committed under an attempt. Raises
    CheckpointError where the store holds others."""
    reader = CheckpointReader(url)
    if reader.manifest.data != f"{ATTEMPTS}/{attempt}":
        raise CheckpointError(
            f"{reader.storage.label} holds operators that were fitted to something else; give another output, or "
            f"remove them"
        )
    return {
        name: dataclasses.replace(spec, handle=f"{url}#{name}", digest=operator_digest(reader, name))
        for name, spec in operators.items()
    }


def _tensor(values: npt.NDArray[np.float32], sizes: Mapping[str, int]) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values).reshape(*sizes.values()))


def _layout(name: str, sizes: Mapping[str, int], layers: int | None) -> StoredParameter:
    axes = {**({} if layers is None else {"layer": layers}), **sizes}
    return array_layout(name, tuple(axes.values()), tuple(axes), "float32")


def read_rows(spec: OperatorSpec, rows: Range, layer: int = 0) -> tuple[Indices, Matrices]:
    """Rows of an operator, of a source layer where layers differ: the source indices that each takes, and their taps,
    both ``(rows, width)``. Raises CheckpointError when it is not what was stored."""
    return spec.rows(_reading(spec, layer), rows)


def read_columns(spec: OperatorSpec, columns: Range, layer: int = 0) -> Matrices:
    """Columns of an operator that is kept by columns, ``(columns, n_target)``. Raises CheckpointError when it is not
    what was stored."""
    return spec.columns(_reading(spec, layer), columns)


def read_constant(spec: OperatorSpec, layer: int = 0) -> float:
    """The value of a fitted constant, for one source layer. Raises CheckpointError when it is not what was stored."""
    return float(_reading(spec, layer)("", (0, 1))[0, 0])


def _reading(spec: OperatorSpec, layer: int) -> ReadKept:
    """The reader of the arrays that are kept of an operator, or of the one that it is made of."""

    def read(suffix: str, rows: Range) -> Matrices:
        kept = spec.of_weights
        assert isinstance(kept, Fitted), f"{spec} is built, and not kept"
        reader, name = _opened(kept)
        parameter = reader.parameter(name + suffix)
        within = ((0, n) for n in parameter.sizes[1 + kept.per_layer :])
        box = ((int(rows[0]), int(rows[1])), *within)
        values = reader.read(parameter, ((layer, layer + 1), *box) if kept.per_layer else box)
        return cast(Matrices, values.numpy().reshape(-1, parameter.sizes[-1]).astype(np.float64))

    return read


@lru_cache(maxsize=32)
def _opened(spec: Fitted) -> tuple[CheckpointReader, str]:
    url, _, name = spec.handle.rpartition("#")
    outer, _, folder = url.rpartition(f"/{OPERATORS}/")
    if outer:
        Storage(outer).refuse_links(f"{OPERATORS}/{folder}")
    reader = CheckpointReader(url)
    if (actual := operator_digest(reader, name)) != spec.digest:
        raise CheckpointError(
            f"{reader.storage.label}: {name} is not the operator that the plan means: digest {actual}, wanted "
            f"{spec.digest}; fit it again, or plan with what is there"
        )
    return reader, name


def operator_digest(reader: CheckpointReader, name: str) -> str:
    """The digest by which a plan names an operator: that of its matrix, its layout and the arrays that undo it."""
    every = (name, *(name + suffix for suffix in SUFFIXES))
    arrays = [array for array in every if array in reader.manifest.parameters]
    described = (repr(reader.stored(array)).encode() + reader.manifest.digests[array] for array in arrays)
    return xxhash.xxh3_128_hexdigest(b"".join(described))
