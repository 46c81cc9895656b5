"""Packing of text, the token store of a run, and the order of batches."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.data import tokenise
from bot_dist.data.batches import Batches, prepare_tokens
from bot_dist.data.encoder import Encoder, pack_text
from bot_dist.data.shuffle import shuffled
from bot_dist.data.texts import open_texts
from bot_dist.data.token_store import TokenStore
from bot_dist.errors import CheckpointError, InputError
from bot_dist.events.training import Tokenised
from bot_dist.recipe import TrainConfig


class CharTokenizer:
    """One token per character; 0 ends a document. One that begins texts puts 1 before them, one that ends them 2
    behind."""

    eos_token_id = 0
    begins = ends = False

    def __call__(self, text, add_special_tokens, verbose):
        before, behind = [1] * self.begins, [2] * self.ends
        ids = [ord(c) for c in text]
        return {"input_ids": [*before, *ids, *behind] if add_special_tokens else ids}

    def get_vocab(self):
        return {chr(i): i for i in range(128)}


@pytest.fixture
def tokenizer(monkeypatch):
    """Stands for the model's own tokenizer, whichever URL is asked for."""
    import bot_dist.formats.tokenizer

    one = CharTokenizer()
    monkeypatch.setattr(bot_dist.formats.tokenizer, "load_tokenizer", lambda url: one)
    return one


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("to be or not to be " * 40)
    return path


def config(*files, **fields):
    return TrainConfig(text=tuple(map(str, files)), **{"context": 8, "batch": 4, "held_out": 2, **fields})


def all_tokens(file):
    return TokenStore(file.url).read([0], file.tokens)[0]


class Numbers:
    """Samples that are their numbers."""

    def __init__(self, n):
        self.n = n

    def __len__(self):
        return self.n

    def read(self, numbers):
        return torch.tensor(numbers)


