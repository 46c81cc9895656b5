"""Device meshes, and the boxes of a tensor that their members own."""

from bot_dist.tensors.boxes import Box, box_shape, box_size, even_range, flat_boxes, grid, runs, whole
from bot_dist.tensors.chunks import PIECE_BYTES, chunk_shape
from bot_dist.tensors.mesh import Cut, Mesh

__all__ = [
    "PIECE_BYTES",
    "Box",
    "Cut",
    "Mesh",
    "box_shape",
    "box_size",
    "chunk_shape",
    "even_range",
    "flat_boxes",
    "grid",
    "runs",
    "whole",
]
