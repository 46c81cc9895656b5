"""Parameter groups: what a change of size asks of Adam's step, and what inserted blocks may be given."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.formats.source import Source
from bot_dist.model import model_of
from bot_dist.recipe import InsertedConfig, TrainConfig
from bot_dist.train.engine import BUCKET, _ds_config
from bot_dist.train.optimizers import OPTIMIZERS, Optimizer
from bot_dist.train.optimizers.adamw import adamw
from bot_dist.train.parameter_groups import parameter_groups, set_rates
from tests.conftest import Pico, inputs
from tests.integration.test_transfer import transfer

TRAIN = TrainConfig(learning_rate=1e-5, weight_decay=0.1, warmup=2, steps=10, schedule="stable")

GROWN: dict[str, dict[str, int]] = {
    "llama": {"embed": 48, "mlp": 80, "heads": 8, "kv_heads": 4},
    "gpt2": {"embed": 48, "mlp": 192, "heads": 6},
}


def factors_of(source: Source) -> dict[str, float]:
    return {p.name: source.learning_rate_factor(p) for _, _, p in model_of(source.config).parameters()}


def step_in_function_space(model: Any, source: Source, factors: dict[str, float]) -> float:
    """How far AdamW's first step moves the logits (root mean square), in float64."""
    model = model.double().eval()
    groups = parameter_groups(model, model_of(source.config), TRAIN, factors=factors)
    optimizer = adamw(groups, TRAIN)
    set_rates(optimizer.param_groups, TRAIN, 0, 1)
    ids = inputs(model)["input_ids"]
    before = model(input_ids=ids, labels=ids)
    before.loss.backward()
    optimizer.step()
    with torch.no_grad():
        moved: torch.Tensor = model(input_ids=ids).logits - before.logits
    return moved.square().mean().sqrt().item()


@pytest.mark.parametrize("kind", GROWN)
def test_a_step_of_a_grown_model_goes_as_far_as_one_of_its_source(
    make_pico: Callable[..., Pico], tmp_path: Path, kind: str
) -> None:
    pico = make_pico(kind, tie_word_embeddings=False) if kind == "llama" else make_pico(kind)
    grown = transfer(pico.url, tmp_path / "grown", GROWN[kind], **{"transfer.noise": 0})
    export_huggingface(grown, str(tmp_path / "export"))
    twice = [type(pico.model).from_pretrained(tmp_path / "export") for _ in range(2)]
    of_source = step_in_function_space(pico.model, open_source(pico.url), {})
    with_factors = step_in_function_space(twice[0], grown, factors_of(grown))
    without = step_in_function_space(twice[1], grown, {})
    assert with_factors / of_source == pytest.approx(1, abs=0.01)
    assert without / of_source == pytest.approx(2, abs=0.2)  # norms and tables need no factor


def test_groups_hold_every_parameter_once_at_its_rate_and_decay_it_as_ever(make_pico: Callable[..., Pico]) -> None:
    pico = make_pico("llama", tie_word_embeddings=False)
    model = model_of(json.loads((pico.folder / "config.json").read_text()))
    factors = {p.name: 0.5 for weight, _, p in model.parameters() if weight.name in ("attn.q", "mlp.down")}
    train = TRAIN.model_copy(update={"inserted": InsertedConfig(learning_rate=3.0, warmup=4)})
    groups = parameter_groups(pico.model, model, train, factors=factors, inserted=(1,))
    names = {p: name for name, p in pico.model.named_parameters()}
    of = {names[p]: group for group in groups for p in group["params"]}
    assert len(groups) == len({(g["factor"], g["weight_decay"], g["inserted"]) for g in groups}) == 6
    assert of.keys() == dict(pico.model.named_parameters()).keys()

    old, new, norm = (
        of[f"model.layers.{name}.weight"] for name in ("0.mlp.down_proj", "1.mlp.down_proj", "1.input_layernorm")
    )
    for step, share in ((0, 0.25), (2, 0.75), (3, 1.0)):
        rate = set_rates(groups, train, step, 100)
        assert old["lr"] == pytest.approx(rate * 0.5)
        assert new["lr"] == pytest.approx(rate * 0.5 * 3 * share)
        assert norm["lr"] == pytest.approx(rate * 3 * share)
        assert old["lr"] * old["weight_decay"] == pytest.approx(rate * train.weight_decay)
    assert norm["weight_decay"] == 0
    assert rate == train.learning_rate


def test_an_optimizers_settings_join_those_of_the_engine() -> None:
    of_its_own = Optimizer(make=adamw, states=(), deepspeed={"zero_optimization": {"reduce_scatter": False}})
    config = _ds_config(TRAIN, torch.float32, world=2, optimizer=of_its_own)
    assert config["zero_optimization"] == {"stage": TRAIN.stage, "reduce_bucket_size": BUCKET, "reduce_scatter": False}
    with_adamw = _ds_config(TRAIN, torch.float32, world=2, optimizer=OPTIMIZERS["adamw"])
    assert with_adamw["zero_force_ds_cpu_optimizer"] is False
    assert _ds_config(TRAIN, torch.float32, world=2, optimizer=None)["zero_optimization"]["stage"] == 3
