"""``bot_dist export``: a checkpoint for others."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from bot_dist.cli.options import Overrides, Overwrite, RecipeOrSource
from bot_dist.cli.recipes import is_recipe, recipe_of_file
from bot_dist.errors import InputError
from bot_dist.formats.exports import EXPORTS


def export(
    url: RecipeOrSource,
    folder: Annotated[
        str | None,
        typer.Argument(metavar="FOLDER|FILE.gguf|hf://USER/MODEL", help="Where to; needed with SOURCE."),
    ] = None,
    to: Annotated[
        str | None,
        typer.Option(
            help="Format of the weights (default: safetensors, or gguf for FILE.gguf).",
            metavar=f"<{'|'.join(EXPORTS)}>",
            show_default=False,
        ),
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(
            metavar="<f32|f16|bf16|q8_0>",
            help="Of all weights in safetensors (default: as stored), of matrices in GGUF (default: f16).",
            show_default=False,
        ),
    ] = None,
    max_shard_size: Annotated[
        str | None,
        typer.Option(help="Most bytes of one safetensors file, e.g. 2GB (default: 5GB).", show_default=False),
    ] = None,
    overrides: Overrides = None,
    overwrite: Overwrite = False,
) -> None:
    """Write a checkpoint for others: as a Hugging Face folder, here or on the hub, as GGUF, or for torch's DCP."""
    from bot_dist.cli.progress import progress
    from bot_dist.cli.show.export import show_export
    from bot_dist.pipeline.export import export as export_trained
    from bot_dist.pipeline.export import export_store

    options: dict[str, Any] = {"to": to, "dtype": dtype, "max_shard_bytes": _bytes("--max-shard-size", max_shard_size)}
    with progress() as on_event:
        if is_recipe(url):
            recipe = recipe_of_file(url, overrides, overwrite=overwrite)
            report = export_trained(recipe, on_event, folder=folder, **options)
        elif folder is None:
            raise InputError("export needs a FOLDER (or FILE.gguf) too; write: bot_dist export SOURCE FOLDER")
        else:
            report = export_store(url, folder, overwrite=overwrite, on_event=on_event, **options)
    show_export(report)


def _bytes(option: str, text: str | None) -> int | None:
    """The bytes that an option names, if it is given. Raises InputError when it names none."""
    from bot_dist.recipe import parse_bytes

    try:
        size = parse_bytes(text) if text is not None else None
    except ValueError as error:
        raise InputError(f"{option}: {error}") from None
    if size == 0:
        raise InputError(f"{option} is 0; write a number of bytes or for example 2GB")
    return size
