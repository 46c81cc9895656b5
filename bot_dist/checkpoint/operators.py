"""Operators that were fitted rather than built: matrices in files of their own, named by URL and digest."""

from __future__ import annotations

import io
from functools import lru_cache

import numpy as np
import numpy.typing as npt
import xxhash

from bot_dist.checkpoint.storage import Storage
from bot_dist.errors import CheckpointError
from bot_dist.wavelets import Operator, OperatorSpec, from_dense


def write_operators(url: str, matrices: npt.NDArray[np.float64]) -> OperatorSpec:
    """Store a matrix ``(n_target, n_source)``, or one per source layer ``(layers, n_target, n_source)``, as a ``.npy``
    file, and return the operator that stands for it in plans."""
    assert matrices.ndim in (2, 3), matrices.shape
    file = io.BytesIO()
    np.save(file, np.ascontiguousarray(matrices, dtype=np.float64), allow_pickle=False)
    folder, _, name = url.rpartition("/")
    Storage(folder).write(name, [file.getvalue()])
    n_target, n_source = matrices.shape[-2:]
    return OperatorSpec(
        n_source=n_source,
        n_target=n_target,
        policy="stored",
        handle=url,
        digest=xxhash.xxh3_128_hexdigest(file.getvalue()),
        per_layer=matrices.ndim == 3,
    )


@lru_cache(maxsize=1)
def read_operators(spec: OperatorSpec) -> tuple[Operator, ...]:
    """The operator that ``spec`` stands for; one per source layer where they differ.

    Raises CheckpointError when the file is not what was stored.
    """
    folder, _, name = spec.handle.rpartition("/")
    storage = Storage(folder)
    data = storage.read(name)
    if (found := xxhash.xxh3_128_hexdigest(data)) != spec.digest:
        raise CheckpointError(
            f"{storage.label}/{name} is not the operator that the plan means: digest {found}, wanted {spec.digest}; "
            f"fit it again, or plan with what is there"
        )
    matrices: npt.NDArray[np.float64] = np.load(io.BytesIO(data), allow_pickle=False)
    return tuple(from_dense(matrix) for matrix in (matrices if spec.per_layer else [matrices]))
