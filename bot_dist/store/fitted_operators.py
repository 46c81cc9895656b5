"""Operators that were fitted rather than built: matrices in a store of their own, read a block of rows at a time.

A plan names one by ``URL#NAME`` and its digest. The store has the format of a checkpoint, so every block is checked.
An array is ``(target, source)``, or ``(layer, target, source)`` with one matrix per source layer; where an operator
only selects, it is the source index that each target index takes, with ``source`` of size 1. A constant is ``(value,)``
of size 1, or ``(layer, value)``. Values are float32: what they are rounded to when they are applied.

Where a matrix NAME has to be undone, what is needed for it lies beside it: ``NAME.split``, the source indices that a
lifted one takes as they are, or else ``NAME.dual`` (``wavelets.dual``). Where AdamW's moments are carried, so does
what they take in the place of a matrix: ``NAME.moments`` (``wavelets.moments``). The digest of an operator is that of
all its arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt
import xxhash

from bot_dist.errors import CheckpointError
from bot_dist.operators import OperatorSpec, dropped, dual, dual_matrix, origins, places, split_of, squared_taps
from bot_dist.storage.folder import Storage
from bot_dist.store.layout import StoredParameter, array_layout
from bot_dist.store.manifest import ATTEMPTS, MANIFEST, OPERATORS
from bot_dist.store.reader import CheckpointReader
from bot_dist.store.writer import CheckpointWriter
from bot_dist.tensors.axes import Range

if TYPE_CHECKING:
    import torch

AXES, OF_CONSTANTS = ("layer", "target", "source"), ("layer", "value")
SUFFIXES = SPLIT, DUAL, MOMENTS = ".split", ".dual", ".moments"
"""Of the arrays beside a matrix."""

Matrices = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]


def write_operators(
    url: str,
    operators: Mapping[str, OperatorSpec],
    matrix: Callable[[str, int], Matrices],
    *,
    layers: int,
    attempt: str,
    undone: bool = False,
    moments: bool = False,
    provenance: Callable[[], Mapping[str, object]] = dict,
) -> dict[str, OperatorSpec]:
    """Store fitted operators, and return what stands for them in plans.

    ``operators`` are by name, without handle and digest; ``matrix(name, layer)`` gives one at a time, layer by layer:
    ``(n_target, n_source)``, ``(n_target,)`` source indices, or the number of a constant. ``undone`` says whether what
    undoes them is stored too, ``moments`` whether what AdamW's moments take is.
    ``provenance()`` is asked for after all of them, and recorded. ``attempt`` identifies what they are fitted to: a
    store that was committed under that name is taken as it is. Raises CheckpointExistsError when something else is
    there, and PlanError where one can't be undone.
    """
    if not Storage(url).exists(MANIFEST):
        matrices = {name: s for name, s in operators.items() if s.policy == "stored" and not s.selects}
        beside = {name: _beside(name, spec) for name, spec in matrices.items() if undone and not spec.padded}
        carrying = {name + MOMENTS: spec for name, spec in matrices.items() if moments}
        stored = {**operators, **dict(beside.values()), **carrying}
        layouts = [_layout(name, spec, layers) for name, spec in stored.items()]
        writer = CheckpointWriter.create(url, layouts, config={}, attempt=attempt)
        digests: dict[str, dict[str, bytes]] = {name: {} for name in stored}
        for layer in range(layers):
            for name, spec in operators.items():
                if layer and not spec.per_layer:
                    continue
                values = np.asarray(matrix(name, layer), dtype=np.float32)
                made: dict[str, npt.NDArray[Any]] = {name: values}
                if name in beside:
                    made[beside[name][0]] = _undoing(name, spec, values.astype(np.float64), layer)
                if name + MOMENTS in carrying:
                    made[name + MOMENTS] = dual_matrix(values.astype(np.float64))
                for array, content in made.items():
                    tensor = _tensor(content, stored[array])
                    digests[array] |= writer.write_array(array, tensor, layer if spec.per_layer else None)
        writer.commit(digests, dict(provenance()))
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


def _beside(name: str, spec: OperatorSpec) -> tuple[str, OperatorSpec]:
    """The array that lies beside a matrix to undo it: its name, and what it looks like."""
    if spec.lifted:
        return name + SPLIT, dataclasses.replace(spec, selects=True)
    return name + DUAL, dataclasses.replace(spec, n_target=spec.n_target + spec.n_details)


def _undoing(name: str, spec: OperatorSpec, matrix: Matrices, layer: int) -> Matrices | Indices:
    """What is in that array, of a matrix as it is stored."""
    if spec.lifted:
        return split_of(matrix)
    return dual(matrix, spec.rank or spec.n_target, f"fitted {name}{f', layer {layer}' if spec.per_layer else ''}")


def _tensor(values: npt.NDArray[np.generic], spec: OperatorSpec) -> torch.Tensor:
    import torch

    return torch.from_numpy(np.ascontiguousarray(values, dtype=np.float32).reshape(_shape(spec)))


def _shape(spec: OperatorSpec) -> tuple[int, ...]:
    if spec.policy == "constant":
        return (1,)
    return spec.n_target, 1 if spec.selects else spec.n_source


def _layout(name: str, spec: OperatorSpec, layers: int) -> StoredParameter:
    axes = OF_CONSTANTS if spec.policy == "constant" else AXES
    if spec.per_layer:
        return array_layout(name, (layers, *_shape(spec)), axes, "float32")
    return array_layout(name, _shape(spec), axes[1:], "float32")


def read_rows(spec: OperatorSpec, rows: Range, layer: int = 0) -> tuple[Indices, Matrices]:
    """Rows of a fitted operator, of its ``detail``, of what restores a selection or a lifting, or of what moments take:
    the source indices that each takes, and their taps, both ``(rows, width)``; of those of a source layer, where they
    differ.

    Raises CheckpointError when it is not what was stored.
    """
    of = spec.matrix
    if spec.policy == "exp_avg":
        return _read_moments(of, rows, layer)
    if spec.policy == "exp_avg_sq":
        indices, taps = _read_moments(of, rows, layer)
        return indices, squared_taps(taps, origins(of.n_source, of.n_target)[slice(*rows)])
    if spec.policy == "stored" and not of.selects:
        return _dense(_read(of, "", rows, layer) * of.row_sum)
    if spec.policy == "detail" and of.inverted:
        return _dense(read_dual(of, (of.n_target + rows[0], of.n_target + rows[1]), layer))
    kept = _read(of, SPLIT if of.lifted else "", (0, of.n_target), layer)[:, 0].astype(np.int64)
    if spec.policy == "stored":
        taken = kept[slice(*rows)]
        copies = np.bincount(kept)[taken].astype(np.float64)
        return taken[:, None], (of.row_sum / copies**of.split)[:, None]
    others = dropped(kept, of.n_source)
    if spec.policy == "detail":
        return others[slice(*rows), None], np.ones((rows[1] - rows[0], 1))
    found = places(kept, of.n_source)[slice(*rows)]
    own = found < of.n_target
    if of.selects:
        return found[:, None], np.where(own, 1 / of.row_sum, 1.0)[:, None]
    taps = np.zeros((len(found), of.n_source))
    taps[np.arange(len(found)), found] = np.where(own, 1 / of.row_sum, 1.0)
    if own.any():
        predicted = _read(of, "", (found[own].min(), found[own].max() + 1), layer)
        taps[own, of.n_target :] = -predicted[:, others]
    return _dense(taps)


def read_constant(spec: OperatorSpec, layer: int = 0) -> float:
    """The number that a fitted constant is, of a source layer. Raises CheckpointError when it is not what was
    stored."""
    return float(_read(spec, "", (0, 1), layer)[0, 0])


def _read_moments(of: OperatorSpec, rows: Range, layer: int) -> tuple[Indices, Matrices]:
    """Rows of what AdamW's first moments take in the place of a fitted operator."""
    if not of.selects:
        return _dense(_read(of, MOMENTS, rows, layer) / of.row_sum)
    indices, taps = read_rows(of, rows, layer)
    kept = _read(of, "", (0, of.n_target), layer)[:, 0].astype(np.int64)
    return indices, 1 / (taps * np.bincount(kept)[indices])


