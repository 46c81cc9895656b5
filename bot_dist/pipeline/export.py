"""Writing a store for others, in a format of ``EXPORTS``: safetensors with a configuration, DCP, or a GGUF file."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from bot_dist.errors import CheckpointError, InputError
from bot_dist.events import OnEvent, log
from bot_dist.events.checkpoints import ExportDone, ExportStarted, ExportWritten
from bot_dist.recipe import Recipe
from bot_dist.storage.disk import check_lasting
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.formats.export_result import ExportResult
    from bot_dist.formats.exports import Export


def export(
    recipe: Recipe,
    on_event: OnEvent = log,
    *,
    folder: str | None = None,
    probe: Path | None = None,
    to: str | None = None,
    max_shard_bytes: int | None = None,
    dtype: str | None = None,
) -> ExportResult:
    """Write the recipe's trained store (the transferred one, where ``train.steps`` is 0) as ``export_store`` does, by
    default into ``recipe.export_dir`` (GGUF: a file beside it); compare its logits with the ``probe`` that training
    left, if given.

    Raises CheckpointError when the trained store did not start from the present transferred store.
    """
    from bot_dist.formats.exports import EXPORTS, export_format
    from bot_dist.store import CheckpointReader

    to = to or export_format(folder)
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
        folder or f"{recipe.export_dir}{EXPORTS.choose(to).suffix}",
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
    to: str | None = None,
    max_shard_bytes: int | None = None,
    dtype: str | None = None,
    on_event: OnEvent = log,
) -> ExportResult:
    """Write the store (or any other source) at ``url`` in the format ``to`` of ``EXPORTS``, by default the one that the
    end of ``folder`` asks for: a Hugging Face folder, with safetensors in files of at most ``max_shard_bytes`` (5 GB)
    and in ``dtype`` (those of the store); with a checkpoint of torch's DCP instead; or a GGUF file ``folder`` with
    matrices in ``dtype`` (f16). ``folder`` may be ``hf://USER/MODEL``, on the hub.

    Raises InputError for an option that the format does not take.
    """
    from bot_dist.formats.beside import folder_of
    from bot_dist.formats.exports import EXPORTS, export_format
    from bot_dist.formats.hub_out import HUB, export_hub
    from bot_dist.formats.open import open_source
    from bot_dist.storage.files import real_place

    started = time.perf_counter()
    check_lasting({"folder": folder})
    form = EXPORTS.choose(to or export_format(folder))
    source = open_source(url)
    if not folder.startswith(HUB) and real_place(folder_of(url)) == real_place(folder):
        raise InputError(f"{label(folder)} is what is exported; give another place")
    _check_options(form, dtype, max_shard_bytes)
    dtype = dtype or form.default_dtype
    write: Callable[..., ExportResult] = functools.partial(form.write, dtype=dtype, max_shard_bytes=max_shard_bytes)
    if folder.startswith(HUB):
        if not form.hub:
            taken = " and ".join(export.title for export in EXPORTS.values() if export.hub)
            raise InputError(f"{label(folder)}: the hub takes {taken}; export {form.title} into a folder")
        write = functools.partial(export_hub, write=write, suffix=form.suffix, dtype=dtype)
    on_event(ExportStarted(bytes=form.weight_bytes(source, dtype)))
    result = write(
        source,
        folder,
        overwrite=overwrite,
        progress=lambda n: on_event(ExportWritten(bytes=n)),
    )
    result = dataclasses.replace(result, source=label(url), seconds=time.perf_counter() - started)
    on_event(ExportDone(folder=label(result.folder), seconds=result.seconds))
    return result


def _check_options(form: Export, dtype: str | None, max_shard_bytes: int | None) -> None:
    """Raise InputError for an option that a format does not take; it says which formats do."""
    from bot_dist.formats.exports import EXPORTS

    if max_shard_bytes is not None and not form.shards:
        shards = " and ".join(export.title for export in EXPORTS.values() if export.shards)
        raise InputError(f"--max-shard-size is for {shards}; leave it out")
    if dtype is not None and dtype not in form.dtypes:
        others = " and ".join(export.title for export in EXPORTS.values() if dtype in export.dtypes)
        what = f"is for {others}" if others else "is no dtype that weights are exported in"
        taken = f"takes {', '.join(form.dtypes)}" if form.dtypes else "keeps the dtypes of the store"
        raise InputError(f"--dtype {dtype} {what}; {form.title} {taken}")
