"""Tokenizers that are none, and what stands around documents by those of real kinds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.data.encoder import Encoder
from bot_dist.errors import SourceError
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.pipeline.planning import Planning
from bot_dist.recipe import make_recipe
from tests.conftest import Pico


def words(template: str = "$A", **special: str) -> Any:
    """A word-level tokenizer with a post-processor."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "grow": 3, "shrink": 4}, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    tokens = [(token, made.token_to_id(token)) for token in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single=template, special_tokens=tokens)
    return PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>", **special)


@pytest.mark.parametrize(
    ("template", "special", "before", "behind"),
    [
        ("$A", {"bos_token": "<s>", "eos_token": "</s>"}, (), (2,)),
        ("<s> $A", {"bos_token": "<s>", "eos_token": "</s>"}, (1,), (2,)),
        ("<s> $A </s>", {"cls_token": "<s>", "sep_token": "</s>"}, (1,), (2,)),
        ("<s> <s> $A", {"eos_token": "</s>"}, (1, 1), (2,)),
    ],
)
def test_what_stands_around_a_document(
    template: str, special: dict[str, str], before: tuple[int, ...], behind: tuple[int, ...], tmp_path: Path
) -> None:
    words(template, **special).save_pretrained(tmp_path)
    encoder = Encoder(load_tokenizer(str(tmp_path)))
    assert (encoder.before, encoder.behind) == (before, behind)
    assert encoder(["grow shrink"]) == [[3, 4]]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("tokenizer.json", b""),
        ("tokenizer.json", b"{}"),
        ("tokenizer.json", b'{"model": {"type": "BPE", "vocab": [], "merges": 3}}'),
        ("tokenizer.json", b"[" * 100_000),
        ("tokenizer.json", b"\xff\xfe"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer_config.json", b'{"eos_token": '),
        ("tokenizer_config.json", b'{"a":' * 100_000),
        ("tokenizer_config.json", b'{"eos_token": 3}'),
        ("tokenizer_config.json", b'{"chat_template": 5}'),
        ("special_tokens_map.json", b"null"),
        ("added_tokens.json", b"\xff"),
    ],
)
def test_one_that_is_none_is_found_by_the_plan(
    name: str, data: bytes, pico_llama: Callable[..., Pico], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(pico_llama().url, tmp_path / "model"))
    words(eos_token="</s>").save_pretrained(folder)
    recipe = make_recipe({"source": str(folder), "output": str(tmp_path / "run")})
    _ = Planning(recipe).draft
    (folder / name).write_bytes(data)
    wanted = rf"{name} is (no|a JSON)|transformers can't load the tokenizer: Sp|chat_template is 5, wanted a text"
    with pytest.raises(SourceError, match=f"model: ({wanted})"):
        _ = Planning(recipe).draft
    if name == "tokenizer.json":
        with pytest.raises(SourceError, match=r"tokenizer\.json is no|transformers can't load the tokenizer"):
            load_tokenizer(str(folder))
