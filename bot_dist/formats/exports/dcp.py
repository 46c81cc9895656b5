"""A folder with a checkpoint of ``torch.distributed.checkpoint`` (DCP)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from bot_dist.formats.export_result import ExportResult
from bot_dist.formats.exports import Export
from bot_dist.formats.exports._folder import Tensor, weight_bytes, write_folder
from bot_dist.formats.source import Source


def export_dcp(
    source: Source,
    folder: str,
    *,
    tokenizer_url: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ExportResult:
    """``export_huggingface`` with a checkpoint of ``torch.distributed.checkpoint`` in place of safetensors.

    A tied head is not in it; a loader that wants it under its own name ties it itself.
    """
    from bot_dist.formats.exports._dcp_writer import write_dcp

    def write(staging: Path, tensors: list[Tensor], progress: Callable[[int], None]) -> None:
        write_dcp(staging, source, tensors, progress)

    return write_folder(source, folder, write, tokenizer_url, overwrite, progress)


def _write(
    source: Source,
    place: str,
    *,
    dtype: str | None,
    max_shard_bytes: int | None,
    overwrite: bool,
    progress: Callable[[int], None] | None,
) -> ExportResult:
    return export_dcp(source, place, overwrite=overwrite, progress=progress)


def _weight_bytes(source: Source, dtype: str | None) -> int:
    return weight_bytes(source)


EXPORT = Export(title="DCP", write=_write, weight_bytes=_weight_bytes, hub=False)
