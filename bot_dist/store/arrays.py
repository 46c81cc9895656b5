"""The metadata by which plain zarr reads a parameter's array, and numpy's view of torch tensors."""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import torch

from bot_dist.store.layout import StoredParameter
from bot_dist.tensors import Box

_STORED_AS = {"bfloat16": "uint16"}
_NAN = {"bfloat16": 0x7FC0}
_BYTES = {"name": "bytes", "configuration": {"endian": "little"}}
_CRC32C = {"name": "crc32c"}


def dimension_names(axes: Sequence[str]) -> list[str]:
    """The axes, each under a name of its own (``embed``, ``embed_2``): others than zarr-python open no array with two
    dimensions of one name."""
    names: list[str] = []
    for axis in axes:
        others = (f"{axis}_{n}" for n in itertools.count(2))
        names.append(next(name for name in itertools.chain([axis], others) if name not in names))
    return names


def metadata(stored: StoredParameter, names: Sequence[str] | None = None) -> bytes:
    """The ``zarr.json`` of an array, by the zarr v3 specification, its dimensions with ``names``."""
    p = stored.parameter
    sharding = {
        "chunk_shape": stored.chunk,
        "codecs": [_BYTES, _CRC32C],
        "index_codecs": [_BYTES, _CRC32C],
        "index_location": "end",
    }
    return json.dumps(
        {
            "zarr_format": 3,
            "node_type": "array",
            "shape": p.sizes,
            "data_type": _STORED_AS.get(stored.dtype, stored.dtype),
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": stored.shard}},
            "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
            "fill_value": _NAN.get(stored.dtype, "NaN"),
            "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
            "dimension_names": dimension_names(p.axes) if names is None else names,
            "storage_transformers": [],
            "attributes": {
                "logical_dtype": stored.dtype,
                "shape": p.shape,
                "learning_rate_factor": stored.learning_rate_factor,
            },
        },
        indent=1,
    ).encode()


def group_metadata(attributes: dict[str, Any]) -> bytes:
    """The ``zarr.json`` of a group."""
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}, indent=1).encode()


def slices(box: Box, origin: Box | None = None) -> tuple[slice, ...]:
    """Slices of a box, relative to the corner of ``origin``."""
    offsets = [start for start, _ in origin] if origin is not None else [0] * len(box)
    return tuple(slice(start - o, stop - o) for (start, stop), o in zip(box, offsets, strict=True))


def view(tensor: torch.Tensor) -> npt.NDArray[Any]:
    """The memory of a CPU tensor as it is stored: bfloat16 as its bits."""
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def empty(shape: Sequence[int], dtype: str) -> torch.Tensor:
    """A CPU tensor, in numpy's memory: where it is large numpy asks for huge pages, which are faster to touch first."""
    tensor = torch.from_numpy(np.empty(shape, _STORED_AS.get(dtype, dtype)))
    return tensor.view(torch_dtype(dtype))


def torch_dtype(name: str) -> torch.dtype:
    return cast(torch.dtype, getattr(torch, name))


def fill_value(dtype: str) -> float | int:
    """Value that pads a chunk and stands for a missing one: NaN."""
    return _NAN.get(dtype, float("nan"))
