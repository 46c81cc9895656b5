"""Export of any source: as a folder that ``transformers`` loads, or with a checkpoint of torch's DCP; as GGUF."""

from __future__ import annotations

import importlib.metadata
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from bot_dist.checkpoint.localfile import sync
from bot_dist.convert.configuration import transformers_config
from bot_dist.convert.export_folder import STAGING, ExportFolder
from bot_dist.convert.gguf_header import read_gguf_header
from bot_dist.convert.gguf_out import Encoding, plan_gguf, write_gguf
from bot_dist.convert.location import PACKAGE
from bot_dist.convert.processor import PROCESSOR, image_processor
from bot_dist.convert.safetensors_in import INDEX, SINGLE
from bot_dist.convert.safetensors_out import Tensor, shards, write_safetensors
from bot_dist.convert.source import Source
from bot_dist.convert.storage import filesystem, is_local
from bot_dist.convert.tokenizer import load_tokenizer, save_tokenizer
from bot_dist.disk import writing
from bot_dist.errors import CheckpointExistsError, InputError, SourceError
from bot_dist.families import Model, model_of
from bot_dist.urls import label

if TYPE_CHECKING:
    from gguf import GGUFWriter

MAX_SHARD_BYTES = 5 * 10**9
MADE_BY = "bot_dist.export"
"""Metadata of a GGUF file by which it is known for an export."""