def read_dual(spec: OperatorSpec, rows: Range, layer: int = 0) -> Matrices:
    """Rows of the dual of a fitted matrix, ``(rows, n_source)``: of those that restore from what it keeps, then of
    those that give the details. Raises CheckpointError when it is not what was stored."""
    found = _read(spec, DUAL, rows, layer)
    found[: max(0, spec.n_target - rows[0])] /= spec.row_sum
    return found


def _dense(taps: Matrices) -> tuple[Indices, Matrices]:
    return np.broadcast_to(np.arange(taps.shape[1]), taps.shape), taps


def _read(spec: OperatorSpec, suffix: str, rows: Range, layer: int) -> Matrices:
    """Rows of a fitted operator, or of an array beside it, in float64."""
    reader, name = _opened(spec)
    parameter = reader.parameter(name + suffix)
    within = ((0, n) for n in parameter.sizes[1 + spec.per_layer :])
    box = ((int(rows[0]), int(rows[1])), *within)
    found = reader.read(parameter, ((layer, layer + 1), *box) if spec.per_layer else box)
    return cast(Matrices, found.numpy().reshape(-1, parameter.sizes[-1]).astype(np.float64))


@lru_cache(maxsize=32)
def _opened(spec: OperatorSpec) -> tuple[CheckpointReader, str]:
    url, _, name = spec.handle.rpartition("#")
    outer, _, folder = url.rpartition(f"/{OPERATORS}/")
    if outer:
        Storage(outer).refuse_links(f"{OPERATORS}/{folder}")
    reader = CheckpointReader(url)
    if (found := operator_digest(reader, name)) != spec.digest:
        raise CheckpointError(
            f"{reader.storage.label}: {name} is not the operator that the plan means: digest {found}, wanted "
            f"{spec.digest}; fit it again, or plan with what is there"
        )
    return reader, name


def operator_digest(reader: CheckpointReader, name: str) -> str:
    """Of a matrix and its layout, and of what undoes it: what a plan names it by."""
    every = (name, *(name + suffix for suffix in SUFFIXES))
    arrays = [array for array in every if array in reader.manifest.parameters]
    found = (repr(reader.stored(array)).encode() + reader.manifest.digests[array] for array in arrays)
    return xxhash.xxh3_128_hexdigest(b"".join(found))
