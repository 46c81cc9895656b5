"""Packing of text, the token file of a run, and the order of batches."""

import json

import numpy as np
import pytest
import torch

from bot_dist.convert.text import pack_text
from bot_dist.errors import InputError
from bot_dist.recipe import TrainConfig
from bot_dist.train import data
from bot_dist.train.data import Batches, prepare_tokens


class CharTokenizer:
    """One token per character; 0 ends a document."""

    eos_token_id = 0

    def __call__(self, text, add_special_tokens, verbose):
        return {"input_ids": [ord(c) for c in text]}

    def get_vocab(self):
        return {chr(i): i for i in range(128)}


@pytest.fixture
def tokenizer(monkeypatch):
    """Stands for the model's own tokenizer, whichever URL is asked for."""
    import bot_dist.convert.tokenizer

    one = CharTokenizer()
    monkeypatch.setattr(bot_dist.convert.tokenizer, "load_tokenizer", lambda url: one)
    return one


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be " * 40)
    return path


def config(*files, **fields):
    return TrainConfig(text=tuple(map(str, files)), **{"context": 8, "batch": 4, "held_out": 2, **fields})


class TestBatches:
    tokens = np.arange(10 * 4 + 3, dtype=np.int32)  # ten windows of four, three tokens left over

    def batches(self, seed=0):
        return Batches(self.tokens, context=4, batch=6, seed=seed)

    def test_union_over_ranks_does_not_depend_on_their_number(self):
        for step in range(5):
            one = self.batches().batch(step, 0, 1)
            for world in (2, 3, 6):
                shares = [self.batches().batch(step, rank, world) for rank in range(world)]
                assert all(share.shape == (6 // world, 4) for share in shares)
                assert torch.equal(torch.cat(shares), one)

    def test_every_epoch_has_every_window_once_in_another_order(self):
        seen = torch.cat([self.batches().batch(step, 0, 1) for step in range(5)])  # 30 windows: three epochs
        assert seen.dtype == torch.long
        epochs = [seen[i : i + 10, 0].tolist() for i in (0, 10, 20)]
        assert all(sorted(epoch) == list(range(0, 40, 4)) for epoch in epochs)
        assert epochs[0] != epochs[1] != epochs[2]
        assert torch.equal(seen - seen[:, :1], torch.arange(4).expand(30, 4))  # windows are consecutive tokens

    def test_seed_decides_the_order_and_steps_can_be_read_in_any_order(self):
        later = self.batches()
        later.batch(4, 0, 1)
        assert torch.equal(later.batch(0, 0, 1), self.batches().batch(0, 0, 1))
        assert not torch.equal(self.batches(seed=1).batch(0, 0, 1), self.batches().batch(0, 0, 1))


class TestPacking:
    def test_files_are_sorted_and_end_in_eos(self, tmp_path):
        (tmp_path / "b").write_text("yz")
        (tmp_path / "a").write_text("x")
        packed = pack_text([str(tmp_path / "b"), str(tmp_path / "a")], CharTokenizer())
        assert packed.dtype == np.int32
        assert packed.tolist() == [ord("x"), 0, ord("y"), ord("z"), 0]

    @pytest.mark.parametrize(
        ("content", "message"),
        [(None, "book: no such file"), (b"", "book is empty"), (b"\n \n", "book is empty"), (b"\xff\xfe", "no UTF-8")],
    )
    def test_unusable_files_are_named(self, tmp_path, content, message):
        if content is not None:
            (tmp_path / "book").write_bytes(content)
        with pytest.raises(InputError, match=message):
            pack_text([str(tmp_path / "book")], CharTokenizer())

    def test_a_tokenizer_without_eos_is_refused(self, text):
        tokenizer = CharTokenizer()
        tokenizer.eos_token_id = None
        with pytest.raises(InputError, match="no EOS token"):
            pack_text([str(text)], tokenizer)


class TestPrepareTokens:
    def test_held_out_windows_are_the_end_and_never_trained_on(self, tokenizer, text, tmp_path):
        file = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        everything = np.load(file.path)
        assert len(everything) == file.tokens == len(text.read_text()) + 1
        assert file.held_out_windows().shape == (2, 8)
        assert np.array_equal(np.concatenate([file.train(), file.held_out_windows().flatten()]), everything)

    def test_reuses_tokens_of_the_same_text(self, tokenizer, text, tmp_path, monkeypatch):
        first = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        monkeypatch.setattr(data, "pack_text", lambda *_: pytest.fail("tokenised again"))
        assert prepare_tokens(config(text, context=16), "model", 128, tmp_path / "run").tokens == first.tokens
        assert json.loads((tmp_path / "run" / "tokens.json").read_text())["files"][0][0] == str(text)

    def test_tokenises_again_when_the_text_or_the_tokenizer_changed(self, tokenizer, text, tmp_path):
        first = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        text.write_text(text.read_text() + "more")
        assert prepare_tokens(config(text), "model", 128, tmp_path / "run").tokens == first.tokens + 4
        tokenizer.eos_token_id = 1
        prepare_tokens(config(text), "model", 128, tmp_path / "run")
        assert np.load(first.path)[-1] == 1

    def test_no_text(self, tokenizer, tmp_path):
        with pytest.raises(InputError, match=r"train\.text names no file"):
            prepare_tokens(config(), "model", 128, tmp_path)

    def test_too_short_a_text_says_found_and_wanted(self, tokenizer, tmp_path):
        short = tmp_path / "short"
        short.write_text("to be")
        with pytest.raises(InputError, match=r"6 tokens in 1 file\(s\), wanted at least 48"):
            prepare_tokens(config(short), "model", 128, tmp_path)

    def test_batch_must_divide_over_workers(self, tokenizer, text, tmp_path):
        with pytest.raises(InputError, match=r"train\.batch is 4 .* train\.workers=3; use train\.batch=6"):
            prepare_tokens(config(text, workers=3), "model", 128, tmp_path)

    def test_a_tokenizer_of_another_model_is_found_out(self, tokenizer, text, tmp_path):
        with pytest.raises(InputError, match=r"gives token 116, but the model's vocabulary has 100"):
            prepare_tokens(config(text), "model", 100, tmp_path)
