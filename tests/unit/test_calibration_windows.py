"""Windows of a text, and what is to be predicted of them."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bot_dist.data.calibration_samples import IGNORED, Samples
from bot_dist.data.calibration_windows import windows
from bot_dist.data.encoder import Encoder, pack_text
from bot_dist.data.excerpts import tokens_at_ends
from bot_dist.data.texts import Piece, open_texts
from bot_dist.errors import InputError
from bot_dist.model import Model, model_of
from tests.conftest import PICOS


class CharTokenizer:
    """One token per character; 0 ends a document."""

    eos_token_id: int | None = 0
    around: tuple[list[int], list[int]] = ([], [])
    all_special_tokens = ("<end>", "<begin>")

    def __call__(self, text: str, add_special_tokens: bool, verbose: bool) -> dict[str, Any]:
        before, behind = self.around if add_special_tokens else ([], [])
        return {"input_ids": [*before, *map(ord, text), *behind]}

    def get_vocab(self) -> dict[str, int]:
        return {"<end>": 0, "<begin>": 1, "<sep>": 2} | {chr(i): i for i in range(3, 2000)}


class Beginning(CharTokenizer):
    """One that puts 1 before a text."""

    around = ([1], [])


class Bert(CharTokenizer):
    """One that puts 1 before a text and 2 behind it."""

    around = ([1], [2])
    eos_token_id = None


def taken(
    files: list[str],
    tokenizer: Any = None,
    *,
    fitted: int = 1,
    held_out: int = 0,
    context: int,
    section: str = "calibrate",
    **options: Any,
) -> list[list[list[int]]]:
    """The windows to fit to, and those held out."""
    texts = open_texts(files, section=section)
    encoder = Encoder(tokenizer or CharTokenizer(), section)
    return [part.tolist() for part in windows(texts, encoder, fitted, held_out, context, **options)]


def as_lines(path: Path, documents: list[str]) -> str:
    path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return str(path)


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
    """The first of four begins with what stands between documents."""
    shown, held_out = taken([text], fitted=4, context=3)
    assert shown == [[0, 1, 2], *([s, s + 1, s + 2] for s in (26, 51, 76))]
    assert held_out == []
    assert windows(open_texts([text]), Encoder(CharTokenizer()), 4, 2, 3)[1].dtype == torch.long


def test_all_of_a_text_that_is_just_long_enough(text: str) -> None:
    assert taken([text], context=101)[0] == [[0, *range(1, 101)]]
    assert taken([text], fitted=2, context=50)[0] == [[0, *range(1, 50)], [*range(51, 101)]]


def test_files_by_pattern(text: str) -> None:
    pattern = str(Path(text).parent / "*.txt")
    assert taken([pattern], fitted=4, context=3) == taken([text], fitted=4, context=3)


def test_a_text_that_is_too_short_says_by_how_much(text: str) -> None:
    with pytest.raises(InputError, match=r"calibrate\.text: 101 tokens in 1 file\(s\), wanted at least 102"):
        taken([text], fitted=1, held_out=1, context=51)


def test_no_files_and_no_windows(text: str) -> None:
    with pytest.raises(InputError, match="names no file"):
        taken([], context=5)
    for fitted, context in ((0, 11), (10, 1)):
        with pytest.raises(InputError, match="are no windows"):
            taken([text], fitted=fitted, context=context)


def test_errors_of_reading_name_the_calibration(tmp_path: Path, text: str) -> None:
    (tmp_path / "b.txt").write_text("  ")
    with pytest.raises(InputError, match=r"^calibrate\.text: .*b\.txt is empty"):
        taken([str(tmp_path / "b.txt")], context=5)
    without = CharTokenizer()
    without.eos_token_id = None
    with pytest.raises(InputError, match=r"^calibrate\.text: .*EOS"):
        taken([text], without, context=5)


def test_separator_of_an_encoder_ends_a_document(text: str) -> None:
    encoder: Any = CharTokenizer()
    encoder.eos_token_id, encoder.sep_token_id = None, 7
    assert Encoder(encoder).behind == (7,)


def test_every_window_begins_as_the_tokenizer_begins_a_text(tmp_path: Path) -> None:
    """Four of sixteen where a document does."""
    documents = [f"{chr(300 + i)}{'x' * 30}" for i in range(40)]
    shown, held_out = taken([as_lines(tmp_path / "a.jsonl", documents)], Beginning(), fitted=16, held_out=4, context=20)
    for part in (shown, held_out):
        assert all(window[0] == 1 and window[1] != 1 for window in part)
        opening = [window[1] >= 300 for window in part]
        assert sum(opening[::4]) == len(part) / 4


def test_some_windows_begin_behind_the_end_of_a_document(tmp_path: Path) -> None:
    documents = [f"{chr(300 + i)}{'x' * 30}" for i in range(40)]
    shown, held_out = taken([as_lines(tmp_path / "a.jsonl", documents)], fitted=16, held_out=4, context=20)
    for part in (shown, held_out):
        assert all(window[0] == 0 and window[1] >= 300 for window in part[::4])


def test_windows_of_masked_models_are_texts_of_their_own(text: str) -> None:
    shown, held_out = taken([text], Bert(), fitted=3, held_out=2, context=10, masked=True)
    assert all(window[0] == 1 and window[-1] == 2 for window in shown + held_out)
    assert all(window[1:-1] == [*range(window[1], window[1] + 8)] for window in shown + held_out)


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.integers(1, 60), min_size=1, max_size=30),
    st.integers(1, 6),
    st.integers(1, 4),
    st.sampled_from([CharTokenizer, Beginning]),
)
def test_held_out_windows_are_of_other_documents(
    lengths: list[int], fitted: int, held_out: int, tokenizer: type[CharTokenizer]
) -> None:
    """Where one document alone, or all but one, has enough of them; and no token is in two windows."""
    from bot_dist.storage.files import write_file

    lines = [json.dumps({"text": chr(300 + i) * n}) for i, n in enumerate(lengths)]
    write_file("memory://apart/text.jsonl", "\n".join(lines).encode())
    extra = len(Encoder(tokenizer()).before) + 1
    total = sum(lengths) + extra * len(lengths)
    if total < (fitted + held_out) * 8:
        with pytest.raises(InputError, match=f"{total} tokens in 1 file"):
            taken(["memory://apart/text.jsonl"], tokenizer(), fitted=fitted, held_out=held_out, context=8)
        return
    shown, measured = taken(["memory://apart/text.jsonl"], tokenizer(), fitted=fitted, held_out=held_out, context=8)
    assert (len(shown), len(measured)) == (fitted, held_out)
    counts = Counter(token for window in shown + measured for token in window)
    assert all(counts[300 + i] <= n for i, n in enumerate(lengths))
    sizes = [n + extra for n in lengths]
    if any(size >= held_out * 8 and total - size >= fitted * 8 for size in sizes):
        assert not {t for w in shown for t in w if t >= 300} & {t for w in measured for t in w if t >= 300}


@pytest.mark.parametrize("tokenizer", [CharTokenizer(), Beginning()], ids=["plain", "beginning"])
@pytest.mark.parametrize("much", [False, True])
@pytest.mark.parametrize("kind", ["txt", "jsonl", "jsonl.gz"])
def test_what_training_holds_out_is_in_no_window(
    kind: str, much: bool, tokenizer: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that are places in the text, of which the last 70 are held out, a few of them in a file before."""
    if much:
        monkeypatch.setattr("bot_dist.data.excerpts.LITTLE", 0)
        monkeypatch.setattr("bot_dist.data.excerpts.RANGE", 64)
        for module in ("pieces", "formats.plain"):
            monkeypatch.setattr(f"bot_dist.data.texts.{module}.PIECE", 64)
            monkeypatch.setattr(f"bot_dist.data.texts.{module}.LOOK", 8)
    places = [chr(256 + i) for i in range(1200)]
    files = []
    for name, part in (("a", places[:600]), ("b", places[600:1150]), ("c", places[1150:])):
        path = tmp_path / f"{name}.{kind}"
        if kind == "txt":
            path.write_text("".join(part))
        else:
            lines = [
                json.dumps({"text": "".join(part[i : i + 25])}, ensure_ascii=False) for i in range(0, len(part), 25)
            ]
            data = "\n".join(lines).encode()
            path.write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
        files.append(str(path))
    texts, encoder = open_texts(files), Encoder(tokenizer)
    packed = pack_text(texts, encoder)
    held = {int(token) for token in packed[-70:] if token >= 256}
    withheld = tokens_at_ends(texts, encoder, 70)
    assert sum(withheld.values()) == 70
    assert 0 < withheld[texts[1].url] < 70
    for n in range(1, 9):
        shown, measured = taken(files, tokenizer, fitted=n, held_out=n, context=24, withheld=withheld)
        assert not held & {token for window in shown + measured for token in window}


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


