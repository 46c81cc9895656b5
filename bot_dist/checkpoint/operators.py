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

from bot_dist.axes import Parameter, Range
from bot_dist.checkpoint.layout import StoredParameter, store_layout
from bot_dist.checkpoint.manifest import MANIFEST
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
        stored = {name: _layout(name, spec, layers) for name, spec in operators.items()}
        writer = CheckpointWriter.create(url, stored.values(), config={}, attempt=attempt)
        digests: dict[str, dict[str, bytes]] = {name: {} for name in stored}
        for layer in range(layers):
            for name, spec in operators.items():
                if layer and not spec.per_layer:
                    continue
                shape = (1, spec.n_target, 1 if spec.selects else spec.n_source)[0 if spec.per_layer else 1 :]
                values = np.ascontiguousarray(matrix(name, layer), dtype=np.float32).reshape(shape)
                for shard in stored[name].shards():
                    if spec.per_layer and shard[0] != (layer, layer + 1):
                        continue
                    within = ((0, 1), *shard[1:]) if spec.per_layer else shard
                    part = np.ascontiguousarray(values[tuple(slice(*r) for r in within)])
                    key = stored[name].shard_key(shard)
                    digests[name][key] = writer.write(name, shard, torch.from_numpy(part))
        writer.commit(digests, dict(provenance()))
    reader = CheckpointReader(url)
    if reader.manifest.data != f"data/{attempt}":
        raise CheckpointError(
            f"{reader.storage.label} holds operators that were fitted to something else; give another output, or "
            f"remove them"
        )
    return {
        name: dataclasses.replace(spec, handle=f"{url}#{name}", digest=operator_digest(reader, name))
        for name, spec in operators.items()
    }


def _layout(name: str, spec: OperatorSpec, layers: int) -> StoredParameter:
    """One layer per shard: they are fitted one by one."""
    sizes = (layers, spec.n_target, 1 if spec.selects else spec.n_source)[0 if spec.per_layer else 1 :]
    axes = AXES[-len(sizes) :]
    if not spec.per_layer:
        return store_layout(Parameter(name=name, axes=axes, sizes=sizes, dims=(1,) * len(axes)))
    one = store_layout(Parameter(name=name, axes=axes, sizes=(1, *sizes[1:]), dims=(1,) * len(axes)))
    parameter = Parameter(name=name, axes=axes, sizes=sizes, dims=(1,) * len(axes))
    return dataclasses.replace(one, parameter=parameter)


def read_operator(spec: OperatorSpec, rows: Range, layer: int = 0) -> Matrices:
    """Rows of the matrix that ``spec`` stands for, ``(rows, n_source)``, or of the indices that it selects,
    ``(rows, 1)``; of that of a source layer, where they differ. In float64.

    Raises CheckpointError when it is not what was stored.
    """
    reader, name = _opened(spec)
    n = 1 if spec.selects else spec.n_source
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
