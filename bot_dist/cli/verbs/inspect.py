"""``bot_dist inspect``: what a checkpoint is, and where it came from."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from bot_dist.cli.options import Overrides, RecipeOrAny
from bot_dist.cli.recipes import store_url
from bot_dist.errors import CheckpointError
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.formats.source import Source
    from bot_dist.store import CheckpointReader


def inspect(
    url: RecipeOrAny,
    as_json: Annotated[
        bool, typer.Option("--json", help="Show it as JSON; of a store, the manifest without digests of chunks.")
    ] = False,
    operators: Annotated[
        bool, typer.Option("--operators", help="Show the operators that a store was made with.")
    ] = False,
    overrides: Overrides = None,
) -> None:
    """Show what a checkpoint is and, if it is a store, where it came from. No weight is read."""
    from bot_dist.formats.open import open_source
    from bot_dist.store import CheckpointReader

    source = open_source(store_url(url, overrides))
    if not isinstance(source, CheckpointReader):
        _inspect_source(source, as_json=as_json, operators=operators)
        return
    try:
        _inspect_store(source, as_json=as_json, operators=operators)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        what = "its manifest does not record what a transfer does"
        raise CheckpointError(f"{label(source.url)}: {what} ({error!r}); make the store again") from None


def _inspect_source(source: Source, *, as_json: bool, operators: bool) -> None:
    from bot_dist.cli.show.inspect import show_description, show_operators
    from bot_dist.cli.show.plain import show_json
    from bot_dist.formats.describe import describe

    if operators:
        show_json([]) if as_json else show_operators(source.url, [])
        return
    description = describe(source)
    show_json(description.to_json()) if as_json else show_description(description)


def _inspect_store(store: CheckpointReader, *, as_json: bool, operators: bool) -> None:
    from bot_dist.cli.show.inspect import manifest_json, show_operators, show_store
    from bot_dist.cli.show.plain import show_json
    from bot_dist.formats.describe import describe
    from bot_dist.store.summary import operator_rows

    if operators:
        rows = operator_rows(store)
        show_json([dataclasses.asdict(row) for row in rows]) if as_json else show_operators(store.url, rows)
    elif as_json:
        show_json(manifest_json(store.manifest))
    else:
        show_store(describe(store), store.manifest)
