"""Pico models of every family, as ``transformers`` makes and saves them."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import settings
from safetensors.torch import load_file

# At their usual niceness Ray's workers starve beside the tests of another process.
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112

settings.register_profile("short", deadline=None, max_examples=25)
settings.register_profile("long", deadline=None, max_examples=100, derandomize=False)
settings.load_profile("short")


def examples(count: int, **options: Any) -> settings:
    """So many examples of a property with Hypothesis's profile ``long``, else a quarter, but 10 or all."""
    few = max(count // 4, min(count, 10))
    return settings(max_examples=count if settings.get_current_profile_name() == "long" else few, **options)


def shares(item: pytest.Item) -> bool:
    """Whether a test is of the session's Ray or of ranks: these share a cluster and a fork server."""
    return "start_ray" in getattr(item, "fixturenames", ()) or item.get_closest_marker("deepspeed") is not None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """They take longest, and begin; of several processes (``pytest -n 2 --dist loadfile``) each has its own."""
    items.sort(key=shares, reverse=True)


@pytest.fixture(scope="session")
def start_ray() -> Iterator[Callable[[], None]]:
    """Starts an embedded Ray with four logical CPUs, whatever the machine has, unless there is one: the session's.

    It lacks the servers of the dashboard, which take as long to start as all the others.
    """
    import ray

    from bot_dist.execute.ray.cluster import connected
    from bot_dist.recipe import ClusterConfig

    init = ray.init

    def start() -> None:
        if not ray.is_initialized():
            with mock.patch("ray.init", lambda **options: init(**{**options, "include_dashboard": False})):
                stack.enter_context(connected(ClusterConfig(), cpus=4))

    with contextlib.ExitStack() as stack:
        yield start


def default_signals() -> None:
    """As a terminal has it, in a process before it begins: one that runs behind ``nohup`` or ``&`` ignores some."""
    for kind in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
        signal.signal(kind, signal.SIG_DFL)


UNTRAINED = {"allow_mismatch": True}
"""Of ``calibrate``, where the source is a pico: it understands no text better than a uniform guess does."""


@dataclass(frozen=True)
class Pico:
    """A saved model, and itself."""

    folder: Path
    model: Any
    tensors: dict[str, torch.Tensor]
    """Its parameters, by name in the files (which is not always that inside the model)."""

    @property
    def url(self) -> str:
        return str(self.folder)


def randomised(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """No norm is one, no bias zero: a weight that is lost or swapped shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_((1.0 if parameter.ndim == 1 else 0.0) + 0.1 * noise)
    return model.eval()


def saved(model: Any, folder: Path, dtype: torch.dtype = torch.float32, **options: Any) -> Pico:
    """The model, randomised and saved in a new folder; ``max_shard_size=…`` and others as transformers takes them."""
    model = randomised(model.to(dtype))
    model.save_pretrained(folder, **options)
    parameters = [*model.parameters()]
    named = {
        name: next(p for p in parameters if p.shape == tensor.shape and torch.equal(p, tensor))
        for path in folder.glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    return Pico(folder, model, named)


def new_folder(tmp_path: Path) -> Path:
    """Of a test's next pico."""
    return tmp_path / f"pico-{len(list(tmp_path.glob('pico-*')))}"


@pytest.fixture
def save_pico(tmp_path: Path) -> Callable[..., Pico]:
    """``save(model, dtype=…, max_shard_size=…)``: the model, randomised and saved in a new folder."""
    return lambda model, *options, **more: saved(model, new_folder(tmp_path), *options, **more)


TOKENIZER = json.dumps(
    {
        "version": "1.0",
        "added_tokens": [],
        **dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder")),
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0}, "unk_token": "<unk>"},
    }
)
"""The smallest ``tokenizer.json``, to be carried along."""

RMS = {
    "vocab_size": 64,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
}
SQUARE = {"hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3, "num_attention_heads": 3}
WINDOWS = {
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    "sliding_window": 6,
    "query_pre_attn_scalar": 16,
}
IMAGE = {**SQUARE, "image_size": 12, "patch_size": 4, "num_labels": 7}

PICOS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", "LlamaForCausalLM", RMS),
    "mistral": ("MistralConfig", "MistralForCausalLM", {**RMS, "sliding_window": 6}),
    "qwen2": ("Qwen2Config", "Qwen2ForCausalLM", RMS),
    "qwen3": ("Qwen3Config", "Qwen3ForCausalLM", RMS),
    "gemma": ("GemmaConfig", "GemmaForCausalLM", RMS),
    "gemma2": ("Gemma2Config", "Gemma2ForCausalLM", {**RMS, **WINDOWS}),
    "gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM", {**RMS, **WINDOWS}),
    "gpt2": (
        "GPT2Config",
        "GPT2LMHeadModel",
        {"vocab_size": 64, "n_positions": 32, "n_embd": 24, "n_layer": 3, "n_head": 3},
    ),
    "gpt_neox": ("GPTNeoXConfig", "GPTNeoXForCausalLM", {**SQUARE, "vocab_size": 64, "max_position_embeddings": 64}),
    "bert": ("BertConfig", "BertForMaskedLM", {**SQUARE, "vocab_size": 64, "max_position_embeddings": 32}),
    "vit": ("ViTConfig", "ViTForImageClassification", IMAGE),
    "deit": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", IMAGE),
}
"""Per kind of model: its configuration and model in ``transformers``, and its sizes."""


