"""A comparison on pico models, from a source that is trained first to the table; and weight selection's weights."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bot_dist.baselines import baseline
from bot_dist.compare.recipe import ComparisonRecipe
from bot_dist.compare.trials import compare
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.model import model_of
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe, validated
from bot_dist.store import CheckpointReader
from bot_dist.tensors import whole
from tests.conftest import UNTRAINED


@pytest.mark.ray
@pytest.mark.deepspeed
@pytest.mark.usefixtures("forked_training")
def test_a_comparison_and_its_rerun(shakespeare: str, tmp_path: Path) -> None:
    sizes = {"layers": 2, "embed": 16, "mlp": 64, "heads": 2, "head_dim": 8, "context": 16}
    train = {"text": [shakespeare], "workers": 1, "context": 16, "batch": 8, "learning_rate": 3e-3, "evaluate_every": 2}
    data = {
        "pretrain": {"model_type": "gpt2", "sizes": sizes, "train": {**train, "steps": 20, "save_every": 10}},
        "output": str(tmp_path / "run"),
        "target": {"layers": 1, "embed": 8, "mlp": 32, "heads": 1},
        "methods": {
            "selection": {"baseline": "weight-selection"},
            "ours": {},
            "warm": {"transfer": {"moments": "auto"}},
            "same": {"target": {}},
        },
        "calibrate": {"tokens": 256, "context": 16, "held_out": 0, **UNTRAINED},
        "train": {key: value for key, value in train.items() if key != "learning_rate"} | {"steps": 6},
        "learning_rates": [3e-3, 1e-3],
        "cluster": {"executor": "local", "device": "cpu", "side_by_side": 2},
    }
    facts = compare(validated(ComparisonRecipe, data, {}, "recipe"))

    source = CheckpointReader(facts.source.pretrained["saved_url"])
    assert model_of(source.config).sizes["vocab"] == len(load_tokenizer(source.url)) == 257
    trained = facts.source.pretrained["held_out"]
    assert facts.source.held_out_loss == pytest.approx(trained[-1]["loss"], abs=1e-6)
    assert trained[-1]["loss"] < trained[0]["loss"]

    methods = ["scratch", "scratch, head untied", "selection", "ours", "warm", "same"]
    assert len(facts.results) == 2 * len(methods)
    chosen = [r for r in facts.results if r.learning_rate == facts.learning_rates[r.method]]
    by_method = {result.method: result for result in chosen}
    assert all(r.curve.losses[-1] >= by_method[r.method].curve.losses[-1] for r in facts.results)
    assert len([*(tmp_path / "run" / "starts").iterdir()]) == 4
    assert list(by_method) == [line[0] for line in facts.table.lines] == methods
    assert by_method["ours"].n_parameters == by_method["scratch, head untied"].n_parameters
    assert by_method["selection"].n_parameters == by_method["scratch"].n_parameters
    for result in by_method.values():
        assert result.curve.steps == [0, 2, 4, 6]
        if result.method != "warm":  # so few steps hardly move it
            assert result.training["losses"][-1]["loss"] < result.training["losses"][0]["loss"]
        larger = result.method == "same"
        assert (result.curve.flops_per_step > by_method["scratch"].curve.flops_per_step) == larger
    assert any("AdamW's moments are carried along, as they are after 20 steps" in n for n in by_method["warm"].notes)
    assert not any("moments are carried" in note for note in by_method["ours"].notes)
    assert by_method["warm"].curve.losses[0] == by_method["ours"].curve.losses[0]
    assert by_method["same"].curve.losses[0] == pytest.approx(trained[-1]["loss"], abs=1e-6)
    tokens = {name: result.curve.flops_before for name, result in by_method.items()}
    ours = tokens["ours"]
    assert tokens == {"scratch": 0, "scratch, head untied": 0, "selection": 0, "ours": ours, "warm": ours, "same": 0}
    forward = 256 * model_of(source.config).flops_per_token(16)
    assert 2 * forward < ours < 10 * forward
    rates = {tuple(s["learning_rate"] for s in result.training["losses"]) for result in facts.results}
    assert len(rates) == 2

    out = tmp_path / "run"
    assert json.loads((out / "comparison.json").read_text()) == facts.to_json()
    assert (out / "comparison.md").read_text().count("\n") == 2 + len(methods)
    assert (out / "comparison.png").read_bytes().startswith(b"\x89PNG")

    # Again: nothing is trained, and all is the same.
    events: list[dict[str, Any]] = []
    again = compare(validated(ComparisonRecipe, data, {}, "recipe"), events.append)
    assert not events
    assert dataclasses.replace(again, date=facts.date) == facts


def test_weight_selection_takes_weights_as_they_are(pico_gpt2: Callable[..., Any], tmp_path: Path) -> None:
    pico = pico_gpt2(n_layer=4, n_embd=24, n_head=3)
    data = {
        "source": str(pico.folder),
        "output": str(tmp_path),
        "target": {"layers": 2, "embed": 16, "heads": 2, "mlp": 36},
        "cluster": {"executor": "local"},
    }

    def transferred(name: str) -> dict[str, torch.Tensor]:
        recipe = make_recipe({**data, "target_url": str(tmp_path / f"{name}.zarr")})
        transfer(recipe, baseline=baseline(name))
        reader = CheckpointReader(recipe.transferred_url)
        model = model_of(reader.config)
        reader.check(model)
        assert {reader.learning_rate_factor(p) for _, _, p in model.parameters()} == {1.0}
        return {p.name: reader.read(p, whole(p.sizes)).reshape(p.shape) for _, _, p in model.parameters()}

    width = np.round(np.linspace(0, 23, 16)).astype(int)
    units = np.round(np.linspace(0, 95, 36)).astype(int)
    heads = [0, 2]
    theirs, block = pico.tensors, "transformer.h.{}."
    first, even = transferred("weight-selection"), transferred("weight-selection+even-layers")
    for ours, layer, origin in ((first, 1, 1), (even, 1, 2)):
        assert torch.equal(ours["transformer.wte.weight"], theirs["transformer.wte.weight"][:, width])
        assert torch.equal(ours["transformer.ln_f.weight"], theirs["transformer.ln_f.weight"][width])
        new, old = block.format(layer), block.format(origin)
        down = theirs[f"{old}mlp.c_proj.weight"][np.ix_(units, width)]
        assert torch.equal(ours[f"{new}mlp.c_proj.weight"], down)
        fused = theirs[f"{old}attn.c_attn.weight"].reshape(24, 3, 3, 8)[width][:, :, heads].reshape(16, 48)
        assert torch.equal(ours[f"{new}attn.c_attn.weight"], fused)
