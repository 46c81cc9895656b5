"""What a GGUF file says of its model goes through stores and exports, and what others say of theirs goes into it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from bot_dist.formats.companions import read_companions
from bot_dist.formats.exports.gguf import export_gguf
from bot_dist.formats.gguf.tokenizer import PRE
from bot_dist.formats.open import open_source
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.pipeline.export import export_store
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from tests.conftest import Pico
from tests.unit.test_companions import write_tokenizer

gguf = pytest.importorskip("gguf")

Maker = Callable[..., Pico]

SAID = {
    "general.name": "Pico Chat",
    "general.organization": "Small Models",
    "general.license": "other",
    "general.license.name": "own",
    "general.license.link": "https://x.org/licence",
    "general.languages": ["en", "no"],
    "general.tags": ["chat"],
    "general.base_model.count": 1,
    "general.base_model.0.name": "Pico",
    "general.base_model.0.repo_url": "https://huggingface.co/small/pico",
    "general.sampling.temp": 0.5,
    "general.sampling.top_k": 20,
    "tokenizer.ggml.pre": "tekken",
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.eot_token_id": 2,
}


def byte_level(folder: Path) -> Path:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|begin|>", "<|end|>", "<|turn|>"]
    made.train_from_iterator(
        ["rain on the roof in 1234"] * 3,
        trainers.BpeTrainer(vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|begin|>", eos_token="<|end|>")
    tokenizer.chat_template = {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    tokenizer.save_pretrained(folder)
    return folder


def fields(file: str | Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(file).fields.items()}


def with_fields(file: Path, said: dict[str, Any], to: Path) -> Path:
    """The file with some metadata replaced."""
    reader = gguf.GGUFReader(file)
    writer = gguf.GGUFWriter(to, "llama")
    kept = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    for name, field in kept.items():
        if name in said or name in ("general.architecture", "bot_dist.export") or name.startswith("general."):
            continue
        kind = field.types[0]
        writer.add_key_value(name, field.contents(), kind, sub_type=field.types[-1] if len(field.types) > 1 else None)
    for name, value in said.items():
        match value:
            case list():
                writer.add_array(name, value)
            case int():
                writer.add_uint32(name, value)
            case float():
                writer.add_float32(name, value)
            case _:
                writer.add_string(name, value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return to


@pytest.fixture
def file(pico_llama: Maker, tmp_path: Path) -> Path:
    """A ``.gguf`` file that says much."""
    made = pico_llama(vocab_size=320)
    byte_level(made.folder)
    plain = tmp_path / "plain.gguf"
    export_gguf(open_source(made.url), str(plain), encoding="f32")
    return with_fields(plain, SAID, tmp_path / "chat.gguf")


def to_store(source: str | Path, store: Path, **target: int) -> str:
    plain = {"source": str(source), "output": str(store.parent), "target_url": str(store), "target": target}
    transfer(make_recipe({**plain, "cluster": {"executor": "local"}}))
    return str(store)


def test_a_file_that_becomes_a_file_says_the_same(file: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    export_store(to_store(file, tmp_path / "store", mlp=80), str(out), to="gguf")
    was, now = fields(file), fields(out)
    assert {key: now.get(key) for key in SAID} == {key: was[key] for key in SAID}
    assert now["general.size_label"] != was.get("general.size_label")
    for key in ("tokenizer.chat_template", "tokenizer.chat_template.tool_use", "tokenizer.ggml.tokens"):
        assert now[key] == was[key], key


def test_what_it_says_becomes_how_to_generate_and_a_card(file: Path, tmp_path: Path) -> None:
    export_store(to_store(file, tmp_path / "store"), str(tmp_path / "out"))
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert generation == {"bos_token_id": 0, "eos_token_id": [1, 2], "temperature": 0.5, "top_k": 20, "do_sample": True}
    front = yaml.safe_load((tmp_path / "out/README.md").read_text().split("---\n")[1])
    assert (front["license"], front["license_name"], front["language"]) == ("other", "own", ["en", "no"])
    assert front["base_model"] == ["small/pico"]
    tokenizer = load_tokenizer(str(tmp_path / "out"))
    assert tokenizer.chat_template == {"default": "{{ messages[0].content }}", "tool_use": "{{ tools }}"}
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert not {"is_local", "local_files_only", "backend"} & config.keys()


def test_a_folder_s_card_and_stops_go_into_a_file(pico_llama: Maker, tmp_path: Path) -> None:
    made = pico_llama(vocab_size=320)
    byte_level(made.folder)
    (made.folder / "README.md").write_text(
        "---\nlicense: apache-2.0\nlanguage: en\nbase_model: small/pico-1M\ntags: [chat]\n---\n"
    )
    generation = {"eos_token_id": [1, 2, 7, 8], "temperature": 1, "top_p": 0.5, "top_k": "odd"}
    (made.folder / "generation_config.json").write_text(json.dumps(generation))
    report = export_store(made.url, str(tmp_path / "out.gguf"), to="gguf")
    found = fields(tmp_path / "out.gguf")
    assert found["general.license"] == "apache-2.0"
    assert found["general.languages"] == ["en"]
    assert found["general.base_model.0.repo_url"] == "https://huggingface.co/small/pico-1M"
    ids = [found[f"tokenizer.ggml.{kind}_token_id"] for kind in ("eos", "eot", "eom")]
    assert (ids, found["general.sampling.temp"], found["general.sampling.top_p"]) == ([1, 2, 7], 1.0, 0.5)
    assert "general.sampling.top_k" not in found
    assert any("more are left out: [8]" in note for note in report.notes)


def test_a_file_s_name_is_the_model_s(pico_llama: Maker, tmp_path: Path) -> None:
    made = pico_llama()
    export_gguf(open_source(made.url), str(tmp_path / "out.gguf"))
    assert fields(tmp_path / "out.gguf")["general.name"] == made.folder.name
    store = to_store(made.url, tmp_path / "store")
    export_gguf(open_source(store), str(tmp_path / "again.gguf"))
    assert fields(tmp_path / "again.gguf")["general.name"] == made.folder.name


def test_digits_are_split_as_the_file_says(file: Path, tmp_path: Path) -> None:
    """``smollm`` is a way of splitting that transformers does not know: it takes GPT-2's."""
    for pre, wanted in {"smollm": ["In", "Ġ", "1", "2", "3", ","], "gpt-2": ["In", "Ġ123", ","]}.items():
        tokenizer = load_tokenizer(str(with_fields(file, {**SAID, PRE: pre}, tmp_path / f"{pre}.gguf")))
        pieces = tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str("In 123,")
        assert [piece for piece, _ in pieces] == wanted


