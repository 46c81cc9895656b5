"""Writing torch's distributed checkpoint (DCP) as a stream: planned by shapes, each chunk read when it is written.

Torch's own planner and writer do it, in their own format: ``.metadata``, and a file per chunk. Keys are the names of
``transformers``, and shapes its shapes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import SavePlan, TensorWriteData, WriteItem, WriteItemType

from bot_dist.formats.exports._folder import Tensor
from bot_dist.formats.source import Source, read_flat

CHUNK_BYTES = 2**26
"""Most bytes of a chunk that has more than one row."""


def write_dcp(folder: Path, source: Source, tensors: Sequence[Tensor], progress: Callable[[int], None]) -> None:
    """Write ``tensors`` of ``source`` into a folder, durably. ``progress`` gets the bytes of each chunk.

    Holds two chunks at a time at most. Chunks are rows (of the first dimension).
    """
    planner = _Planner(source, tensors, progress)
    # A file per chunk: in a larger file the writer would keep what it has written, to its end.
    writer = FileSystemWriter(folder, single_file_per_rank=False, per_thread_copy_ahead=0)
    writer.set_up_storage_writer(True)
    plan = writer.prepare_local_plan(planner.create_local_plan())
    plans, metadata = planner.create_global_plan([plan])
    (plan,) = writer.prepare_global_plan(plans)
    writer.finish(metadata, [writer.write_data(planner.finish_plan(plan), planner).wait()])


class _Planner(DefaultSavePlanner):
    """Plans tensors that are in no state dict, and reads them from their source."""

    def __init__(self, source: Source, tensors: Sequence[Tensor], progress: Callable[[int], None]) -> None:
        super().__init__()
        self._source, self._progress = source, progress
        self._tensors = {tensor.parameter.name: tensor for tensor in tensors}

    def create_local_plan(self) -> SavePlan:
        items = [item for tensor in self._tensors.values() for item in _items(tensor)]
        return SavePlan(items, planner_data={name: (name,) for name in self._tensors})

    def resolve_data(self, write_item: WriteItem) -> torch.Tensor:
        parameter = self._tensors[write_item.index.fqn].parameter
        assert write_item.tensor_data is not None
        chunk = write_item.tensor_data.chunk
        first, rows, row = chunk.offsets[0], chunk.sizes[0], math.prod(parameter.shape[1:])
        values = read_flat(self._source, parameter, first * row, (first + rows) * row)
        self._progress(values.nbytes)
        return values.view(chunk.sizes)


def _items(tensor: Tensor) -> list[WriteItem]:
    """One item per chunk of a tensor."""
    shape = tensor.parameter.shape
    rows = max(1, CHUNK_BYTES * shape[0] // tensor.nbytes)
    items = []
    for first in range(0, shape[0], rows):
        offsets = torch.Size((first, *(0 for _ in shape[1:])))
        sizes = torch.Size((min(rows, shape[0] - first), *shape[1:]))
        data = TensorWriteData(
            chunk=ChunkStorageMetadata(offsets=offsets, sizes=sizes),
            properties=TensorProperties(dtype=tensor.dtype),
            size=torch.Size(shape),
        )
        items.append(WriteItem(MetadataIndex(tensor.parameter.name, offsets), WriteItemType.SHARD, tensor_data=data))
    return items