_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What an export wrote."""

    folder: str
    """Or the file, where it is one."""
    files: tuple[str, ...]
    """Names in the folder, sorted."""
    n_parameters: int
    weight_bytes: int
    """Of the tensors, without headers."""
    tokenizer: bool
    """Whether a tokenizer is among the files, or in the file."""
    notes: tuple[str, ...] = ()
    """What the user should know."""


def export_huggingface(
    source: Source,
    folder: str,
    *,
    tokenizer_url: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ExportResult:
    """Write ``config.json``, safetensors, ``generation_config.json``, and the tokenizer or (as ``image_processor`` has
    it) the image processor into a local folder.

    Weights are streamed in bounded pieces and keep their dtypes; ``dtype`` in ``config.json`` is one that holds them
    all. They fill files of at most ``max_shard_bytes`` (a larger tensor has its own), with an index if there are
    several. Nothing in the folder looks like a model before everything is there. ``progress`` gets the bytes of each
    piece. Raises InputError for a remote folder, CheckpointExistsError as ``ExportFolder`` does, SourceError when the
    source is not the model that its configuration describes, CheckpointError when the disk is full or can't be written.
    """

    def write(staging: Path, tensors: list[Tensor], progress: Callable[[int], None]) -> None:
        _write_safetensors(staging, source, shards(tensors, max_shard_bytes), progress)

    return _export(source, folder, write, tokenizer_url, overwrite, progress)


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
    from bot_dist.convert.dcp_out import write_dcp

    def write(staging: Path, tensors: list[Tensor], progress: Callable[[int], None]) -> None:
        write_dcp(staging, source, tensors, progress)

    return _export(source, folder, write, tokenizer_url, overwrite, progress)


def export_gguf(
    source: Source,
    file: str,
    *,
    encoding: Encoding = "f16",
    tokenizer_url: str | None = None,
    overwrite: bool = False,
    progress: Callable[[int], None] | None = None,
) -> ExportResult:
    """Write one ``.gguf`` file for llama.cpp and its like: weights in ``encoding``, configuration and tokenizer.

    It is streamed, and appears under its name when it is whole. Raises as ``export_huggingface`` does; and FamilyError
    for a model, InputError for a tokenizer or a value that GGUF can't express, MissingPackageError without ``gguf``.
    """
    from bot_dist.convert.gguf_tokenizer import add_no_tokenizer, add_tokenizer

    target = _target_file(file, overwrite)
    model = model_of(source.config)
    source.check(model)
    config = huggingface_config(model)
    planned = plan_gguf(model, config, encoding)
    tokenizer = None if tokenizer_url is None else load_tokenizer(tokenizer_url)

    def describe(writer: GGUFWriter) -> None:
        writer.add_string(MADE_BY, importlib.metadata.version("bot_dist"))
        if tokenizer is None:
            add_no_tokenizer(writer, config)
        else:
            add_tokenizer(writer, tokenizer, model.sizes["vocab"])

    weight_bytes = sum(tensor.nbytes for tensor in planned.tensors)
    with writing(str(target), weight_bytes):
        target.parent.mkdir(parents=True, exist_ok=True)
        staging = target.with_name(f"{STAGING}{target.name}")
        staging.unlink(missing_ok=True)  # of an export that was killed
        try:
            write_gguf(staging, source, planned, encoding, describe, progress or (lambda _: None))
            staging.replace(target)
        except BaseException:
            staging.unlink(missing_ok=True)
            raise
    sync(str(target.parent))
    return ExportResult(
        folder=str(target),
        files=(target.name,),
        n_parameters=model.n_parameters,
        weight_bytes=weight_bytes,
        tokenizer=tokenizer is not None,
        notes=planned.notes,
    )


def _export(
    source: Source,
    folder: str,
    write: Callable[[Path, list[Tensor], Callable[[int], None]], None],
    tokenizer_url: str | None,
    overwrite: bool,
    progress: Callable[[int], None] | None,
) -> ExportResult:
    """What all exports share: everything is written into a subfolder, and moved into place when it is whole."""
    target = ExportFolder(_local(folder), overwrite=overwrite)
    model = model_of(source.config)
    source.check(model)
    tensors = [Tensor(p, source.dtype(p)) for _, _, p in model.parameters()]
    tensors.sort(key=lambda tensor: -tensor.dtype.itemsize)
    with writing(folder, sum(tensor.nbytes for tensor in tensors)), target.staging() as staging:
        write(staging, tensors, progress or (lambda _: None))
        tokenizer = tokenizer_url is not None and save_tokenizer(tokenizer_url, str(staging))
        if model.family.objective == "image":
            _write_json(staging / PROCESSOR, image_processor(source.url, model.config))
        _write_configs(staging, model, reduce(torch.promote_types, {t.dtype for t in tensors}))
        files = target.publish(staging)
    return ExportResult(
        folder=str(target.path),
        files=files,
        n_parameters=model.n_parameters,
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        tokenizer=tokenizer,
    )


def _local(target: str) -> Path:
    if target.startswith(PACKAGE) or not is_local(target):
        raise InputError(f"{label(target)}: export writes local folders only; give a path and copy the result")
    return Path(filesystem(target)[1])


def _target_file(file: str, overwrite: bool) -> Path:
    path = _local(file)
    if path.suffix != ".gguf" or path.is_dir():
        raise InputError(f"{path}: an export to GGUF is one file; give a name that ends in .gguf")
    if path.exists() and not overwrite:
        raise CheckpointExistsError(f"{path}: already exists; give another name or --overwrite")
    if path.exists() and not _is_export(path):
        raise CheckpointExistsError(
            f"{path}: no export has made this file, and it is not overwritten; give another name, or move it away"
        )
    return path


def _is_export(file: Path) -> bool:
    try:
        return MADE_BY in read_gguf_header(str(file)).scalars
    except SourceError:  # no GGUF file at all
        return False


def _write_safetensors(
    folder: Path, source: Source, files: list[list[Tensor]], progress: Callable[[int], None]
) -> None:
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
    _write_json(folder / INDEX, {"metadata": total, "weight_map": weight_map})


def huggingface_config(model: Model) -> dict[str, Any]:
    """The model's configuration as ``transformers`` writes it, with every default."""
    config = transformers_config(model.config, architectures=[model.family.architecture(model.config)])
    found: dict[str, Any] = config.to_dict()
    return found


def _write_configs(folder: Path, model: Model, dtype: torch.dtype) -> None:
    import transformers

    config = model.config
    _write_json(folder / "config.json", {**huggingface_config(model), "dtype": str(dtype).removeprefix("torch.")})
    ids = {key: config[key] for key in _TOKEN_IDS if config.get(key) is not None}
    if ids and model.family.objective == "causal":
        version = {"transformers_version": transformers.__version__}
        _write_json(folder / "generation_config.json", {"_from_model_config": True, **ids, **version})


def _write_json(path: Path, value: dict[str, Any]) -> None:
    with path.open("x") as file:
        json.dump(value, file, indent=2, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
