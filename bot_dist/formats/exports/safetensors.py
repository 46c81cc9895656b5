"""A folder with safetensors that ``transformers`` loads, written as a stream: each header first, then its tensors."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from bot_dist.errors import InputError
from bot_dist.formats.export_result import ExportResult
from bot_dist.formats.exports import Export
from bot_dist.formats.exports._folder import Tensor, weight_bytes, write_folder, write_json
from bot_dist.formats.indexed import DTYPES as FILE_DTYPES
from bot_dist.formats.source import Source
from bot_dist.formats.sources.safetensors import INDEX, SINGLE
from bot_dist.tensors import PIECE_BYTES, flat_boxes

MAX_SHARD_BYTES = 5 * 10**9
"""Most bytes of a file, where nothing else is asked for."""
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
"""The dtypes as a user names them."""

_NAMES = {dtype: name for name, dtype in FILE_DTYPES.items()}


def export_huggingface(
    source: Source,
    folder: str,
    *,
    tokenizer_url: str | None = None,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ExportResult:
    """Write ``config.json``, safetensors and all that goes along with the source's weights (as ``export_files`` has it)
    into a local folder. ``tokenizer_url`` has the tokenizer, if it is not with the source.

    Weights are streamed in bounded pieces, in ``dtype`` or in the dtypes that they have; ``dtype`` in ``config.json``
    is one that holds them all. They fill files of at most ``max_shard_bytes`` (a larger tensor has its own), with an
    index if there are several. Nothing in the folder looks like a model before everything is there. ``progress`` gets
    the bytes of each piece. Raises InputError for a remote folder or a value that ``dtype`` does not hold,
    CheckpointExistsError as ``ExportFolder`` does, SourceError when the source is not the model that its configuration
    describes, CheckpointError when the disk is full or can't be written.
    """

    def write(staging: Path, tensors: list[Tensor], progress: Callable[[int], None]) -> None:
        _write_files(staging, source, shards(tensors, max_shard_bytes), progress)

    return write_folder(source, folder, write, tokenizer_url, overwrite, progress, dtype)


def _write_files(folder: Path, source: Source, files: list[list[Tensor]], progress: Callable[[int], None]) -> None:
    if len(files) == 1:
        write_safetensors(folder / SINGLE, source, files[0], progress)
        return
    weight_map: dict[str, str] = {}
    for i, tensors in enumerate(files, start=1):
        name = f"model-{i:05}-of-{len(files):05}.safetensors"
        write_safetensors(folder / name, source, tensors, progress)
        weight_map |= {tensor.parameter.name: name for tensor in tensors}
    total = {
        "total_parameters": sum(t.parameter.size for tensors in files for t in tensors),
        "total_size": sum(t.nbytes for tensors in files for t in tensors),
    }
    write_json(folder / INDEX, {"metadata": total, "weight_map": weight_map})


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


def _write(
    source: Source,
    place: str,
    *,
    dtype: str | None,
    max_shard_bytes: int | None,
    overwrite: bool,
    progress: Callable[[int], None] | None,
) -> ExportResult:
    return export_huggingface(
        source,
        place,
        dtype=DTYPES[dtype] if dtype else None,
        max_shard_bytes=MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes,
        overwrite=overwrite,
        progress=progress,
    )


def _weight_bytes(source: Source, dtype: str | None) -> int:
    return weight_bytes(source, DTYPES[dtype] if dtype else None)


EXPORT = Export(title="safetensors", write=_write, weight_bytes=_weight_bytes, dtypes=(*DTYPES,), shards=True)
