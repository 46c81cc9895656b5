"""Writing a store for others: as safetensors with a configuration, as DCP, or as a GGUF file."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from bot_dist.errors import CheckpointError, InputError
from bot_dist.events import OnEvent, log
from bot_dist.events.checkpoints import ExportDone, ExportStarted, ExportWritten
from bot_dist.recipe import Recipe
from bot_dist.storage.disk import check_lasting
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.formats.export_result import ExportResult
    from bot_dist.formats.gguf.write import Encoding

ExportFormat = Literal["safetensors", "dcp", "gguf"]


def export(
    recipe: Recipe,
    on_event: OnEvent = log,
    *,
    folder: str | None = None,
    probe: Path | None = None,
    to: ExportFormat = "safetensors",
    max_shard_bytes: int | None = None,
    dtype: Encoding | None = None,
) -> ExportResult:
    """Write the recipe's trained store (the transferred one, where ``train.steps`` is 0) as ``export_store`` does, by
    default into ``recipe.export_dir`` (GGUF: a file beside it); compare its logits with the ``probe`` that training
    left, if given.

    Raises CheckpointError when the trained store did not start from the present transferred store.
    """
    from bot_dist.store import CheckpointReader

    url = recipe.transferred_url
    if recipe.train.steps:
        begun_from = CheckpointReader(recipe.trained_url).manifest.provenance["source"]
        if begun_from["digest"] != CheckpointReader(url).manifest.digest:
            raise CheckpointError(
                f"{label(recipe.trained_url)} was trained from another store than {label(url)} is now; "
                f"train again (bot_dist pretrain RECIPE --overwrite)"
            )
        url = recipe.trained_url
    exported = export_store(
        url,
        folder or (f"{recipe.export_dir}.gguf" if to == "gguf" else recipe.export_dir),
        overwrite=recipe.overwrite,
        to=to,
        max_shard_bytes=max_shard_bytes,
        dtype=dtype,
        on_event=on_event,
    )
    if probe is not None:
        from bot_dist.formats.check_export import compare_logits

        exported = dataclasses.replace(exported, logits=compare_logits(exported.folder, probe))
    return exported


def export_store(
    url: str,
    folder: str,
    *,
    overwrite: bool = False,
    to: ExportFormat = "safetensors",
    max_shard_bytes: int | None = None,
    dtype: Encoding | None = None,
    on_event: OnEvent = log,
) -> ExportResult:
    """Write the store (or any other source) at ``url`` as a Hugging Face folder, with safetensors in files of at most
    ``max_shard_bytes`` (5 GB) and in ``dtype`` (those of the store), or with a checkpoint of torch's DCP instead; or as
    a GGUF file ``folder`` with matrices in ``dtype`` (f16). ``folder`` may be ``hf://USER/MODEL``, on the hub."""
    from bot_dist.formats.beside import folder_of
    from bot_dist.formats.export import (
        DTYPES,
        MAX_SHARD_BYTES,
        export_dcp,
        export_gguf,
        export_huggingface,
        written_bytes,
    )
    from bot_dist.formats.hub_out import HUB, export_hub
    from bot_dist.formats.open import open_source
    from bot_dist.storage.files import real_place

    started = time.perf_counter()
    check_lasting({"folder": folder})
    source = open_source(url)
    if not folder.startswith(HUB) and real_place(folder_of(url)) == real_place(folder):
        raise InputError(f"{label(folder)} is what is exported; give another place")
    if max_shard_bytes is not None and to != "safetensors":
        raise InputError("--max-shard-size is for safetensors; leave it out")
    if dtype is not None and (to == "dcp" or (to == "safetensors" and dtype not in DTYPES)):
        raise InputError(
            f"--dtype {dtype} is for GGUF; safetensors take {', '.join(DTYPES)}, and DCP keeps the dtypes of the store"
        )
    write: Callable[..., ExportResult]
    match to:
        case "safetensors":
            most = MAX_SHARD_BYTES if max_shard_bytes is None else max_shard_bytes
            write = functools.partial(export_huggingface, max_shard_bytes=most, dtype=DTYPES[dtype] if dtype else None)
        case "dcp":
            write = export_dcp
        case "gguf":
            write = functools.partial(export_gguf, encoding=dtype or "f16")
    if folder.startswith(HUB):
        if to == "dcp":
            raise InputError(f"{label(folder)}: the hub takes safetensors and GGUF; export DCP into a folder")
        encoding = (dtype or "f16") if to == "gguf" else None
        write = functools.partial(export_hub, write=write, gguf=encoding)
    on_event(ExportStarted(bytes=written_bytes(source, to, dtype)))
    result = write(
        source,
        folder,
        overwrite=overwrite,
        progress=lambda n: on_event(ExportWritten(bytes=n)),
    )
    result = dataclasses.replace(result, source=label(url), seconds=time.perf_counter() - started)
    on_event(ExportDone(folder=label(result.folder), seconds=result.seconds))
    return result