def test_masked_tokens_are_no_special_ones() -> None:
    found = Samples.of_text(torch.arange(6, 36).repeat(40, 1), model("bert"), 5, range(6, 30))
    assert {*found.labels[found.labels != IGNORED].tolist()} == {*range(30, 36)}


@pytest.mark.parametrize("n", [3, 7, 12, 20, 40])
def test_windows_lie_evenly_over_many_files(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """None of them, nor any end of the list, is left out where there are as many windows."""
    monkeypatch.setattr("bot_dist.data.excerpts.LITTLE", 0)
    for i in range(12):
        (tmp_path / f"{i:02}.txt").write_text(chr(300 + i) * 2000)
    shown, held_out = taken([f"{tmp_path}/*.txt"], fitted=n, held_out=n // 3, context=4)
    files = {window[1] - 300 for window in shown + held_out}
    assert len(files) >= min(12, n) - 1
    assert min(files) <= 12 // n + 1
    assert max(files) >= 12 - 12 // n - 2


def test_windows_of_a_long_text_are_had_without_all_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Evenly over both files, none over another."""
    monkeypatch.setattr("bot_dist.data.excerpts.LITTLE", 0)
    files = []
    for i in range(2):
        path = tmp_path / f"{i}.txt"
        path.write_text("".join(chr(1000 * i + 100 + j % 800) for j in range(800)))
        files.append(str(path))
    seen: list[int] = []

    class Counting(CharTokenizer):
        def __call__(self, text: str, **options: Any) -> Any:
            seen.append(len(text))
            return super().__call__(text, **options)

    ((*found,), _) = taken(files, Counting(), fitted=4, context=4)
    assert seen[2:] == [48] * 8
    assert [row[1] // 1000 for row in found] == [0, 0, 1, 1]
    assert all(row[1:] == [*range(row[1], row[1] + 3)] for row in found)
    assert found[1][1] - found[0][1] >= 48


class TestAround:
    """What stands before documents and behind them."""

    @pytest.mark.parametrize(
        ("tokenizer", "keys", "wanted"),
        [
            (CharTokenizer(), {}, ((), (0,))),
            (Beginning(), {}, ((1,), (0,))),
            (Bert(), {}, ((1,), (2,))),
            (Beginning(), {"bos": "none"}, ((), (0,))),
            (CharTokenizer(), {"bos": "<begin>", "eos": "<sep>"}, ((1,), (2,))),
            (Beginning(), {"eos": "none"}, ((1,), ())),
        ],
    )
    def test_is_the_tokenizers_own_or_what_is_named(self, tokenizer: Any, keys: dict[str, str], wanted: Any) -> None:
        encoder = Encoder(tokenizer, **keys)
        assert (encoder.before, encoder.behind) == wanted
        (piece,) = encoder.tokens([Piece("ab", begins=True, ends=True)])
        assert piece.tolist() == [*wanted[0], 97, 98, *wanted[1]]
        (part,) = encoder.tokens([Piece("ab", begins=False, ends=False)])
        assert part.tolist() == [97, 98]

    @pytest.mark.parametrize(("end", "wanted"), [(0, 0), (1, 1), (3, 2), (None, 2)])
    def test_what_ends_a_turn_ends_no_document(self, end: int | None, wanted: int) -> None:
        """Where the token that does comes before EOS; one behind it may be unknown to the model."""

        class Chat(CharTokenizer):
            eos_token_id = 2

            def get_vocab(self) -> dict[str, int]:
                return {"<sep>": 2} if end is None else {"<sep>": 2, "<|endoftext|>": end}

        assert Encoder(Chat()).behind == (wanted,)

    def test_other_tokens_around_are_another_digest(self) -> None:
        made = [
            Encoder(Beginning()),
            Encoder(Beginning(), bos="none"),
            Encoder(Beginning(), eos="none"),
            Encoder(Beginning(), eos="<sep>"),
        ]
        assert len({encoder.digest for encoder in made}) == 4
        assert Encoder(Beginning(), bos="<begin>").digest == made[0].digest

    def test_a_token_that_there_is_none_of(self) -> None:
        with pytest.raises(InputError, match=r"calibrate\.bos: .* has no token '<begn>'; did you mean '<begin>'"):
            Encoder(CharTokenizer(), "calibrate", bos="<begn>")

    def test_a_tokenizer_that_breaks(self) -> None:
        class Broken(CharTokenizer):
            def __call__(self, text: str, **options: Any) -> Any:
                if text != "x":
                    raise RuntimeError("WordLevel error: Missing [UNK] token\nand a trace")
                return super().__call__(text, **options)

        with pytest.raises(
            InputError, match=r"^train\.text: .*can't tokenise it \(WordLevel error: Missing .* token\)$"
        ):
            Encoder(Broken())(["y"])
