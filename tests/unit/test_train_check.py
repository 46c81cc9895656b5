"""What is refused before any worker starts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import InputError, RecipeError
from bot_dist.recipe import TrainConfig, make_recipe
from bot_dist.train.driver import check, masking
from bot_dist.train.results import TrainRun
from tests.conftest import Pico


@pytest.fixture
def train(tmp_path: Path) -> TrainConfig:
    (tmp_path / "text.txt").write_text("to be")
    return TrainConfig(text=(str(tmp_path / "text.txt"),), context=16)


def config(pico: Pico, **changes: Any) -> dict[str, Any]:
    return {**json.loads((pico.folder / "config.json").read_text()), **changes}


def test_what_can_be_trained_passes(make_pico: Callable[..., Pico], train: TrainConfig) -> None:
    check(
        train,
        {"a": config(make_pico("bert")), "b": config(make_pico("gemma2")), "c": config(make_pico("gpt2"))},
        "nowhere",
    )


def test_a_batch_that_does_not_divide(make_pico: Callable[..., Pico], train: TrainConfig) -> None:
    train = train.model_copy(update={"batch": 16, "workers": 2, "accumulate": 3})
    with pytest.raises(
        InputError, match=r"16 sequences, not divisible over 2 copies .*accumulate=3; use train\.batch=18"
    ):
        check(train, {"run": config(make_pico("gpt2"))}, "nowhere")


def test_what_tensor_parallelism_asks_for(make_pico: Callable[..., Pico], train: TrainConfig) -> None:
    llama, four = config(make_pico("llama")), train.model_copy(update={"workers": 4, "tensor": 2})
    check(four.model_copy(update={"batch": 2}), {"run": llama}, "nowhere")
    with pytest.raises(InputError, match=r"workers=3 is not divisible by train\.tensor=2"):
        check(four.model_copy(update={"workers": 3}), {"run": llama}, "nowhere")
    with pytest.raises(InputError, match=r"AutoTP does not cut the family 'gpt2'; use train\.tensor=1"):
        check(four, {"run": config(make_pico("gpt2"))}, "nowhere")


def test_masking_needs_a_mask_token(make_pico: Callable[..., Pico], tmp_path: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"[UNK]": 0, "[SEP]": 1, "[MASK]": 2, "be": 3}, unk_token="[UNK]"))
    special = {"unk_token": "[UNK]", "sep_token": "[SEP]"}
    PreTrainedTokenizerFast(tokenizer_object=words, **special).save_pretrained(tmp_path / "without")
    PreTrainedTokenizerFast(tokenizer_object=words, mask_token="[MASK]", **special).save_pretrained(tmp_path / "with")
    bert, gpt2 = (TrainRun(name=k, config=config(make_pico(k)), url=None, steps=1) for k in ("bert", "gpt2"))
    assert masking([gpt2], str(tmp_path / "without")) is None
    assert masking([gpt2, bert], str(tmp_path / "with")) == {"mask": 2, "special": [0, 1, 2]}
    with pytest.raises(InputError, match=r"without has no mask token.*give it a 'mask_token'"):
        masking([bert], str(tmp_path / "without"))


@pytest.mark.parametrize(
    ("kind", "architecture", "message"),
    [
        ("bert", "BertModel", "'run': its config.json names the architecture BertModel.*name BertForMaskedLM there"),
        ("bert", "BertForPreTraining", "would stay untrained; name BertForMaskedLM"),
        ("vit", "ViTModel", "name ViTForImageClassification there"),
        ("vit", "ViTForImageClassification", r"'vit' is trained on images; name them in train\.images"),
    ],
)
def test_what_has_no_objective(
    make_pico: Callable[..., Pico], train: TrainConfig, kind: str, architecture: str, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        check(train, {"run": config(make_pico(kind), architectures=[architecture])}, "nowhere")


@pytest.mark.parametrize(
    ("train", "message"),
    [
        ({"stage": 2, "offload": "all"}, "offload all is of stage 3, and stage is 2; use offload optimizer"),
        ({"compile": True}, "stage 3 with tensor 1 breaks the graph .* use stage 1 or 2 and tensor 1"),
        ({"compile": True, "stage": 1, "tensor": 2}, "stage 1 with tensor 2 breaks the graph"),
        ({"text": ["a"], "images": "b"}, "trained on text or on images, and both are named"),
        ({"inserted": {"warm": 3}}, r"unknown key 'train\.inserted\.warm'; did you mean .*'warmup'"),
    ],
)
def test_options_that_do_not_go_together(train: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe({"source": "a", "output": "b", "train": train})
