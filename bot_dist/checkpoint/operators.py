"""Operators that were fitted rather than built: matrices in a store of their own, read a block of rows at a time.

A plan names one by ``URL#NAME`` and its digest. The store has the format of a checkpoint, so every block is checked.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import cast

import numpy as np
import numpy.typing as npt
import xxhash

from bot_dist.axes import Parameter, Range
from bot_dist.checkpoint.layout import store_layout
from bot_dist.checkpoint.reader import CheckpointReader
from bot_dist.checkpoint.writer import CheckpointWriter
from bot_dist.errors import CheckpointError
from bot_dist.wavelets import OperatorSpec

AXES = ("layer", "target", "source")

Matrices = npt.NDArray[np.float64]


def write_operators(url: str, matrices: Mapping[str, Matrices]) -> dict[str, OperatorSpec]:
    """Store matrices ``(n_target, n_source)``, or one per source layer ``(layers, n_target, n_source)``, by name, and
    return the operators that stand for them in plans. Raises CheckpointExistsError when something else is there."""
    import torch

    stored = []
    for name, matrix in matrices.items():
        axes = AXES[-matrix.ndim :]
        parameter = Parameter(name=name, axes=axes, sizes=matrix.shape, dims=(1,) * len(axes))
        stored.append(store_layout(parameter, dtype="float64"))
    contents = xxhash.xxh3_128()
    for s in stored:
        contents.update(repr(s).encode())
        contents.update(np.ascontiguousarray(matrices[s.parameter.name], dtype=np.float64).data)
    writer = CheckpointWriter.create(url, stored, config={}, attempt=contents.hexdigest())
    digests: dict[str, dict[str, bytes]] = {}
    for s in stored:
        name = s.parameter.name
        for shard in s.shards():
            part = np.ascontiguousarray(matrices[name][tuple(slice(*r) for r in shard)], dtype=np.float64)
            digests.setdefault(name, {})[s.shard_key(shard)] = writer.write(name, shard, torch.from_numpy(part))
    writer.commit(digests, {})
    reader = CheckpointReader(url)
    return {
        name: OperatorSpec(
            n_source=matrix.shape[-1],
            n_target=matrix.shape[-2],
            policy="stored",
            handle=f"{url}#{name}",
            digest=_digest(reader, name),
            per_layer=matrix.ndim == 3,
        )
        for name, matrix in matrices.items()
    }


def read_operator(spec: OperatorSpec, rows: Range, layer: int = 0) -> Matrices:
    """Rows of the matrix that ``spec`` stands for, ``(rows, n_source)``; of that of a source layer, where they differ.

    Raises CheckpointError when it is not what was stored.
    """
    reader, name = _opened(spec)
    box = (rows, (0, spec.n_source))
    found = reader.read(reader.parameter(name), ((layer, layer + 1), *box) if spec.per_layer else box)
    return cast(Matrices, found.numpy().reshape(-1, spec.n_source))


@lru_cache(maxsize=32)
def _opened(spec: OperatorSpec) -> tuple[CheckpointReader, str]:
    url, _, name = spec.handle.rpartition("#")
    reader = CheckpointReader(url)
    if (found := _digest(reader, name)) != spec.digest:
        raise CheckpointError(
            f"{reader.storage.label}: {name} is not the operator that the plan means: digest {found}, wanted "
            f"{spec.digest}; fit it again, or plan with what is there"
        )
    return reader, name


def _digest(reader: CheckpointReader, name: str) -> str:
    """Of a matrix and its layout."""
    layout = repr(reader.stored(name)).encode()
    return xxhash.xxh3_128_hexdigest(layout + reader.manifest.digests[name])
