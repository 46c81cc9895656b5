"""Between torch tensors and the zarr arrays of a store."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
import xxhash

from bot_dist.checkpoint.layout import StoredParameter
from bot_dist.sharding import Box

if TYPE_CHECKING:
    import zarr
    from zarr.abc.store import Store

_STORED_AS = {"bfloat16": "uint16"}
_NAN = {"bfloat16": 0x7FC0}


def create_array(store: Store, stored: StoredParameter) -> None:
    """Create the array of one parameter: metadata only."""
    import zarr
    from zarr.codecs import Crc32cCodec

    zarr.create_array(
        store,
        name=stored.parameter.name,
        shape=stored.parameter.sizes,
        dtype=_STORED_AS.get(stored.dtype, stored.dtype),
        shards=stored.shard,
        chunks=stored.chunk,
        compressors=[Crc32cCodec()],
        fill_value=_NAN.get(stored.dtype, float("nan")),
        dimension_names=stored.parameter.axes,
        attributes={
            "logical_dtype": stored.dtype,
            "shape": list(stored.parameter.shape),
            "learning_rate_factor": stored.learning_rate_factor,
        },
        config={"write_empty_chunks": True},
    )


def open_array(store: Store, stored: StoredParameter) -> zarr.Array[Any]:
    import zarr

    return zarr.open_array(store, path=stored.parameter.name, mode="r" if store.read_only else "r+")


def slices(box: Box, origin: Box | None = None) -> tuple[slice, ...]:
    """Slices of a box, relative to the corner of ``origin``."""
    offsets = [start for start, _ in origin] if origin is not None else [0] * len(box)
    return tuple(slice(start - o, stop - o) for (start, stop), o in zip(box, offsets, strict=True))


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.view(torch.uint16).numpy() if tensor.dtype == torch.bfloat16 else tensor.numpy()


def to_torch(array: np.ndarray[Any, Any], dtype: str) -> torch.Tensor:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor


def torch_dtype(name: str) -> torch.dtype:
    return cast(torch.dtype, getattr(torch, name))


def digest(array: np.ndarray[Any, Any]) -> str:
    """xxh3-64 of the array's bytes, row-major."""
    return xxhash.xxh3_64_hexdigest(np.ascontiguousarray(array).data)


def chunk_digests(stored: StoredParameter, region: Box, array: np.ndarray[Any, Any]) -> dict[str, str]:
    """Digest of every inner chunk of ``region`` (whole chunks), whose values are ``array``."""
    return {stored.chunk_key(chunk): digest(array[slices(chunk, region)]) for chunk in stored.chunks(region)}
