"""Writing safetensors as a stream: the header first, then each tensor piece by piece."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bot_dist.axes import Parameter
from bot_dist.convert.files import DTYPES
from bot_dist.convert.source import Source
from bot_dist.sharding import PIECE_BYTES, flat_boxes

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """A parameter to write, in the dtype that its source has."""

    parameter: Parameter
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.parameter.size * self.dtype.itemsize


def write_safetensors(path: Path, source: Source, tensors: Sequence[Tensor], progress: Callable[[int], None]) -> None:
    """Write ``tensors`` of ``source`` in this order, durably. ``progress`` gets the bytes of each piece written.

    Holds one piece of at most ``PIECE_BYTES`` at a time. Tensors must come with the larger dtypes first, so that every
    offset is aligned to its dtype.
    """
    with path.open("xb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            parameter, step = tensor.parameter, PIECE_BYTES // tensor.dtype.itemsize
            for start in range(0, parameter.size, step):
                for box in flat_boxes(parameter.sizes, start, min(start + step, parameter.size)):
                    piece = source.read(parameter, box).contiguous()
                    assert piece.dtype == tensor.dtype, (parameter.name, piece.dtype, tensor.dtype)
                    file.write(piece.flatten().view(torch.uint8).numpy().data)
                    progress(piece.nbytes)
        file.flush()
        os.fsync(file.fileno())


def shards(tensors: Sequence[Tensor], max_bytes: int) -> list[list[Tensor]]:
    """Consecutive tensors in as few files as fit ``max_bytes`` each (a larger tensor gets a file of its own)."""
    files: list[list[Tensor]] = []
    room = 0
    for tensor in tensors:
        if not files or tensor.nbytes > room:
            files.append([])
            room = max_bytes
        files[-1].append(tensor)
        room -= tensor.nbytes
    return files


def _header(tensors: Sequence[Tensor]) -> bytes:
    """Length and JSON, padded with spaces to a multiple of 8 bytes."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    at = 0
    for tensor in tensors:
        header[tensor.parameter.name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": tensor.parameter.shape,
            "data_offsets": [at, at + tensor.nbytes],
        }
        at += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
