"""Operators that were fitted rather than built: matrices in a store of their own, read a block of rows at a time.

A plan names one by ``URL#NAME`` and its digest. The store has the format of a checkpoint, so every block is checked.
An array is ``(target, source)``, or ``(layer, target, source)`` with one matrix per source layer; where an operator
only selects, it is the source index that each target index takes, with ``source`` of size 1. Values are float32: what
they are rounded to when they are applied.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt
import xxhash

from bot_dist.axes import Range
from bot_dist.checkpoint.layout import StoredParameter, array_layout
from bot_dist.checkpoint.manifest import ATTEMPTS, MANIFEST
from bot_dist.checkpoint.reader import CheckpointReader
from bot_dist.checkpoint.storage import Storage
from bot_dist.checkpoint.writer import CheckpointWriter
from bot_dist.errors import CheckpointError
from bot_dist.wavelets import OperatorSpec

AXES = ("layer", "target", "source")

Matrices = npt.NDArray[np.float64]


def write_operators(
    url: str,
    operators: Mapping[str, OperatorSpec],
    matrix: Callable[[str, int], Matrices],
    *,
    layers: int,
    attempt: str,
    provenance: Callable[[], Mapping[str, object]] = dict,
) -> dict[str, OperatorSpec]:
    """Store fitted operators, and return what stands for them in plans.

    ``operators`` are by name, without handle and digest; ``matrix(name, layer)`` gives one at a time, layer by layer:
    ``(n_target, n_source)``, or ``(n_target,)`` source indices. ``provenance()`` is asked for after all of them, and
    recorded. ``attempt`` identifies what they are fitted to: a store that was committed under that name is taken as it
    is. Raises CheckpointExistsError when something else is there.
    """
    import torch

    if not Storage(url).exists(MANIFEST):
        stored = [_layout(name, spec, layers) for name, spec in operators.items()]
        writer = CheckpointWriter.create(url, stored, config={}, attempt=attempt)
        digests: dict[str, dict[str, bytes]] = {name: {} for name in operators}
        for layer in range(layers):
            for name, spec in operators.items():
                if layer and not spec.per_layer:
                    continue
                values = np.ascontiguousarray(matrix(name, layer), dtype=np.float32).reshape(_shape(spec))
                of_layer = layer if spec.per_layer else None
                digests[name] |= writer.write_array(name, torch.from_numpy(values), of_layer)
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


def _shape(spec: OperatorSpec) -> tuple[int, int]:
    return spec.n_target, 1 if spec.selects else spec.n_source


def _layout(name: str, spec: OperatorSpec, layers: int) -> StoredParameter:
    if spec.per_layer:
        return array_layout(name, (layers, *_shape(spec)), AXES, "float32")
    return array_layout(name, _shape(spec), AXES[1:], "float32")


def read_operator(spec: OperatorSpec, rows: Range, layer: int = 0) -> Matrices:
    """Rows of the matrix that ``spec`` stands for, ``(rows, n_source)``, or of the indices that it selects,
    ``(rows, 1)``; of that of a source layer, where they differ. In float64.

    Raises CheckpointError when it is not what was stored.
    """
    reader, name = _opened(spec)
    n = _shape(spec)[1]
    box = (rows, (0, n))
    found = reader.read(reader.parameter(name), ((layer, layer + 1), *box) if spec.per_layer else box)
    return cast(Matrices, found.numpy().reshape(-1, n).astype(np.float64))


@lru_cache(maxsize=32)
def _opened(spec: OperatorSpec) -> tuple[CheckpointReader, str]:
    url, _, name = spec.handle.rpartition("#")
    reader = CheckpointReader(url)
    if (found := operator_digest(reader, name)) != spec.digest:
        raise CheckpointError(
            f"{reader.storage.label}: {name} is not the operator that the plan means: digest {found}, wanted "
            f"{spec.digest}; fit it again, or plan with what is there"
        )
    return reader, name


def operator_digest(reader: CheckpointReader, name: str) -> str:
    """Of a matrix and its layout: what a plan names it by."""
    layout = repr(reader.stored(name)).encode()
    return xxhash.xxh3_128_hexdigest(layout + reader.manifest.digests[name])
