"""Small transfers of several families, and what each of them must always make."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

import bot_dist
from bot_dist.events import OnEvent, ignore
from bot_dist.pipeline.results import TransferResult
from bot_dist.store import CheckpointReader
from tests.conftest import PICOS, TOKENIZER, randomised


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One command line: a source, target sizes and options. ``LIMIT`` cuts each transfer into 30 to 100 steps."""

    kind: str
    """Of ``PICOS``."""
    config: tuple[tuple[str, Any], ...] = ()
    dtype: torch.dtype = torch.float32
    target: tuple[tuple[str, int], ...] = ()
    options: tuple[tuple[str, Any], ...] = ()


LIMIT = "24 KiB"
TIED, UNTIED = ("tie_word_embeddings", True), ("tie_word_embeddings", False)

RECIPES = {
    "tied llama": Recipe(
        kind="llama",
        config=(TIED,),
        target=(("embed", 12), ("layers", 6), ("mlp", 80)),
        options=(("transfer.wavelet", "db2"),),
    ),
    "untied llama, bfloat16": Recipe(
        kind="llama",
        config=(UNTIED,),
        dtype=torch.bfloat16,
        target=(("embed", 48), ("heads", 8), ("kv_heads", 4)),
    ),
    "gpt2": Recipe(kind="gpt2", target=(("embed", 48), ("mlp", 192), ("heads", 6), ("layers", 2))),
    "gpt_neox, bfloat16": Recipe(
        kind="gpt_neox",
        dtype=torch.bfloat16,
        target=(("mlp", 80), ("layers", 4)),
        options=(("transfer.wavelet", "bior2.2"),),
    ),
    "gemma, details kept": Recipe(
        kind="gemma", target=(("embed", 12), ("mlp", 20)), options=(("transfer.keep_details", True),)
    ),
    "bert": Recipe(kind="bert", target=(("mlp", 20), ("layers", 6))),
}


@dataclass(frozen=True, kw_only=True)
class Case:
    """A source on storage, and the tensors and files of the store that an undisturbed run makes of it."""

    name: str
    source: Path
    target: dict[str, int]
    options: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    files: dict[str, bytes]

    def transfer(
        self, url: str, on_event: OnEvent = ignore, source: str | None = None, **overrides: Any
    ) -> TransferResult:
        """The command that is disturbed, in this process; its report."""
        return transfer(source or str(self.source), url, self.target, {**self.options, **overrides}, on_event)

    def arguments(self, url: str, **overrides: Any) -> list[str]:
        """The same on the command line, after ``bot_dist``."""
        sizes = {f"target.{axis}": n for axis, n in self.target.items()}
        settings = {**sizes, **self.options, **overrides}
        return ["scale", str(self.source), url, *(a for k, v in settings.items() for a in ("--set", f"{k}={_word(v)}"))]


def transfer(
    source: str, url: str, target: dict[str, int], options: dict[str, Any], on_event: OnEvent = ignore
) -> TransferResult:
    recipe = {"source": source, "output": "nothing-is-put-there", "target_url": url, "target": target}
    return bot_dist.transfer(bot_dist.make_recipe(recipe, options), on_event)


def made(name: str, folder: Path) -> Case:
    """A case of ``RECIPES`` with its source and its undisturbed store in a new folder."""
    recipe = RECIPES[name]
    source, url = folder / "source", str(folder / "undisturbed")
    _save(recipe, source)
    options = {
        "cluster.executor": "local",
        "cluster.device": "cpu",
        "cluster.tensor": 2,
        "transfer.memory_limit": LIMIT,
        "transfer.analysis": "wavelet",
        **dict(recipe.options),
    }
    transfer(str(source), url, dict(recipe.target), options)
    reader = CheckpointReader(url)
    return Case(
        name=name,
        source=source,
        target=dict(recipe.target),
        options=options,
        tensors=dict(reader.tensors(reader.manifest.parameters)),
        files={file: reader.file(file) for file in reader.manifest.files},
    )


def all_made(folder: Path, names: Iterable[str] = RECIPES) -> list[Case]:
    return [made(name, folder / name.replace(" ", "-").replace(",", "")) for name in names]


def _save(recipe: Recipe, folder: Path) -> None:
    import transformers

    config_class, model_class, sizes = PICOS[recipe.kind]
    config = getattr(transformers, config_class)(
        **{**sizes, "bos_token_id": 1, "eos_token_id": 2, **dict(recipe.config)}
    )
    model = randomised(getattr(transformers, model_class)(config).to(recipe.dtype))
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(TOKENIZER)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
