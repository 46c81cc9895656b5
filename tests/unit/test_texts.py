"""Texts in every format: how they are cut, what is read of them, and what is said of those that are none."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.data import encoder as as_tokens
from bot_dist.data import excerpts
from bot_dist.data.encoder import Encoder
from bot_dist.data.texts import TextFile, open_texts, pieces
from bot_dist.data.texts.formats.hub import DatasetName
from bot_dist.data.texts.formats.jsonl import JsonLines
from bot_dist.data.texts.formats.plain import PlainText
from bot_dist.errors import InputError
from bot_dist.urls import label
from tests.conftest import examples
from tests.unit.test_calibration_windows import CharTokenizer, taken

DOCUMENTS = ["to be", "or\nnot", "", "  ", "ﬆrange – “words”", "x" * 3000]
KEPT = [document for document in DOCUMENTS if document.strip()]


GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
    r"\s+(?!\S)|\s+"
)
PROSE = "To be, or not to be:\r\n  that is\n\n\u3000界 the “question”!\nDon't\n\t– 12345\nfoo(1, 2)  \nbar. \u3000 x\n"


def fast(made: Any, **special: str) -> Any:
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=made, **special)


def bpe(split: str) -> Any:
    """A byte-level BPE that cuts texts into words by a regular expression, as the model of that name does."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    made = Tokenizer(models.BPE())
    by_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(split), "isolated"), by_bytes])
    made.train_from_iterator([PROSE] * 5, trainers.BpeTrainer(vocab_size=400, special_tokens=["<end>"]))
    return fast(made, eos_token="<end>")


