"""Image processors: what a source says of how images are made the model's input."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.formats.beside import beside
from bot_dist.parsing import parse_object
from bot_dist.urls import label

PROCESSOR = "preprocessor_config.json"
LARGEST_SIDE = 2**14
"""Number in it: sides that images are scaled to, before they are cut to the model's."""
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""ViT's own processing of images (Dosovitskiy et al. 2021), for models that do not name theirs."""


def image_processor(url: str, model_config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``preprocessor_config.json`` of a model folder or a store; where there is none, what ViT does, at the model's
    size. Raises SourceError when it is no JSON object."""
    held = beside(url)
    if PROCESSOR not in held.places:
        size = model_config.get("image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {**VIT, "size": {"height": height, "width": width}}
    return parse_object(held.read(PROCESSOR), f"{label(url)}: {PROCESSOR}", largest=LARGEST_SIDE)
