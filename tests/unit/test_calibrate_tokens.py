"""Windows of a text, and what is to be predicted of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from bot_dist.calibrate.samples import IGNORED, Samples
from bot_dist.calibrate.tokens import windows
from bot_dist.errors import InputError
from bot_dist.families import Model, model_of
from tests.conftest import PICOS


class CharTokenizer:
    """One token per character; 0 ends a document."""

    eos_token_id: int | None = 0

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        return {"input_ids": [ord(c) for c in text]}


@pytest.fixture
def text(tmp_path: Path) -> str:
    """100 different characters."""
    (tmp_path / "a.txt").write_text("".join(map(chr, range(1, 101))), encoding="utf-8", newline="")
    return str(tmp_path / "a.txt")


def model(kind: str, **fields: Any) -> Model:
    import transformers

    config_class, model_class, sizes = PICOS[kind]
    config = getattr(transformers, config_class)(**{**sizes, **fields}).to_dict()
    return model_of({**config, "architectures": [model_class]})


def test_windows_lie_evenly_over_the_text(text: str) -> None:
    found = windows([text], CharTokenizer(), tokens=12, context=3)
    assert found.dtype == torch.long
    assert found.tolist() == [[s, s + 1, s + 2] for s in (1, 26, 51, 76)]


def test_all_of_a_text_that_is_just_long_enough(text: str) -> None:
    assert windows([text], CharTokenizer(), tokens=101, context=101).flatten().tolist() == [*range(1, 101), 0]
    assert windows([text], CharTokenizer(), tokens=100, context=25).flatten().tolist() == [*range(1, 101)]


def test_files_by_pattern(text: str) -> None:
    pattern = str(Path(text).parent / "*.txt")
    assert torch.equal(windows([pattern], CharTokenizer(), 12, 3), windows([text], CharTokenizer(), 12, 3))


def test_a_text_that_is_too_short_says_by_how_much(text: str) -> None:
    with pytest.raises(InputError, match=r"calibrate\.text: 101 tokens in 1 file\(s\), wanted at least 102"):
        windows([text], CharTokenizer(), tokens=102, context=51)


def test_no_files_and_no_windows(text: str) -> None:
    with pytest.raises(InputError, match="names no file"):
        windows([], CharTokenizer(), tokens=10, context=5)
    for tokens, context in ((10, 11), (10, 1)):
        with pytest.raises(InputError, match="are no windows"):
            windows([text], CharTokenizer(), tokens=tokens, context=context)


def test_errors_of_reading_name_the_calibration(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.txt").write_text("  ")
    with pytest.raises(InputError, match=r"^calibrate\.text: .*b\.txt is empty"):
        windows([str(tmp_path / "b.txt")], CharTokenizer(), tokens=10, context=5)
    without = CharTokenizer()
    without.eos_token_id = None
    with pytest.raises(InputError, match=r"^calibrate\.text: .*EOS"):
        windows([text], without, tokens=10, context=5)


def test_separator_of_an_encoder_ends_a_document(text: str) -> None:
    encoder: Any = CharTokenizer()
    encoder.eos_token_id, encoder.sep_token_id = None, 7
    assert windows([text], encoder, tokens=101, context=101)[0, -1] == 7


def test_tokens_of_another_tokenizer() -> None:
    for token in (64, -1):
        with pytest.raises(InputError, match=rf"token {token}, but the model's vocabulary has 64"):
            Samples.of_text(torch.tensor([[0, token]]), model("llama"))


def test_windows_the_model_can_not_take() -> None:
    with pytest.raises(InputError, match=r"33 tokens, but the model has n_positions=32"):
        Samples.of_text(torch.zeros(1, 33, dtype=torch.long), model("gpt2"))
    for shape in ((2, 1), (4,)):
        with pytest.raises(InputError, match="calibration windows have shape"):
            Samples.of_text(torch.zeros(shape, dtype=torch.long), model("llama"))


def test_next_tokens_are_predicted() -> None:
    found = Samples.of_text(torch.tensor([[3, 4, 5]]), model("llama"))
    assert found.inputs.tolist() == [[3, 4, 5]]
    assert found.labels.tolist() == [[4, 5, IGNORED]]
    assert (len(found), found.positions, found.n_positions) == (1, 3, 3)


def test_masked_tokens_are_predicted() -> None:
    shown = torch.randint(6, 64, (40, 30), generator=torch.Generator().manual_seed(0))
    found = Samples.of_text(shown, model("bert"), 5)
    inputs, labels = found.inputs, found.labels
    chosen = labels != IGNORED
    assert 0.12 < chosen.double().mean().item() < 0.18
    assert torch.equal(inputs == 5, chosen)
    assert torch.equal(torch.where(chosen, labels, inputs), shown)
    assert torch.equal(Samples.of_text(shown, model("bert"), 5).inputs, inputs)
    with pytest.raises(InputError, match="no mask token"):
        Samples.of_text(shown, model("bert"))


def test_windows_of_a_long_text_are_had_without_all_of_it(tmp_path: Path) -> None:
    """Evenly over both files, none over another."""
    files = []
    for i in range(2):
        path = tmp_path / f"{i}.txt"
        path.write_text("".join(chr(1000 * i + 100 + j % 800) for j in range(400)))
        files.append(str(path))
    seen: list[int] = []

    class Counting(CharTokenizer):
        def __call__(self, text: str, **options: Any) -> Any:
            seen.append(len(text))
            return super().__call__(text, **options)

    found = windows(files, Counting(), tokens=16, context=4)
    assert seen == [48] * 4
    first = [row[0] for row in found.tolist()]
    assert [f // 1000 for f in first] == [0, 0, 1, 1]
    assert first[1] - first[0] >= 48
    assert all(row == [*range(row[0], row[0] + 4)] for row in found.tolist())