@pytest.fixture(scope="session")
def picos(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Pico]:
    """As ``make_pico``, but made once: its folder and its model are everyone's, and stay as they are."""
    made: dict[str, Pico] = {}

    def once(kind: str, **options: Any) -> Pico:
        key = repr((kind, sorted(options.items())))
        if key not in made:
            made[key] = make(kind, **options)
        return made[key]

    def make(
        kind: str,
        model_class: str | None = None,
        dtype: torch.dtype = torch.float32,
        max_shard_size: str = "1GB",
        **config: Any,
    ) -> Pico:
        import transformers

        config_class, usual, sizes = PICOS[kind]
        ids = {"bos_token_id": 1, "eos_token_id": 2} if "vocab_size" in sizes else {}
        model = getattr(transformers, model_class or usual)(
            getattr(transformers, config_class)(**{**sizes, **ids, **config})
        )
        return saved(model, tmp_path_factory.mktemp(kind) / "pico", dtype, max_shard_size=max_shard_size)

    return once


@pytest.fixture
def make_pico(picos: Callable[..., Pico], tmp_path: Path) -> Callable[..., Pico]:
    """``make_pico(kind, model_class=…, dtype=…, max_shard_size=…, **config)``, for the kinds of ``PICOS``.

    It is a copy, which the test may change.
    """

    def make(kind: str, model_class: str | None = None, **options: Any) -> Pico:
        kept = picos(kind, model_class=model_class, **options)
        return copy.deepcopy(dataclasses.replace(kept, folder=shutil.copytree(kept.folder, new_folder(tmp_path))))

    return make


@pytest.fixture
def pico_llama(make_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """``pico_llama(tied=True, dtype=…, max_shard_size=…, **config)``."""

    def make(tied: bool = True, **options: Any) -> Pico:
        return make_pico("llama", tie_word_embeddings=tied, **options)

    return make


@pytest.fixture
def pico_gpt2(make_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """``pico_gpt2(dtype=…, max_shard_size=…, **config)``; tied."""
    return partial(make_pico, "gpt2")


@pytest.fixture
def pico_gpt_neox(make_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """``pico_gpt_neox(dtype=…, max_shard_size=…, **config)``; untied."""
    return partial(make_pico, "gpt_neox")


@pytest.fixture
def pico_gemma(make_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """``pico_gemma(dtype=…, max_shard_size=…, **config)``; tied."""
    return partial(make_pico, "gemma")


@pytest.fixture
def pico_bert(make_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """``pico_bert(model_class="BertForMaskedLM", dtype=…, max_shard_size=…, **config)``; tied."""
    return partial(make_pico, "bert")


@pytest.fixture
def pico_vit(make_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """``pico_vit(model_class="ViTForImageClassification", dtype=…, max_shard_size=…, **config)``."""
    return partial(make_pico, "vit")


VARIANTS: dict[str, dict[str, Any]] = {
    "tied llama": {"kind": "llama", "tie_word_embeddings": True},
    "untied llama": {"kind": "llama", "tie_word_embeddings": False},
    "qwen3": {"kind": "qwen3", "attention_bias": True},
    "gemma": {"kind": "gemma"},
    "gemma2": {"kind": "gemma2"},
    "gemma3": {"kind": "gemma3"},
    "gpt2": {"kind": "gpt2"},
    "gpt_neox": {"kind": "gpt_neox"},
    "bert": {"kind": "bert"},
    "vit": {"kind": "vit"},
    "deit": {"kind": "deit"},
}


@pytest.fixture(params=VARIANTS)
def pico(request: pytest.FixtureRequest, make_pico: Callable[..., Pico]) -> Callable[..., Pico]:
    """Maker of a model of every family, tied and not. All of them have logits."""
    return partial(make_pico, **VARIANTS[request.param])


def inputs(model: Any) -> dict[str, torch.Tensor]:
    """Two images or two texts, the same for models of all sizes."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    if model.main_input_name == "pixel_values":
        size = config.image_size if isinstance(config.image_size, list | tuple) else (config.image_size,) * 2
        return {"pixel_values": torch.randn(2, config.num_channels, *size, generator=generator)}
    made = {"input_ids": torch.randint(3, config.vocab_size, (2, 20), generator=generator)}
    if config.model_type == "bert":
        made["token_type_ids"] = torch.randint(2, (2, 20), generator=generator)
    return made


def outputs(model: Any) -> dict[str, torch.Tensor]:
    """All that the model puts out for ``inputs``, by name."""
    with torch.no_grad():
        found = model.eval()(**inputs(model))
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}