def wordpiece() -> Any:
    """BERT's, and one that cuts texts off unless it is told not to."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

    made = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    made.normalizer, made.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = ["[UNK]", "[SEP]"]
    made.train_from_iterator([PROSE] * 5, trainers.WordPieceTrainer(vocab_size=60, special_tokens=special))
    made.enable_truncation(128)
    return fast(made, sep_token="[SEP]", unk_token="[UNK]")


def read(text: TextFile, nbytes: int = 2**20) -> list[str]:
    """All documents of a text, range by range."""
    found, begun = [], ""
    for start, stop, _ in text.ranges(nbytes):
        for piece in text.pieces(start, stop):
            begun += piece.text
            if piece.ends:
                found, begun = [*found, begun], ""
    assert not begun
    return found


def as_lines(documents: list[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": i, field: d}).encode() + b"\n" for i, d in enumerate(documents))


def write(folder: Path, kind: str, documents: list[str] | list[str | None] = DOCUMENTS, column: str = "text") -> str:
    """A file of that kind with the documents; its path."""
    path = folder / f"documents.{kind}"
    if kind == "parquet":
        table = pa.table({"id": range(len(documents)), column: pa.array(documents, pa.string())})
        pq.write_table(table, path, row_group_size=2)
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            rows = csv.writer(file, delimiter="," if kind == "csv" else "\t")
            rows.writerows([["id", column], *([i, document or ""] for i, document in enumerate(documents))])
    else:
        data = as_lines([d or "" for d in documents], column)
        path.write_bytes(gzip.compress(data) if kind.endswith(".gz") else data)
    return str(path)


def pieces_of_size(patch: pytest.MonkeyPatch, piece: int, look: int) -> None:
    for module in ("pieces", "formats.plain"):
        patch.setattr(f"bot_dist.data.texts.{module}.PIECE", piece)
        patch.setattr(f"bot_dist.data.texts.{module}.LOOK", look)


class TestFormats:
    @pytest.mark.parametrize("kind", ["jsonl", "json", "ndjson", "jsonl.gz", "parquet", "csv", "tsv"])
    def test_documents_are_the_same_in_every_format_and_however_cut(self, kind: str, tmp_path: Path) -> None:
        (text,) = open_texts([write(tmp_path, kind)])
        for nbytes in (1, 7, 100, 2**20):
            assert read(text, nbytes) == KEPT
        if kind == "parquet":
            assert len(text.ranges(1)) == 3

    @pytest.mark.parametrize("url", ["memory://texts/documents.jsonl", "memory://texts/documents.parquet"])
    def test_of_any_storage(self, url: str, tmp_path: Path) -> None:
        from bot_dist.storage.files import write_file

        write_file(url, Path(write(tmp_path, url.rpartition(".")[2])).read_bytes())
        (text,) = open_texts(["memory://texts/*" + url[-6:]])
        assert read(text) == KEPT

    def test_column(self, tmp_path: Path) -> None:
        for kind in ("jsonl", "parquet", "csv", "tsv"):
            (text,) = open_texts([write(tmp_path, kind, column="content")], column="content")
            assert read(text) == KEPT

    def test_rows_without_a_document_are_left_out(self, tmp_path: Path) -> None:
        (parquet,) = open_texts([write(tmp_path, "parquet", ["a", None, "b"])])
        assert read(parquet) == ["a", "b"]
        (tmp_path / "null.jsonl").write_text('{"text": "a"}\n\n{"text": null}\n{"text": "b"}')
        (lines,) = open_texts([str(tmp_path / "null.jsonl")])
        assert read(lines) == ["a", "b"]


class TestCutting:
    @examples(200)
    @given(st.text(st.sampled_from("ab \n\u3000\xa0é界"), max_size=400), st.integers(1, 200))
    def test_a_text_is_the_same_however_it_is_cut(self, document: str, nbytes: int) -> None:
        from bot_dist.storage.files import write_file

        write_file("memory://cut/text", (document + "x").encode())
        with pytest.MonkeyPatch.context() as patch:
            pieces_of_size(patch, 64, 16)
            text = PlainText.open("memory://cut/text", "train")
            assert read(text, nbytes) == [document + "x"]
            found = [p for start, stop, _ in text.ranges(nbytes) for p in text.pieces(start, stop)]
            assert found == [*text.pieces(0, text.nbytes)]
            assert "".join(p.text for p in pieces.pieces_of(document + "x")) == document + "x"
        assert all(len(p.text.encode()) <= 64 + 16 for p in found)

    def test_words_stay_whole_where_there_are_some(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        pieces_of_size(monkeypatch, 64, 16)
        (tmp_path / "text").write_text("012345678\n" * 40 + "y" * 300)
        found = [p.text for p in PlainText.open(str(tmp_path / "text"), "train").pieces(0, 700)]
        assert [len(p) for p in found] == [69, 60, 70, 60, 70, 60, 59, 64, 64, 64, 60]
        assert all(p.startswith("\n0") for p in found[1:6])

    @examples(100)
    @given(st.lists(st.text(st.sampled_from('ab"\n\\é'), max_size=30), min_size=1, max_size=20), st.integers(1, 300))
    def test_every_line_is_read_once(self, documents: list[str], nbytes: int) -> None:
        from bot_dist.storage.files import write_file

        write_file("memory://lines/text.jsonl", as_lines(documents))
        text = JsonLines.open("memory://lines/text.jsonl", "train", "text", 2**20)
        assert read(text, nbytes) == [d for d in documents if d.strip()]


class TestTokens:
    @pytest.mark.parametrize("split", [GPT2, LLAMA3, None], ids=["gpt2", "llama3", "bert"])
    def test_are_those_that_transformers_gives_in_pieces_too(
        self, split: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        pieces_of_size(monkeypatch, 100, 50)
        (tmp_path / "text").write_text(PROSE * 9, newline="")
        (text,) = open_texts([str(tmp_path / "text")])
        assert len([*text.pieces(0, len((PROSE * 9).encode()))]) > 8
        tokenizer = bpe(split) if split else wordpiece()
        encoder = Encoder(tokenizer)
        packed = as_tokens.pack_text([text], encoder)
        wanted = tokenizer(PROSE * 9, add_special_tokens=False, verbose=False, truncation=False)["input_ids"]
        assert packed.tolist() == [*wanted, *encoder.behind]
        assert encoder.size == len(tokenizer) > packed.max()

    def test_calibration_takes_every_format(self, tmp_path: Path) -> None:
        documents = [chr(97 + i) * 40 for i in range(20)]
        wanted, _ = taken([write(tmp_path, "jsonl", documents)], fitted=10, context=4)
        assert len({row[1] for row in wanted}) == 10
        for kind in ("csv", "parquet"):
            assert taken([write(tmp_path, kind, documents)], fitted=10, context=4)[0] == wanted

    def test_of_much_text_only_a_little_is_read(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(excerpts, "LITTLE", 0)
        monkeypatch.setattr(excerpts, "RANGE", 100)
        seen: list[str] = []

        class Counting(CharTokenizer):
            def __call__(self, text: str, **options: Any) -> Any:
                seen.append(text)
                return super().__call__(text, **options)

        path = write(tmp_path, "jsonl", [f"{i:02}" * 40 for i in range(50)])
        (found, held_out) = taken([path], Counting(), fitted=4, held_out=1, context=8)
        first = [int("".join(map(chr, row[2:4]))) for row in found + held_out]
        assert len({*first}) == 5
        assert max(first) > 35
        assert len(seen) - 2 == 10


class TestBadInput:
    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ('{"text": "to', r"line 3, is no JSON \(.*: line 1 column 13"),
            ('["to be"]', r"line 3, is no JSON object but a list; wanted an object per line"),
            (
                '{"content": "a", "id": 3}',
                r"line 3, has no field 'text'; fields: 'content', 'id'; set calibrate\.column",
            ),
            ('{"text": 3}', r"line 3, 'text' is of type int, wanted a string"),
            ("[" * 100_000, r"line 3, is no JSON \(maximum recursion depth exceeded .*\); wanted an object per line$"),
            (
                json.dumps({f"k{i}": i for i in range(3000)}),
                r"line 3, has no field 'text'; fields: 'k0', .*, … \(3,000 in all\); set calibrate\.column",
            ),
            ('{"text": "\\ud83d"}', r"line 3, has a 'text' that is no Unicode text \(surrogates not allowed\)"),
        ],
    )
    @pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz"])
    def test_lines_are_named(self, line: str, message: str, kind: str, tmp_path: Path) -> None:
        data = ('{"text": "a"}\n' * 2 + line + "\n").encode()
        (tmp_path / f"bad.{kind}").write_bytes(gzip.compress(data) if kind.endswith("gz") else data)
        (text,) = open_texts([str(tmp_path / f"bad.{kind}")], section="calibrate")
        with pytest.raises(InputError, match=rf"^calibrate\.text: .*bad\.{kind}, {message}"):
            read(text, 20)

    def test_a_parquet_without_the_column_lists_what_it_has(self, tmp_path: Path) -> None:
        path = write(tmp_path, "parquet")
        with pytest.raises(InputError, match=r"no column 'content'; columns: 'id', 'text'; set train\.column"):
            open_texts([path], column="content")
        with pytest.raises(InputError, match=r"column 'id' holds int64, wanted strings"):
            open_texts([path], column="id")

    def test_damaged_parquet(self, tmp_path: Path) -> None:
        path = Path(write(tmp_path, "parquet", [f"{i}" * 1000 for i in range(9)]))
        whole = path.read_bytes()
        path.write_bytes(whole[:-100])
        with pytest.raises(InputError, match=r"documents\.parquet can't be read as Parquet"):
            open_texts([str(path)])

    @pytest.mark.parametrize(
        ("content", "message"),
        [
            (b"id,url\n1,http://a\n", r"has no column 'text'; columns: 'id', 'url'; set train\.column"),
            (b"text,text\n1,2\n", r"has 2 columns 'text'; columns: 'text', 'text'; set train\.column"),
            (b"text,id\na,1\n\n\nb,2,3\n", r"line 5, has 3 fields, and the first line 2"),
            (b'text,id\n"a\nb",1\n"c"d,2\n', r"line 4, can't be read as CSV \(',' expected after '\"'\); mend it"),
            (b'text,id\na,1\n"b,2\n', r"line 3, can't be read as CSV \(unexpected end of data\); mend it"),
            (b"text\na\n\xff\n", r"line 3, can't be read as CSV \('utf-8' codec can't decode byte 0xff"),
            (b"\n\n", "is empty; leave it out"),
            (
                b",".join(b"k%d" % i for i in range(3000)),
                r"has no column 'text'; columns: 'k0', .*, … \(3,000 in all\); set",
            ),
        ],
    )
    def test_tables_are_named(self, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / "table.csv").write_bytes(content)
        with pytest.raises(InputError, match=rf"^train\.text: .*table\.csv,? {message}"):
            read(open_texts([str(tmp_path / "table.csv")])[0])

    def test_of_a_table_only_a_column_is_read(self, tmp_path: Path) -> None:
        (tmp_path / "t.csv").write_bytes(
            '\ufeffid,text,url\r\n1,"to ""be"",\nor not",a\r\n2,,b\r\n3,é\r\n'.encode()[:-6] + b'3,"x",c'
        )
        assert read(open_texts([str(tmp_path / "t.csv")])[0]) == ['to "be",\nor not', "x"]
        (tmp_path / "T.TSV").write_text("text\tid\na, b\t1\n")
        assert read(open_texts([str(tmp_path / "T.TSV")])[0]) == ["a, b"]

    @pytest.mark.parametrize("kind", ["jsonl", "jsonl.gz", "csv", "tsv", "parquet"])
    def test_a_document_has_a_limit(self, kind: str, tmp_path: Path) -> None:
        """However small the file is."""
        path = write(tmp_path, kind, ["a", "x" * 2**20, "b"])
        with pytest.raises(
            InputError, match=r"is larger than calibrate\.document_limit \(4,096 bytes\).*raise the limit"
        ):
            read(open_texts([path], section="calibrate", limit=4096)[0])
        assert len(read(open_texts([path], limit=2**21)[0])) == 3

    def test_rows_that_repeat_a_document_hold_it_once(self, tmp_path: Path) -> None:
        path = tmp_path / "repeated.parquet"
        documents = pa.DictionaryArray.from_arrays([0] * 300, ["x" * 2**20])
        pq.write_table(pa.table({"text": documents}), path, store_schema=False)
        assert path.stat().st_size < 2**18
        (text,) = open_texts([str(path)])
        pieces, before = text.pieces(0, 1), pa.total_allocated_bytes()
        next(pieces)
        assert pa.total_allocated_bytes() - before < 2**24

    def test_a_few_bytes_that_are_a_gigabyte_are_not_unpacked(self, tmp_path: Path) -> None:
        path = tmp_path / "small.parquet"
        table = pa.table({"text": ["x" * 2**24]})
        pq.write_table(table, path, compression="brotli", use_dictionary=False, write_statistics=False)
        assert path.stat().st_size < 1000
        message = r"row group 0 of .* has 16,777,2.. bytes in \d+, and is larger than train\.document_limit \(1,048,576"
        with pytest.raises(InputError, match=message):
            open_texts([str(path)], limit=2**20)
        assert len(read(open_texts([str(path)])[0])) == 1

    def test_lines_that_are_longer_than_a_range(self, tmp_path: Path) -> None:
        path = write(tmp_path, "jsonl", ["y" * 1000, "z", "y" * 3000, "z"])
        for limit in (3100, 2**20):
            (text,) = open_texts([path], limit=limit)
            assert [len(document) for document in read(text, 10)] == [1000, 1, 3000, 1]

    @pytest.mark.parametrize("name", ["texts", "texts/"])
    def test_a_folder_says_how_to_name_what_is_in_it(self, name: str, tmp_path: Path) -> None:
        (tmp_path / "texts").mkdir()
        (tmp_path / "texts" / "a.md").write_text("to be")
        with pytest.raises(InputError, match=r"texts/? is a folder, wanted a file; .* for example .*/texts/\*\.md$"):
            open_texts([f"{tmp_path}/{name}"])

    @pytest.mark.parametrize(
        ("name", "content", "message"),
        [
            ("empty.jsonl", b"", "is empty; leave it out"),
            ("text.txt.gz", b"\x1f\x8b", r"is compressed, and of such files only \.jsonl\.gz are read"),
            ("lines.jsonl.zst", b"(", "is compressed"),
            (
                "cut.jsonl.gz",
                gzip.compress(b'{"text": "a"}\n' * 99, mtime=0)[:-9],
                r"is not whole, or no gzip \(Compressed file ended",
            ),
        ],
    )
    def test_files_are_named(self, name: str, content: bytes, message: str, tmp_path: Path) -> None:
        (tmp_path / name).write_bytes(content)
        with pytest.raises(InputError, match=rf"{name} {message}"):
            read(open_texts([str(tmp_path / name)])[0])


class TestDatasets:
    @pytest.fixture
    def folder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A data set of two files for training and one for testing."""
        pytest.importorskip("datasets")
        monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
        data = tmp_path / "set" / "data"
        data.mkdir(parents=True)
        (data / "train-0.jsonl").write_bytes(as_lines(DOCUMENTS[:3]))
        (data / "train-1.jsonl").write_bytes(as_lines(DOCUMENTS[3:]))
        (data / "test-0.jsonl").write_bytes(as_lines(["unseen"]))
        return tmp_path / "set"

    def test_a_split_is_read_in_order(self, folder: Path) -> None:
        (text,) = open_texts([f"hf-datasets://{folder}?split=train"])
        assert len(text.ranges(1)) == 2
        assert read(text) == KEPT
        assert read(open_texts([f"hf-datasets://{folder}?split=test"])[0]) == ["unseen"]
        assert [Path(url).name for url in text.sources] == ["train-0.jsonl", "train-1.jsonl"]

    @pytest.mark.parametrize(
        ("query", "column", "message"),
        [
            ("?split=dev", "text", r"datasets can't load it: Bad split: dev\. Available splits: \['train', 'test'\]"),
            ("?splitt=train", "text", r"unknown option 'splitt'; did you mean 'split'\?"),
            ("?split=train", "content", r"no column 'content'; columns: 'id', 'text'; set train\.column"),
            ("-none?split=train", "text", r"datasets can't load it: Couldn't find any data file"),
        ],
    )
    def test_errors(self, folder: Path, query: str, column: str, message: str) -> None:
        with pytest.raises(InputError, match=message):
            open_texts([f"hf-datasets://{folder}{query}"], column=column)

    def test_a_document_has_a_limit(self, folder: Path) -> None:
        (text,) = open_texts([f"hf-datasets://{folder}?split=train"], limit=1000)
        with pytest.raises(InputError, match=r"shard 1, row 2, is larger than train\.document_limit \(1,000 bytes\)"):
            read(text)

    @pytest.mark.parametrize("broken", ['{"text": "a"}\n{"text": 3', '{"text": ["a"]}\n', "[" * 9000])
    def test_what_is_broken_is_one_error(self, folder: Path, broken: str) -> None:
        (folder / "data" / "train-1.jsonl").write_text(broken)
        with pytest.raises(InputError, match=r"datasets can't load it|shard 1 can't be read after \d rows: "):
            read(open_texts([f"hf-datasets://{folder}?split=train"])[0])

    def test_without_the_package(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(__import__("sys").modules, "datasets", None)
        with pytest.raises(InputError, match=r"needs the package 'datasets'; pip install datasets"):
            open_texts([f"hf-datasets://{folder}"])

    def test_a_data_set_on_the_hub_stays_at_its_commit(self) -> None:
        name = DatasetName.parse("hf-datasets://a/b?split=test&config=en")
        pinned = name.pinned([f"hf://datasets/a/b@{'0a' * 20}/en/{i}.parquet" for i in range(2)])
        assert (pinned.revision, pinned.config, pinned.split) == ("0a" * 20, "en", "test")
        assert name.pinned(["/local/0.parquet"]) == name

    def test_records_keep_which_part_it_was(self) -> None:
        assert label("hf-datasets://a/b?split=train") == "hf-datasets://a/b?split=train"
        assert label("https://a/b?key=secret") == "https://a/b"
