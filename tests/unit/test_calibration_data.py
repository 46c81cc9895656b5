"""What a recipe's text gives to calibrate on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bot_dist.data.calibration_samples import CalibrationData
from bot_dist.errors import InputError
from bot_dist.fit.calibration_data import calibration_data, notes_on_text
from bot_dist.recipe import make_recipe
from tests.unit.test_calibration_windows import model

WORDS = 500
BEGIN, END = 1, 2


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder with a tokenizer that puts BOS before a text; a word is a token, ``w7`` is 10."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    special = ["<unk>", "<s>", "</s>"]
    vocabulary = {word: i for i, word in enumerate([*special, *(f"w{i}" for i in range(WORDS))])}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BEGIN)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="</s>", unk_token="<unk>")
    tokenizer.save_pretrained(tmp_path / "source")
    return tmp_path / "source"


def data(source: Path, **sections: Any) -> CalibrationData:
    recipe = make_recipe({"source": str(source), "output": str(source.parent / "run"), **sections})
    nothing: Any = None
    taken = model("llama", vocab_size=WORDS + 3, max_position_embeddings=64)
    found = calibration_data(recipe, nothing, taken, None, "", nothing, lambda event: None)
    assert found is not None
    return found


def words(path: Path, start: int, stop: int) -> str:
    path.write_text(" ".join(f"w{i}" for i in range(start, stop)))
    return str(path)


AMOUNT = {"tokens": 64, "held_out": 64, "context": 16}


@pytest.mark.parametrize("named", ["train", "calibrate", "a pattern"])
def test_nothing_that_training_holds_out_is_calibrated_on(named: str, source: Path, tmp_path: Path) -> None:
    """Whoever names the text, and however."""
    files = [words(tmp_path / "a.txt", 0, 250), words(tmp_path / "b.txt", 250, WORDS)]
    text = {"train": [], "calibrate": files[::-1], "a pattern": [f"{tmp_path}/?.txt"]}[named]
    held_out = {"context": 20, "held_out": 9}
    found = data(source, train={"text": files, **held_out}, calibrate={"text": text, **AMOUNT})
    seen = torch.cat([found.fitted.inputs, found.held_out.inputs])
    assert seen.shape == (8, 16)
    assert (seen[:, 0] == BEGIN).all()
    assert int(seen.max()) - 3 < WORDS - (20 * 9 - 1)
    assert int(seen.max()) - 3 > WORDS - (20 * 9 - 1) - 40
    other = data(source, train={"text": files[:1], **held_out}, calibrate={"text": files[1:], **AMOUNT})
    assert int(torch.cat([other.fitted.inputs, other.held_out.inputs]).max()) - 3 > WORDS - 40


def test_what_training_leaves_may_be_too_little(source: Path, tmp_path: Path) -> None:
    train = {"text": [words(tmp_path / "a.txt", 0, 250)], "context": 20, "held_out": 9}
    message = (
        r"^train\.text: 72 tokens in 1 file\(s\) before the last 180, which train\.held_out keeps, wanted at least 128"
    )
    with pytest.raises(InputError, match=message):
        data(source, train=train, calibrate=AMOUNT)


def test_keys_of_the_section_that_names_the_text_hold(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"said": f"w{i} w{i} w{i}"}) + "\n" for i in range(200)))
    train = {"text": [str(path)], "column": "said", "bos": "none", "eos": "<unk>", "held_out": 1, "context": 16}
    found = data(source, train=train, calibrate={"bos": "<s>", **AMOUNT})
    assert BEGIN not in found.fitted.inputs
    assert END not in found.fitted.inputs
    assert found.fitted.inputs[0, 0] == 0
    own = {"text": [str(path)], "column": "said", **AMOUNT}
    assert (data(source, train=train, calibrate=own).fitted.inputs[:, 0] == BEGIN).all()
    with pytest.raises(InputError, match=r"line 1, is larger than calibrate\.document_limit \(20 bytes\)"):
        data(source, calibrate={**own, "document_limit": 20})


def test_the_column_of_a_table_is_told(source: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text("id,text\n" + "".join(f"{i},w{i} w{i}\n" for i in range(200)))
    calibrate = {"text": [str(path)], **AMOUNT}
    assert len(data(source, calibrate=calibrate).fitted) == 4
    recipe = make_recipe({"source": str(source), "output": str(tmp_path), "calibrate": calibrate})
    assert notes_on_text(recipe) == [f"calibrate.text: of {path} the column 'text' is read"]