class TestOrder:
    @given(st.integers(1, 3000), st.integers(0, 2**32))
    def test_is_a_permutation_of_any_size(self, n, seed):
        assert sorted(shuffled(np.arange(n), n, [seed])) == list(range(n))

    def test_any_place_of_any_size_is_had_alone(self):
        n = 10**15 + 7
        places = np.array([0, 1, n // 3, n - 1])
        found = shuffled(places, n, [1, 2])
        assert ((found >= 0) & (found < n)).all()
        assert [int(shuffled(places[i : i + 1], n, [1, 2])[0]) for i in range(4)] == found.tolist()

    def test_every_sample_is_anywhere_equally_often(self):
        """Chi-square of where each of 12 samples stands over 3,000 seeds: 121 degrees of freedom, 99.9 % below 174."""
        seen = np.zeros((12, 12))
        for seed in range(3000):
            seen[np.arange(12), shuffled(np.arange(12), 12, [seed])] += 1
        assert ((seen - 250) ** 2 / 250).sum() < 174


class TestBatches:
    @given(st.integers(1, 50), st.lists(st.sampled_from([1, 2, 3, 4, 6, 12]), min_size=1, max_size=6))
    def test_each_sample_once_an_epoch_whatever_the_workers(self, n, worlds):
        """A run that goes on with another number of workers at every step."""
        batches = Batches(Numbers(n), 12, seed=3)
        steps = [[batches.batch(i, rank, w) for rank in range(w)] for i, w in enumerate(worlds)]
        assert all(len({len(share) for share in shares}) == 1 for shares in steps)
        seen = torch.cat([share for shares in steps for share in shares])
        assert torch.equal(seen, Batches(Numbers(n), 12, seed=3).read(0, 12 * len(worlds)))
        for first in range(0, len(seen) - n + 1, n):
            assert sorted(seen[first : first + n].tolist()) == list(range(n))

    @given(st.integers(1, 40), st.lists(st.integers(1, 9), min_size=1, max_size=8))
    def test_a_position_is_all_that_is_needed_to_go_on(self, n, batch_sizes):
        """Even with another batch."""
        position, seen = 0, []
        for size in batch_sizes:
            seen += Batches(Numbers(n), size, seed=1).read(position, size).tolist()
            position += size
        assert seen == Batches(Numbers(n), 1, seed=1).read(0, position).tolist()

    def test_epochs_and_seeds_have_orders_of_their_own(self):
        epochs = Batches(Numbers(30), 30, seed=0).read(0, 90).reshape(3, 30)
        assert not torch.equal(epochs[0], epochs[1])
        assert not torch.equal(epochs[1], epochs[2])
        assert not torch.equal(epochs[0], Batches(Numbers(30), 30, seed=1).read(0, 30))


class TestPacking:
    def packed(self, *files, tokenizer=None):
        return pack_text(open_texts(map(str, files)), Encoder(tokenizer or CharTokenizer()))

    def test_files_are_sorted_and_end_in_eos(self, tmp_path):
        (tmp_path / "b").write_text("yz")
        (tmp_path / "a").write_text("x")
        packed = self.packed(tmp_path / "b", tmp_path / "a")
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
            self.packed(tmp_path / "book")

    def test_a_tokenizer_without_eos_is_refused(self, text):
        tokenizer = CharTokenizer()
        tokenizer.eos_token_id = None
        with pytest.raises(InputError, match="no EOS token"):
            self.packed(text, tokenizer=tokenizer)


class TestPrepareTokens:
    def test_held_out_windows_are_the_end_and_never_trained_on(self, tokenizer, text, tmp_path):
        file = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        everything = all_tokens(file)
        assert everything.tolist() == [*map(ord, text.read_text()), 0]
        assert file.held_out_samples().flatten().tolist() == everything[-16:].tolist()
        train = file.train().read(range(len(file.train())))
        assert train.dtype == torch.long
        assert train.flatten().tolist() == everything[: (len(everything) - 16) // 8 * 8].tolist()

    @pytest.mark.parametrize("masked", [False, True])
    def test_windows_begin_and_end_as_the_tokenizer_begins_and_ends_a_text(self, masked, tokenizer, text, tmp_path):
        tokenizer.begins, tokenizer.ends = True, masked
        (tmp_path / "b.jsonl").write_text('{"text": "what is"}\n{"text": "that"}\n')
        file = prepare_tokens(config(text, tmp_path / "b.jsonl"), "model", 128, tmp_path / "run", masked=masked)
        everything = all_tokens(file)
        behind = 2 if masked else 0
        assert everything.tolist() == [
            *(1, *map(ord, "what is"), behind, 1, *map(ord, "that"), behind),
            *(1, *map(ord, text.read_text()), behind),
        ]
        train = file.train().read(range(len(file.train())))
        for part, start in ((train, 0), (file.held_out_samples(), len(everything) - 16)):
            assert (part[:, 0] == 1).all()
            last = -1 if masked else None
            assert masked == bool((part[:, -1] == 2).all())
            wanted = everything[start : start + part.numel()].reshape(part.shape)
            assert np.array_equal(part[:, 1:last], wanted[:, 1:last])

    def test_a_table_gives_what_lines_give(self, tokenizer, tmp_path):
        (tmp_path / "a.jsonl").write_text("".join(json.dumps({"text": f'to "be", {i}'}) + "\n" for i in range(20)))
        (tmp_path / "a.csv").write_text("id,text\n" + "".join(f'{i},"to ""be"", {i}"\n' for i in range(20)))
        lines, table = (
            prepare_tokens(config(tmp_path / f"a.{kind}"), "model", 128, tmp_path / "run") for kind in ("jsonl", "csv")
        )
        assert np.array_equal(all_tokens(lines), all_tokens(table))
        assert TokenStore(table.url).documents == 20

    def test_tokens_with_others_around_them_are_others(self, tokenizer, text, tmp_path):
        first = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        tokenizer.begins = True
        second = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        third = prepare_tokens(config(text, eos="a"), "model", 128, tmp_path / "run")
        assert len({first.url, second.url, third.url}) == 3
        assert prepare_tokens(config(text, bos="none"), "model", 128, tmp_path / "run") == first

    def test_documents_may_follow_one_another_bare(self, tokenizer, text, tmp_path):
        (tmp_path / "b.jsonl").write_text('{"text": "what is"}\n{"text": "that"}\n')
        file = prepare_tokens(config(tmp_path / "b.jsonl", text, eos="none"), "model", 128, tmp_path / "run")
        assert bytes(all_tokens(file).tolist()).decode() == "what isthat" + text.read_text()

    def test_reuses_tokens_of_the_same_content(self, tokenizer, text, tmp_path, monkeypatch):
        cache = str(tmp_path / "cache")
        first = prepare_tokens(config(text, token_cache=cache), "model", 128, tmp_path / "run")
        monkeypatch.setattr(tokenise, "tokenise", lambda *_: pytest.fail("tokenised again"))
        moved = text.rename(tmp_path / "moved")
        again = prepare_tokens(config(moved, token_cache=cache, context=16), "model", 128, tmp_path / "another")
        assert (again.url, again.tokens) == (first.url, first.tokens)

    def test_an_unchanged_file_is_not_even_read(self, tokenizer, text, tmp_path, monkeypatch):
        first = prepare_tokens(config(text), "model", 128, tmp_path)
        from bot_dist.data.texts import identity

        monkeypatch.setattr(identity, "open_file", lambda url: pytest.fail("read"))
        assert prepare_tokens(config(text), "model", 128, tmp_path) == first

    def test_tokenises_again_when_the_text_or_the_tokenizer_changed(self, tokenizer, text, tmp_path):
        first = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        text.write_text(text.read_text().upper())
        second = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        assert second.url != first.url
        assert all_tokens(second)[0] == ord("T")
        tokenizer.eos_token_id = 1
        assert all_tokens(prepare_tokens(config(text), "model", 128, tmp_path / "run"))[-1] == 1

    def test_a_text_that_changes_meanwhile_is_refused(self, tokenizer, text, tmp_path):
        def change(event):
            text.write_text("something else " * 50)

        with pytest.raises(InputError, match=r"text\.txt was changed while it was tokenised"):
            prepare_tokens(config(text), "model", 128, tmp_path / "run", change)
        assert not list(tmp_path.glob("run/tokens/*/*"))

    def test_no_text(self, tokenizer, tmp_path):
        with pytest.raises(InputError, match=r"train\.text names no file"):
            prepare_tokens(config(), "model", 128, tmp_path)

    def test_too_short_a_text_says_found_and_wanted(self, tokenizer, tmp_path):
        short = tmp_path / "short"
        short.write_text("to be")
        with pytest.raises(InputError, match=r"6 tokens in 1 file\(s\), wanted at least 48"):
            prepare_tokens(config(short), "model", 128, tmp_path)

    def test_a_tokenizer_of_another_model_is_found_out(self, tokenizer, text, tmp_path):
        with pytest.raises(InputError, match=r"gives token 116, but the model's vocabulary has 100"):
            prepare_tokens(config(text), "model", 100, tmp_path)


class TestStore:
    @pytest.fixture
    def large(self, tokenizer, tmp_path, monkeypatch):
        """A text of many shards, made small."""
        monkeypatch.setattr(tokenise, "SMALLEST", 100)
        for i in range(40):
            (tmp_path / f"{i:02}.jsonl").write_text(json.dumps({"text": f"document {i} " * 10}) + "\n")
        return config(tmp_path / "*.jsonl")

    def test_a_store_without_its_commit_is_none_and_is_finished(self, large, tmp_path, monkeypatch):
        whole = prepare_tokens(large, "model", 128, tmp_path / "whole")
        wanted = all_tokens(whole)
        n = len(list(tmp_path.glob("whole/tokens/*/*.bin")))
        assert n >= 40

        def interrupt(event):
            if isinstance(event, Tokenised) and event.bytes > event.of_bytes / 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            prepare_tokens(large, "model", 128, tmp_path / "run", interrupt)
        (folder,) = tmp_path.glob("run/tokens/*/")
        with pytest.raises(CheckpointError, match="no tokens were committed"):
            TokenStore(str(folder))
        shards = sorted(folder.glob("*.bin"))
        assert n // 2 <= len(shards)
        for late in shards[n - 1 :]:  # all were begun by then, and threads end what they have begun
            for path in folder.glob(f"{late.stem}.*"):
                path.unlink()
        shards = shards[: n - 1]
        shards[0].write_bytes(bytes(len(shards[0].read_bytes())))  # as a crash of the machine leaves what is not synced
        made = []
        run = tokenise.Tokenising.run
        monkeypatch.setattr(tokenise.Tokenising, "run", lambda self, number: made.append(number) or run(self, number))
        again = prepare_tokens(large, "model", 128, tmp_path / "run")
        assert np.array_equal(all_tokens(again), wanted)
        assert len(made) == n - len(shards) + 1

    def test_windows_go_over_shards(self, large, tmp_path):
        file = prepare_tokens(large.model_copy(update={"context": 250}), "model", 128, tmp_path / "run")
        assert file.train().read([1, 0]).flatten().tolist() == [
            *all_tokens(file)[250:500].tolist(),
            *all_tokens(file)[:250].tolist(),
        ]

    @pytest.mark.parametrize("damaged", ["bin", "json", "manifest"])
    def test_what_is_damaged_is_named_and_never_read(self, damaged, text, tokenizer, tmp_path):
        file = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        path = next(tmp_path.glob("run/tokens/*/" + {"manifest": "manifest.json"}.get(damaged, f"0.{damaged}")))
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
        with pytest.raises(CheckpointError, match=rf"{path.name}.*: damaged, .*; remove .* and run the same again"):
            file.train().read([len(file.train()) // 2])

    def test_a_store_that_lacks_a_shard_is_made_again_and_that_is_said(self, text, tokenizer, tmp_path):
        file = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        next(tmp_path.glob("run/tokens/*/0.bin")).unlink()
        events = []
        assert prepare_tokens(config(text), "model", 128, tmp_path / "run", events.append) == file
        assert [event.kind for event in events] == ["tokens_damaged", "tokenised"]
        assert len(all_tokens(file)) == file.tokens

    def test_other_tools_read_the_tokens(self, text, tokenizer, tmp_path):
        file = prepare_tokens(config(text), "model", 128, tmp_path / "run")
        found = np.fromfile(f"{file.url}/0.bin", dtype="<u2")
        assert np.array_equal(found, all_tokens(file))
