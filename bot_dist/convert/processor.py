"""Image processors: what a source says of how images are made the model's input, and carrying it along as a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from bot_dist.checkpoint import CheckpointReader
from bot_dist.convert.open import is_store
from bot_dist.convert.storage import join, read_file, size_bytes, write_file
from bot_dist.parsing import parse_object
from bot_dist.urls import label

PROCESSOR = "preprocessor_config.json"
STORED = f"processor/{PROCESSOR}"
"""Where a store has it."""
VIT = {
    "image_processor_type": "ViTImageProcessor",
    "resample": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
"""What ViT does (Dosovitskiy et al. 2021), where a model does not say."""


def image_processor(url: str, model_config: Mapping[str, Any]) -> dict[str, Any]:
    """The ``preprocessor_config.json`` of a model folder or a store; where there is none, what ViT does, at the model's
    size. Raises SourceError when it is no JSON object."""
    data = _read(url)
    if data is None:
        size = model_config.get("image_size", 224)
        height, width = size if isinstance(size, list | tuple) else (size, size)
        return {**VIT, "size": {"height": height, "width": width}}
    return parse_object(data, f"{label(url)}: {PROCESSOR}")


def save_image_processor(source_url: str, attempt_url: str) -> bool:
    """Put the ``preprocessor_config.json`` of a source into what a store's attempt has written. Returns False, and
    writes nothing, when the source has none."""
    if (data := _read(source_url)) is None:
        return False
    write_file(join(attempt_url, STORED), data)
    return True


def _read(url: str) -> bytes | None:
    if is_store(url):
        reader = CheckpointReader(url)
        return reader.file(STORED) if STORED in reader.manifest.files else None
    folder = url.rpartition("/")[0] or "." if url.endswith((".safetensors", ".json")) else url
    beside = join(folder, PROCESSOR)
    return None if size_bytes(beside) is None else read_file(beside)
