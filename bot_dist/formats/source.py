"""The protocol of a source checkpoint, by which the rest of the package reads it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from bot_dist.store import CheckpointReader
from bot_dist.tensors import Box, flat_boxes
from bot_dist.tensors.axes import Parameter

if TYPE_CHECKING:
    import torch

    from bot_dist.model import Model


class Source(Protocol):
    """A checkpoint that can be read box by box. Small and picklable: it holds an index, never tensors."""

    @property
    def url(self) -> str: ...

    @property
    def config(self) -> dict[str, Any]:
        """The ``transformers`` configuration of the model."""

    @property
    def whole_rows(self) -> bool:
        """Whether reading part of a row of a 2-D tensor costs reading all of it."""

    def check(self, model: Model) -> None:
        """Raise SourceError unless every parameter of ``model`` is there with its shape, and nothing else is."""

    def dtype(self, parameter: Parameter) -> torch.dtype:
        """The floating dtype that ``read`` gives (float32 for quantised tensors)."""

    def storage_bytes(self, parameter: Parameter) -> int:
        """The number of bytes that the whole parameter takes on storage."""

    def learning_rate_factor(self, parameter: Parameter) -> float:
        """Factor by which an earlier change of size asks Adam's learning rate to be multiplied; 1 where there was
        none."""

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        """Read a box (ranges over the unfused axes) as a contiguous CPU tensor of the box's shape."""

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        """Fill a CPU tensor of the box's shape and ``dtype(parameter)``, of any strides; at most two pieces of
        ``PIECE_BYTES`` (or rows, where these are larger) are held besides. Threads may share a source."""

    def provenance(self) -> dict[str, Any]:
        """The identity of the checkpoint: url, format, files with their sizes."""


def read_flat(source: Source, parameter: Parameter, start: int, stop: int) -> torch.Tensor:
    """Elements ``[start, stop)`` of the row-major parameter, as a flat tensor."""
    import torch

    if isinstance(source, CheckpointReader):
        return source.read_flat(parameter.name, start, stop)
    pieces = [source.read(parameter, box).flatten() for box in flat_boxes(parameter.sizes, start, stop)]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
