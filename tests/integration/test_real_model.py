"""The recipes, on the real model."""

from __future__ import annotations

from pathlib import Path

import pytest

import bot_dist


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.deepspeed
def test_a_real_model_of_twice_the_width_has_its_sources_loss(tmp_path: Path) -> None:
    recipe = bot_dist.load_recipe("configs/grow_smollm2.yaml", {"output": str(tmp_path / "run")})
    facts = bot_dist.run(recipe)
    loss = {run["name"]: run["held_out"][0]["loss"] for run in facts["pretrain"]["runs"]}
    assert loss["transferred"] == pytest.approx(loss["source"], abs=1e-3)
    assert facts["plan"]["n_target"] == 481_366_656
    assert facts["export"]["logits"]["max_abs_difference"] < 1e-4
    assert (tmp_path / "run" / "report.html").stat().st_size > 20_000
