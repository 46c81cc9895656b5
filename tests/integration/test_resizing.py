"""From Python: a checkpoint resized in one call, in memory as a state dict or a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bot_dist
from bot_dist.errors import CheckpointExistsError, RecipeError
from tests.conftest import Pico, inputs, outputs

LOCAL = {"cluster.executor": "local"}


def test_any_checkpoint_is_the_model_that_transformers_loads(pico: Callable[..., Pico], tmp_path: Path) -> None:
    source = pico()
    store = bot_dist.resize(source.url, str(tmp_path / "s.zarr"), overrides=LOCAL)
    for checkpoint in (store, bot_dist.Checkpoint(source.url)):
        found = checkpoint.state_dict()
        assert found.keys() <= source.tensors.keys()
        assert all(torch.equal(found[name], source.tensors[name]) for name in found)
        model = checkpoint.model()
        assert type(model) is type(source.model)
        for name, value in outputs(source.model).items():
            assert torch.equal(outputs(model)[name], value), name
    assert inputs(source.model).keys() == inputs(store.model()).keys()


def test_three_lines_from_a_checkpoint_to_one_of_another_size(
    pico_llama: Callable[..., Pico], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    source = pico_llama(tied=False)
    grown = bot_dist.resize(source.url, embed=48, overrides=LOCAL)
    assert grown.url == f"runs/{source.folder.name}-embed48/transferred.zarr"
    assert grown.report.steps > 0
    model = grown.model()
    assert model.config.hidden_size == 48
    torch.testing.assert_close(outputs(model)["logits"], outputs(source.model)["logits"], rtol=0, atol=1e-4)
    exported = grown.export(str(tmp_path / "exported"))
    assert "model.safetensors" in exported.files
    with pytest.raises(CheckpointExistsError):
        bot_dist.resize(source.url, embed=48, overrides=LOCAL)
    again = bot_dist.resize(source.url, embed=48, overrides=LOCAL, overwrite=True)
    assert again == grown


def test_a_wrong_key_is_named(pico_llama: Callable[..., Pico]) -> None:
    with pytest.raises(RecipeError, match=r"resize: unknown key 'transfer.widht'; did you mean 'width'"):
        bot_dist.resize(pico_llama().url, embed=48, overrides={"transfer.widht": "copy"})
