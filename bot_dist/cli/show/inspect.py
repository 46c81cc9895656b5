"""The output of ``inspect``: a checkpoint, a store with its provenance, or its operators."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.table import Table

from bot_dist.cli import terminal
from bot_dist.cli.show.plain import shape, show_facts
from bot_dist.cli.show.scale import show_shrinking
from bot_dist.units import size
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.formats.describe import Description
    from bot_dist.store import Manifest
    from bot_dist.store.summary import OperatorRow

SHOWN_DIGEST = 12
"""Characters of a digest that tell it from others."""


def show_description(description: Description) -> None:
    """Family, sizes, losses, configuration, and one row per module."""
    table = Table(title=description.url, title_justify="left", box=box.SIMPLE_HEAD)
    for heading in ("module", "axes", "dtype", "tensors", "bytes"):
        numeric = heading in ("tensors", "bytes")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "axes")
    for row in description.modules:
        axes = ", ".join(f"{axis} {n}" for axis, n in row.axes.items())
        table.add_row(row.name, axes, ", ".join(row.dtypes), str(row.tensors), size(row.nbytes))
    terminal.console.print(table)
    show_facts(description.rows())


def show_store(description: Description, manifest: Manifest) -> None:
    """One row per module, the sums, what the model is, and the provenance."""
    from bot_dist.store.summary import provenance_lines, store_rows, store_totals

    table = Table(title=description.url, title_justify="left", box=box.SIMPLE_HEAD)
    layout = ("shard", "chunk") if terminal.console.wide else ()
    for heading in ("module", "axes", "dtype", *layout, "arrays", "bytes", "energy"):
        numeric = heading in ("arrays", "bytes", "energy")
        table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "axes")
    for row in store_rows(manifest):
        stored = row.stored
        table.add_row(
            row.name,
            ", ".join(f"{a} {n}" for a, n in zip(stored.parameter.axes, stored.parameter.sizes, strict=True)),
            stored.dtype,
            *((shape(stored.shard), shape(stored.chunk)) if terminal.console.wide else ()),
            str(row.arrays),
            size(row.nbytes),
            f"{row.energy_kept:.1%}" if row.energy_kept is not None else "–",
        )
    terminal.console.print(table)
    totals = store_totals(manifest)
    held = f"{totals.arrays:,} in {totals.shards:,} shards of {totals.chunks:,} chunks, {size(totals.nbytes)}"
    show_facts(
        [
            ("arrays", held),
            ("files", ", ".join(manifest.files) or "none"),
            ("digest", manifest.digest),
            *description.rows(),
            *provenance_lines(manifest),
        ]
    )
    if stages := manifest.provenance.get("transfer", {}).get("calibrate"):
        show_shrinking(stages)


def show_operators(url: str, rows: Sequence[OperatorRow]) -> None:
    """One row per operator that was fitted for a store."""
    if not rows:
        terminal.console.print(f"{label(url)} holds no fitted operators")
        return
    for store, held in itertools.groupby(rows, key=lambda row: row.store):
        table = Table(title=f"{label(url)}/{store}", title_justify="left", box=box.SIMPLE_HEAD)
        stored = ("dtype", "bytes", "digest") if terminal.console.wide else ()
        for heading in ("operator", "kind", "shape", "layers", *stored, "used for"):
            numeric = heading in ("layers", "bytes")
            table.add_column(heading, justify="right" if numeric else "left", no_wrap=heading != "used for")
        for row in held:
            table.add_row(
                row.name,
                row.kind,
                shape(row.shape) or "–",
                str(row.layers) if row.layers is not None else "all",
                *((row.dtype, size(row.nbytes), f"{row.digest[:SHOWN_DIGEST]}…") if terminal.console.wide else ()),
                ", ".join(f"{module}:{axis}" for module, axis in row.used_for) or "–",
            )
        terminal.console.print(table)


def manifest_json(manifest: Manifest) -> dict[str, Any]:
    """The manifest, but for the digests of the chunks."""
    return {**manifest.contents(), "digest": manifest.digest}
