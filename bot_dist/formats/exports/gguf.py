"""One file for llama.cpp and its like: GGUF."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast, get_args

from bot_dist.errors import CheckpointExistsError, InputError, SourceError
from bot_dist.formats.beside import GENERATION
from bot_dist.formats.card import known_fields, origin_of
from bot_dist.formats.export_folder import STAGING
from bot_dist.formats.export_result import ExportResult
from bot_dist.formats.exports import Export
from bot_dist.formats.exports._folder import companions_of, local_path
from bot_dist.formats.gguf.header import read_gguf_header
from bot_dist.formats.gguf.write import Encoding, plan_gguf, write_gguf
from bot_dist.formats.hf_config import huggingface_config
from bot_dist.formats.source import Source
from bot_dist.formats.tokenizer import has_tokenizer, load_tokenizer
from bot_dist.model import model_of
from bot_dist.storage.disk import writing
from bot_dist.storage.localfile import sync
from bot_dist.version import __version__

if TYPE_CHECKING:
    from gguf import GGUFWriter

MADE_BY = "bot_dist.export"
"""Metadata of a GGUF file by which it is known for an export."""


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
    companions = companions_of(source, tokenizer_url)
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


def _target_file(file: str, overwrite: bool) -> Path:
    path = local_path(file)
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


def _write(
    source: Source,
    place: str,
    *,
    dtype: str | None,
    max_shard_bytes: int | None,
    overwrite: bool,
    progress: Callable[[int], None] | None,
) -> ExportResult:
    encoding = cast("Encoding", dtype)
    return export_gguf(source, place, encoding=encoding, overwrite=overwrite, progress=progress)


def _weight_bytes(source: Source, dtype: str | None) -> int:
    model = model_of(source.config)
    planned = plan_gguf(model, huggingface_config(model), cast("Encoding", dtype))
    return sum(tensor.nbytes for tensor in planned.tensors)


EXPORT = Export(
    title="GGUF",
    write=_write,
    weight_bytes=_weight_bytes,
    dtypes=get_args(Encoding),
    default_dtype="f16",
    suffix=".gguf",
)
