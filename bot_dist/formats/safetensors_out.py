"""Writing safetensors as a stream: the header first, then each tensor piece by piece."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from bot_dist.errors import InputError
from bot_dist.formats.indexed import DTYPES
from bot_dist.formats.source import Source
from bot_dist.tensors import PIECE_BYTES, flat_boxes
from bot_dist.tensors.axes import Parameter

_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True)
class Tensor:
    """A parameter to write, in this dtype."""

    parameter: Parameter
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.parameter.size * self.dtype.itemsize


def write_safetensors(path: Path, source: Source, tensors: Sequence[Tensor], progress: Callable[[int], None]) -> None:
    """Write ``tensors`` of ``source`` in this order, durably. ``progress`` gets the bytes of each piece written.

    Holds one piece of at most ``PIECE_BYTES`` at a time, and once more where its dtype changes. Tensors must come with
    the larger dtypes first, so that every offset is aligned to its dtype. Raises InputError on a value that a tensor's
    dtype does not hold.
    """
    with path.open("xb") as file:
        file.write(_header(tensors))
        for tensor in tensors:
            parameter, step = tensor.parameter, PIECE_BYTES // tensor.dtype.itemsize
            for start in range(0, parameter.size, step):
                for box in flat_boxes(parameter.sizes, start, min(start + step, parameter.size)):
                    piece = _cast(source.read(parameter, box).contiguous(), tensor)
                    file.write(piece.flatten().view(torch.uint8).numpy().data)
                    progress(piece.nbytes)
        file.flush()
        os.fsync(file.fileno())


def _cast(piece: torch.Tensor, tensor: Tensor) -> torch.Tensor:
    """A piece of a tensor in the dtype that it is written in."""
    cast = piece.to(tensor.dtype)
    if cast is not piece and (overflowed := cast.isinf() & ~piece.isinf()).any():
        peak = float(piece[overflowed].abs().max())
        raise InputError(
            f"tensor '{tensor.parameter.name}': a value of {peak:g} is more than {_NAMES[tensor.dtype].lower()} holds "
            f"({torch.finfo(tensor.dtype).max:g}); use --dtype bf16, or leave it out"
        )
    return cast


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
