"""Resizing in Python: one call from a checkpoint to one of another size, and what can be done with that.

>>> import bot_dist
>>> small = bot_dist.resize("hf://ORGANISATION/MODEL", layers=24, embed=288, mlp=768)
>>> small.export("hf://USER/MODEL-SMALL")

Sizes that are left out are kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from bot_dist.events import OnEvent, log
from bot_dist.pipeline.export import export_store
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from bot_dist.results import Row, Shown
from bot_dist.urls import label

if TYPE_CHECKING:
    import torch

    from bot_dist.formats.export_result import ExportResult
    from bot_dist.formats.torch_out import PreTrainedModel
    from bot_dist.pipeline.results import TransferResult


@dataclass(frozen=True, repr=False)
class Checkpoint(Shown):
    """A checkpoint at a URL: a bot_dist store, a Hugging Face folder, a ``.gguf`` file, or what the hub has."""

    url: str
    report: TransferResult | None = field(default=None, compare=False)
    """The measurements of making it; None where it was not made just now."""

    def rows(self) -> Iterator[Row]:
        yield "url", self.url
        if self.report is not None:
            yield from (row for row in self.report.rows() if row[0] != "store")

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Every parameter by its name in ``transformers``' files, on the CPU, with its own dtype; a tied head is not in
        it. Raises SourceError or CheckpointError where the checkpoint is incomplete or damaged."""
        from bot_dist.formats.open import open_source
        from bot_dist.formats.torch_out import state_dict

        return state_dict(open_source(self.url))

    def model(self) -> PreTrainedModel:
        """The ``transformers`` model with its weights, in evaluation mode. Raises as ``state_dict``."""
        from bot_dist.formats.open import open_source
        from bot_dist.formats.torch_out import transformers_model

        return transformers_model(open_source(self.url))

    def export(self, target: str, **options: Any) -> ExportResult:
        """Write it for others, as ``bot_dist.export_store`` does, whose ``options`` these are; returns what was
        written. Raises InputError for a wrong target, CheckpointExistsError for one that holds something."""
        return export_store(self.url, target, **options)


def resize(
    source: str,
    target: str | None = None,
    *,
    layers: int | None = None,
    embed: int | None = None,
    mlp: int | None = None,
    heads: int | None = None,
    kv_heads: int | None = None,
    head_dim: int | None = None,
    calibrate: str | Sequence[str] = (),
    overwrite: bool = False,
    overrides: Mapping[str, Any] | None = None,
    on_event: OnEvent = log,
) -> Checkpoint:
    """Bring a checkpoint to another size, as ``bot_dist scale`` does, and return the store that holds it.

    Sizes that are left out are kept; without any, the source is imported. ``calibrate`` names texts that shrinking is
    fitted to, in place of one that the source writes itself. ``target`` is any fsspec URL, by default a folder in
    ``runs/`` that is named by the source and the sizes. ``overrides`` are further keys of a recipe:
    ``{"transfer.width": "lazy", "cluster.executor": "local"}``.

    Raises RecipeError, InputError, SourceError, FamilyError or PlanError for what is wrong with the request, and
    CheckpointExistsError where the target holds a store already, unless ``overwrite``.
    """
    wanted = {"layers": layers, "embed": embed, "mlp": mlp, "heads": heads, "kv_heads": kv_heads, "head_dim": head_dim}
    sizes = {name: size for name, size in wanted.items() if size is not None}
    texts = [calibrate] if isinstance(calibrate, str) else [*calibrate]
    recipe = make_recipe(
        {
            "source": source,
            "target": sizes,
            "output": "/".join(("runs", "-".join((_name(source), *(f"{n}{s}" for n, s in sizes.items()))))),
            "target_url": target,
            "calibrate": {"text": texts},
            "overwrite": overwrite,
        },
        overrides or {},
        where="resize",
    )
    report = transfer(recipe, on_event)
    return Checkpoint(recipe.transferred_url, report)


def _name(source: str) -> str:
    """A folder's name for what is made of a source."""
    last = label(source).rstrip("/").rpartition("/")[2]
    return last.removesuffix(".gguf").removesuffix(".safetensors").removesuffix(".zarr") or "model"
