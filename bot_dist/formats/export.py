"""Export of any source: as a folder that ``transformers`` loads, or with a checkpoint of torch's DCP; as GGUF."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch

from bot_dist.errors import CheckpointError, CheckpointExistsError, InputError, SourceError, blamed
from bot_dist.formats.beside import CARD, GENERATION
from bot_dist.formats.card import known_fields, model_card, origin_of
from bot_dist.formats.companions import Companions, export_files, read_companions
from bot_dist.formats.export_folder import STAGING, ExportFolder
from bot_dist.formats.export_result import ExportResult
from bot_dist.formats.gguf.header import read_gguf_header
from bot_dist.formats.gguf.write import Encoding, plan_gguf, write_gguf
from bot_dist.formats.hf_config import huggingface_config, written_config
from bot_dist.formats.safetensors_in import INDEX, SINGLE
from bot_dist.formats.safetensors_out import Tensor, shards, write_safetensors
from bot_dist.formats.source import Source
from bot_dist.formats.tokenizer import has_tokenizer, load_tokenizer
from bot_dist.model import model_of
from bot_dist.storage.disk import writing
from bot_dist.storage.files import filesystem, is_local
from bot_dist.storage.localfile import sync
from bot_dist.storage.package_urls import PACKAGE
from bot_dist.urls import label
from bot_dist.version import __version__

if TYPE_CHECKING:
    from gguf import GGUFWriter

MAX_SHARD_BYTES = 5 * 10**9
DTYPES = {"f32": torch.float32, "f16": torch.float16, "bf16": torch.bfloat16}
"""Of safetensors, as a user names them."""
MADE_BY = "bot_dist.export"
"""Metadata of a GGUF file by which it is known for an export."""


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
        _write_safetensors(staging, source, shards(tensors, max_shard_bytes), progress)

    return _export(source, folder, write, tokenizer_url, overwrite, progress, dtype)


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
    from bot_dist.formats.dcp_out import write_dcp

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
    from bot_dist.formats.gguf.about import ABOUT, add_model, add_stops
    from bot_dist.formats.gguf.tokenizer import PRE, add_no_tokenizer, add_tokenizer

    target = _target_file(file, overwrite)
    model = model_of(source.config)
    source.check(model)
    config = huggingface_config(model)
    planned = plan_gguf(model, config, encoding)
    companions = _companions(source, tokenizer_url)
    about = companions.json(ABOUT)
    generation = companions.json(GENERATION) or {}
    pre = about.get(PRE) if about is not None and tokenizer_url is None else None
    tokenizer_url = tokenizer_url or source.url
    tokenizer = load_tokenizer(tokenizer_url) if has_tokenizer(tokenizer_url) else None
    vocab_size = model.sizes["vocab"]
    notes = [*companions.notes, *planned.notes]

    def describe(writer: GGUFWriter) -> None:
        writer.add_string(MADE_BY, __version__)
        add_model(
            writer,
            about=about,
            fields=known_fields(companions),
            generation=generation,
            name=origin_of(source).title,
            n_parameters=model.n_parameters,
        )
        if tokenizer is None:
            add_no_tokenizer(writer, config)
        else:
            add_tokenizer(writer, tokenizer, vocab_size, pre)
        eos = config.get("eos_token_id") if tokenizer is None else tokenizer.eos_token_id
        if more := add_stops(writer, about or {}, generation, eos, vocab_size):
            notes.append(f"GGUF has three keys for tokens that end a text; {len(more)} more are left out: {more}")

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
        notes=tuple(notes),
    )


def written_bytes(source: Source, to: str, dtype: str | None) -> int:
    """Bytes of weights that an export writes, of which its ``progress`` tells: to ``gguf`` in that encoding (f16), else
    in that dtype (the source's). Raises FamilyError where GGUF can't express the model."""
    model = model_of(source.config)
    if to == "gguf":
        planned = plan_gguf(model, huggingface_config(model), cast("Encoding", dtype or "f16"))
        return sum(tensor.nbytes for tensor in planned.tensors)
    return sum(p.size * (DTYPES[dtype] if dtype else source.dtype(p)).itemsize for _, _, p in model.parameters())


def _export(
    source: Source,
    folder: str,
    write: Callable[[Path, list[Tensor], Callable[[int], None]], None],
    tokenizer_url: str | None,
    overwrite: bool,
    progress: Callable[[int], None] | None,
    dtype: torch.dtype | None = None,
) -> ExportResult:
    """What all exports share: everything is written into a subfolder, and moved into place when it is whole."""
    target = ExportFolder(_local(folder), overwrite=overwrite)
    model = model_of(source.config)
    source.check(model)
    companions = _companions(source, tokenizer_url)
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
            _write_file(staging / name, data)
        _write_json(staging / "config.json", config)
        published = target.publish(staging)
    return ExportResult(
        folder=str(target.path),
        files=published,
        n_parameters=model.n_parameters,
        weight_bytes=sum(tensor.nbytes for tensor in tensors),
        tokenizer=companions.tokenizer,
        notes=(*companions.notes, *notes),
    )


def _companions(source: Source, tokenizer_url: str | None) -> Companions:
    """What goes along with a source, and the tokenizer of ``tokenizer_url`` in place of its own, if one is named."""
    found = read_companions(source.url)
    return found if tokenizer_url is None else found.with_tokenizer(tokenizer_url)


def _local(target: str) -> Path:
    if target.startswith(PACKAGE) or not is_local(target):
        raise InputError(f"{label(target)}: export writes local folders, and hf://USER/MODEL; give one of them")
    return Path(filesystem(target)[1])


def _target_file(file: str, overwrite: bool) -> Path:
    path = _local(file)
    if path.suffix != ".gguf" or path.is_dir():
        raise InputError(f"{path}: an export to GGUF is one file; give a name that ends in .gguf")
    if path.is_symlink():
        raise CheckpointExistsError(f"{path}: is a link to {path.readlink()}; give a name that is none")
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


def _write_json(path: Path, value: dict[str, Any]) -> None:
    _write_file(path, (json.dumps(value, indent=2, sort_keys=True) + "\n").encode())


def _write_file(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
