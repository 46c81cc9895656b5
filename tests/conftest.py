"""Pico models of every family, as ``transformers`` makes and saves them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch


@dataclass(frozen=True)
class Pico:
    """A saved model, and itself."""

    folder: Path
    model: Any

    @property
    def url(self) -> str:
        return str(self.folder)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return dict(self.model.named_parameters())


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """No norm is one, no bias zero: a weight that is lost or swapped shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_((1.0 if parameter.ndim == 1 else 0.0) + 0.1 * noise)
    return model.eval()


@pytest.fixture
def save_pico(tmp_path: Path) -> Callable[..., Pico]:
    """``save(model, dtype=…, max_shard_size=…)``: the model, randomised and saved in a new folder."""

    def save(model: Any, dtype: torch.dtype = torch.float32, **options: Any) -> Pico:
        folder = tmp_path / f"pico-{len(list(tmp_path.glob('pico-*')))}"
        model = randomised(model.to(dtype))
        model.save_pretrained(folder, **options)
        return Pico(folder, model)

    return save


@pytest.fixture
def pico_llama(save_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """``pico_llama(tied=True, dtype=…, max_shard_size=…, **config)``."""

    def make(tied: bool = True, dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", **config: Any) -> Pico:
        from transformers import LlamaConfig, LlamaForCausalLM

        sizes = {
            "vocab_size": 64,
            "hidden_size": 24,
            "intermediate_size": 40,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 64,
        }
        ids = {"bos_token_id": 1, "eos_token_id": 2}
        model = LlamaForCausalLM(LlamaConfig(**{**sizes, **ids, "tie_word_embeddings": tied, **config}))
        return save_pico(model, dtype, max_shard_size=max_shard_size)

    return make


@pytest.fixture
def pico_gpt2(save_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """``pico_gpt2(dtype=…, max_shard_size=…, **config)``; always tied."""

    def make(dtype: torch.dtype = torch.float32, max_shard_size: str = "1GB", **config: Any) -> Pico:
        from transformers import GPT2Config, GPT2LMHeadModel

        sizes = {"vocab_size": 64, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 3}
        ids = {"bos_token_id": 1, "eos_token_id": 2}
        model = GPT2LMHeadModel(GPT2Config(**{**sizes, **ids, **config}))
        return save_pico(model, dtype, max_shard_size=max_shard_size)

    return make


@pytest.fixture(params=["tied llama", "untied llama", "gpt2"])
def pico(
    request: pytest.FixtureRequest, pico_llama: Callable[..., Pico], pico_gpt2: Callable[..., Pico]
) -> Callable[..., Pico]:
    """Maker of a model of every family, tied and not."""
    makers: dict[str, Callable[..., Pico]] = {
        "tied llama": pico_llama,
        "untied llama": lambda **options: pico_llama(tied=False, **options),
        "gpt2": pico_gpt2,
    }
    return makers[request.param]