def test_a_tokenizer_has_the_file_s_tokens_and_no_other(file: Path) -> None:
    """transformers adds GPT-2's ``<|endoftext|>``, beyond the model's vocabulary."""
    tokenizer = load_tokenizer(str(file))
    assert len(tokenizer) == 320
    assert max(tokenizer("rain <|endoftext|>")["input_ids"]) < 320
    assert (tokenizer.eos_token, tokenizer.unk_token) == ("<|end|>", None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("tokenizer.ggml.eot_token_id", 4_000_000_000),
        ("tokenizer.ggml.eot_token_id", "two"),
        ("tokenizer.ggml.pre", 3),
        ("general.languages", [1, 2]),
        ("general.name", 7),
        ("general.license", ["a", "b"]),
        ("tokenizer.chat_template.../../escaped", "x"),
    ],
)
def test_odd_values_are_passed_over(file: Path, tmp_path: Path, key: str, value: Any) -> None:
    odd = with_fields(file, {**SAID, key: value}, tmp_path / "odd.gguf")
    companions = read_companions(str(odd))
    assert not [name for name in companions.files if ".." in name]
    store = to_store(odd, tmp_path / "store")
    export_store(store, str(tmp_path / "out"))
    if key != "tokenizer.ggml.pre":
        export_store(store, str(tmp_path / "out.gguf"), to="gguf")
    assert not [*tmp_path.rglob("escaped*")]


def test_a_file_without_a_tokenizer(pico_llama: Maker, tmp_path: Path) -> None:
    export_gguf(open_source(pico_llama().url), str(tmp_path / "plain.gguf"))
    export_store(str(tmp_path / "plain.gguf"), str(tmp_path / "out"))
    assert json.loads((tmp_path / "out/generation_config.json").read_text())["eos_token_id"] == 2
    folder = tmp_path / "words"
    folder.mkdir()
    write_tokenizer(folder)
    assert read_companions(str(tmp_path / "plain.gguf")).with_tokenizer(str(folder)).tokenizer
