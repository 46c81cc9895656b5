"""Growing by what is fitted: the loudest are copied most often, or new coordinates lie behind a rotation; both keep
the function, at any ratio."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bot_dist.errors import PlanError, RecipeError
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.model import model_of
from bot_dist.store import CheckpointReader
from tests.conftest import outputs
from tests.integration.test_adaptive import ROTATED, adapted, tensors, unsettled, with_quiet_norms, with_tokenizer

Factory = Callable[..., Any]
GROUPED = {"num_attention_heads": 6, "num_key_value_heads": 3}


def settled(pico: Any, tokenizer: Path) -> str:
    unsettled(pico.model)
    with_quiet_norms(pico.model)
    pico.model.save_pretrained(pico.folder)
    return with_tokenizer(pico, tokenizer)


def grown(pico: Any, source: str, folder: Path, target: dict[str, int], text: list[str], **options: Any) -> Any:
    """The report, and the ``transformers`` model that is exported, which computes what ``pico`` does."""
    report = adapted(folder, source, target, text, **options)
    store = CheckpointReader(str(folder / "transferred.zarr"))
    assert store.manifest.provenance["plan"]["function_kept"].startswith("up to rounding (factors in float32")
    export_huggingface(store, str(folder / "export"))
    model = type(pico.model).from_pretrained(folder / "export")
    before, after = outputs(pico.model)["logits"], outputs(model)["logits"]
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
    return report, model


@pytest.mark.parametrize(
    ("kind", "target", "options"),
    [
        ("llama", {"embed": 36, "mlp": 50, "kv_heads": 4, "heads": 12}, {**GROUPED, "tie_word_embeddings": True}),
        ("gemma2", {"embed": 30, "mlp": 50, "kv_heads": 5, "heads": 10}, GROUPED),
        ("gpt2", {"mlp": 150}, {}),
        ("gpt_neox", {"mlp": 70}, {}),
    ],
)
def test_spread_copies_keep_the_function(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str, kind: str, target: Any, options: Any
) -> None:
    pico = make_pico(kind, **options)
    source = settled(pico, pico_tokenizer)
    spread = {"transfer.width": "spread"}
    report, _ = grown(pico, source, tmp_path / "one", target, [shakespeare], **spread)
    losses = [stage.loss for stage in report.calibrate]
    assert losses[-1] == pytest.approx(losses[0], rel=1e-5)
    adapted(tmp_path / "two", source, target, [shakespeare], **spread, **{"cluster.tensor": 2, "cluster.data": 2})
    again = tensors(tmp_path / "two")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors(tmp_path / "one").items())


def test_the_loudest_units_are_copied(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str
) -> None:
    pico = make_pico("llama")
    unsettled(pico.model)
    loud = [3, 17, 30]
    with torch.no_grad():
        pico.model.model.layers[1].mlp.down_proj.weight[:, loud] *= 100
    pico.model.save_pretrained(pico.folder)
    source = with_tokenizer(pico, pico_tokenizer)
    mlp = model_of(open_source(source).config).sizes["mlp"]
    _, model = grown(pico, source, tmp_path / "one", {"mlp": mlp + 3}, [shakespeare], **{"transfer.width": "spread"})
    rows = model.model.layers[1].mlp.up_proj.weight.detach()
    extra = [int((rows == row).all(1).sum()) - 1 for row in pico.model.model.layers[1].mlp.up_proj.weight]
    assert sum(extra) == sum(extra[i] for i in loud) == 3


@pytest.mark.parametrize("kind", ROTATED)
def test_new_coordinates_behind_a_rotation_keep_the_function(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str, kind: str
) -> None:
    pico = make_pico(kind)
    source = settled(pico, pico_tokenizer)
    before = model_of(open_source(source).config)
    target = {"embed": before.sizes["embed"] * 2}
    if "heads" in before.sizes:  # width = heads × head_dim
        target["heads"] = before.sizes["heads"] * 2
    options = {"transfer.width": "lazy", "transfer.basis": "rotation"}
    text = [] if before.family.objective == "image" else [shakespeare]
    grown(pico, source, tmp_path / "one", target, text, **options)
    reader = CheckpointReader(str(tmp_path / "one" / "transferred.zarr"))
    after = model_of(reader.config)
    stored = tensors(tmp_path / "one")
    reads = [w for w in after.weights if w.layered and w.kind == "matrix" and not w.into_residual]
    new = stored[after.parameter(reads[0]).name].reshape(after.parameter(reads[0]).sizes)
    drawn = new.movedim([use.axis for use in reads[0].uses].index("embed"), 0)[before.sizes["embed"] :]
    assert 0.5 < drawn.std() / after.init_std(reads[0]) < 1.5


@pytest.mark.parametrize(
    ("kind", "target", "options", "message"),
    [
        ("gpt2", {"embed": 48, "heads": 6}, {"transfer.width": "spread"}, "LayerNorm's mean"),
        ("llama", {"embed": 48}, {"transfer.basis": "rotation"}, "grows by resample; use width"),
        ("llama", {"embed": 48}, {"transfer.width": "spread", "transfer.noise": 0.1}, "no axis that a weight reads"),
        ("gemma2", {"embed": 48}, {"transfer.width": "lazy", "transfer.basis": "rotation"}, "change the function"),
    ],
)
def test_what_would_change_the_function_is_refused(
    tmp_path: Path, make_pico: Factory, kind: str, target: Any, options: Any, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        adapted(tmp_path, make_pico(kind).url, target, [], **options)


def test_spreading_needs_statistics(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="width spread is fitted to statistics"):
        adapted(tmp_path, "x", {}, [], **{"transfer.width": "spread", "transfer.analysis": "wavelet"})
