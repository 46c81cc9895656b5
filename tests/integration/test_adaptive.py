"""Bases and lifting of every family: what must not change does not, and what is fitted is what is written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bot_dist
from bot_dist.calibrate.adapt import Adaptation, Given
from bot_dist.calibrate.fit import Lifted, Rotation
from bot_dist.calibrate.weight_only import WeightStatistics
from bot_dist.checkpoint import CheckpointReader, write_operators
from bot_dist.convert.open import open_source
from bot_dist.errors import PlanError
from bot_dist.families import Model, model_of
from bot_dist.pipeline import _known
from bot_dist.plan import adaptive, basis_of, make_plan, operators, placed, target_model
from bot_dist.runtime.transformed import TransformedSource
from bot_dist.sharding import Mesh, whole

Factory = Callable[..., Any]
ROTATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "vit", "deit")
REFUSED = ("gemma2", "gemma3", "bert")


def unsettled(model: torch.nn.Module) -> None:
    """Norm weights and biases that matter, and matrices that are large enough."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.1))


def loaded(source: TransformedSource, target: Model, kind: type[torch.nn.Module]) -> torch.nn.Module:
    """The plan's target in ``transformers``."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**target.config)
    model = kind._from_config(config) if hasattr(kind, "_from_config") else kind(config)
    with torch.no_grad():
        state = dict(model.named_parameters())
        for _, _, p in target.parameters():
            values = source.read(p, whole(p.sizes)).reshape(p.shape)
            state[target.inside[p.name]].copy_(values)
    return model.eval()


def output(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    config: Any = model.config
    with torch.no_grad():
        if hasattr(config, "image_size"):
            size = config.image_size
            images = torch.randn(2, config.num_channels, size, size, generator=generator)
            return model(pixel_values=images).logits
        ids = torch.randint(3, config.vocab_size, (2, 16), generator=generator)
        return model(input_ids=ids).logits


@pytest.mark.parametrize("kind", ROTATED)
def test_a_rotation_of_the_whole_width_changes_nothing(tmp_path: Path, make_pico: Factory, kind: str) -> None:
    """And neither do the identity's lifting of units and heads."""
    pico = make_pico(kind)
    unsettled(pico.model)
    pico.model.save_pretrained(pico.folder)
    source = open_source(pico.url)
    model = model_of(source.config)
    config = bot_dist.make_recipe({"source": pico.url, "output": str(tmp_path)}).transfer
    target = target_model(model, {}, config, rotated=True)
    axes = ("embed", "mlp", "heads")
    basis = basis_of(model, "auto")
    assert basis == "rotation"
    table = adaptive(model, target, basis, axes)
    given = Given(source=source, model=model, statistics=WeightStatistics(source, model), ridge=1e-3)
    sizes = model.sizes
    heads = sizes["head_dim"] * sizes.get("heads", 1) * sizes.get("kv_heads", 1) * sizes.get("group", 1)
    fits: dict[str, Any] = {
        "embed": Rotation(given=given, n_target=sizes["embed"]),
        "mlp": Lifted(given=given, axis="mlp", n_target=sizes["mlp"]),
        "heads": Lifted(given=given, axis="heads", n_target=heads, kv_target=sizes.get("kv_heads", 0)),
    }
    stored = write_operators(
        str(tmp_path / "operators"),
        operators(table),
        lambda name, layer: fits[name.partition(".")[0]].matrix(name, layer),
        layers=sizes["layer"],
        attempt="all",
    )
    plan = make_plan(
        model,
        target,
        config,
        Mesh(),
        modules=_known(source, model),
        source_id="",
        fitted=placed(table, stored),
    )
    plan.validate()
    rotated = loaded(TransformedSource(plan, source), target, type(pico.model))
    wanted, found = output(pico.model.eval()), output(rotated)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    if model.tied:
        assert not target.tied
        assert any("the head is untied" in note for note in plan.notes)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_rotation_is_refused_where_it_changes_the_function(tmp_path: Path, make_pico: Factory, kind: str) -> None:
    model = model_of(open_source(make_pico(kind).url).config)
    with pytest.raises(PlanError, match="rotation would change the function: in family .* use permutation"):
        basis_of(model, "rotation")
    assert basis_of(model, "auto") == "permutation"


__all__ = ["Adaptation", "CheckpointReader"]
