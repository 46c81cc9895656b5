"""Exports into a folder: its configuration, tokenizer and all that goes along, moved into place when it is whole."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import torch

from bot_dist.errors import CheckpointError, InputError, blamed
from bot_dist.formats.beside import CARD
from bot_dist.formats.card import model_card
from bot_dist.formats.companions import Companions, export_files, read_companions
from bot_dist.formats.export_folder import ExportFolder
from bot_dist.formats.export_result import ExportResult
from bot_dist.formats.hf_config import written_config
from bot_dist.formats.source import Source
from bot_dist.model import model_of
from bot_dist.storage.disk import writing
from bot_dist.storage.files import filesystem, is_local
from bot_dist.storage.package_urls import PACKAGE
from bot_dist.tensors.axes import Parameter
from bot_dist.urls import label


@dataclass(frozen=True)
class Tensor:
    """A parameter to write, in this dtype."""

    parameter: Parameter
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in that dtype."""
        return self.parameter.size * self.dtype.itemsize


def weight_bytes(source: Source, dtype: torch.dtype | None = None) -> int:
    """Bytes of a source's weights, in ``dtype`` or in the dtypes that they have."""
    parameters = [parameter for _, _, parameter in model_of(source.config).parameters()]
    return sum(p.size * (dtype or source.dtype(p)).itemsize for p in parameters)


def write_folder(
    source: Source,
    folder: str,
    write: Callable[[Path, list[Tensor], Callable[[int], None]], None],
    tokenizer_url: str | None,
    overwrite: bool,
    progress: Callable[[int], None] | None,
    dtype: torch.dtype | None = None,
) -> ExportResult:
    """Write a folder that ``transformers`` knows: weights by ``write``, ``config.json``, and what goes along.

    Everything is written into a subfolder, and moved into place when it is whole.
    """
    target = ExportFolder(local_path(folder), overwrite=overwrite)
    model = model_of(source.config)
    source.check(model)
    companions = companions_of(source, tokenizer_url)
    files, notes = export_files(companions, model)
    tensors = [Tensor(p, dtype or source.dtype(p)) for _, _, p in model.parameters()]
    tensors.sort(key=lambda tensor: -tensor.dtype.itemsize)
    config = written_config(model, reduce(torch.promote_types, {tensor.dtype for tensor in tensors}))
    if target.keeps(CARD):
        notes.append(f"{target.path / CARD} is not of an export and stays as it is: no model card is written")
    else:
        title = target.path.resolve().name
        what = f"{label(source.url)}: its manifest does not record what a transfer does"
        with blamed(lambda why: CheckpointError(f"{what} ({why}); make the store again")):
            files[CARD] = model_card(source, model, companions, title=title, dtype=config["dtype"], files=[*files])
    target.refuse_taken([*files, "config.json"])
    with writing(folder, sum(tensor.nbytes for tensor in tensors)), target.staging() as staging:
        write(staging, tensors, progress or (lambda _: None))
        for name, data in files.items():
            write_file(staging / name, data)
        write_json(staging / "config.json", config)
        published = target.publish(staging)
    return ExportResult(
        folder=str(target.path),
        files=published,
        n_parameters=model.n_parameters,
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        tokenizer=companions.tokenizer,
        notes=(*companions.notes, *notes),
    )


def companions_of(source: Source, tokenizer_url: str | None) -> Companions:
    """The companions of a source, with the tokenizer of ``tokenizer_url`` in place of its own, if one is named."""
    companions = read_companions(source.url)
    return companions if tokenizer_url is None else companions.with_tokenizer(tokenizer_url)


def local_path(target: str) -> Path:
    """The path of a local target. Raises InputError where it is none."""
    if target.startswith(PACKAGE) or not is_local(target):
        raise InputError(f"{label(target)}: export writes local folders, and hf://USER/MODEL; give one of them")
    return Path(filesystem(target)[1])


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write a new file durably, with keys in order."""
    write_file(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def write_file(path: Path, data: bytes) -> None:
    """Write a new file durably, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
