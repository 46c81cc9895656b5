"""What lies beside a source's weights goes along with them, into stores and exports alike."""

from __future__ import annotations

import functools
import http.server
import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bot_dist.errors import InputError, SourceError
from bot_dist.formats import beside as beside_module
from bot_dist.formats.beside import beside
from bot_dist.formats.companions import read_companions
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.pipeline.export import export_store
from bot_dist.pipeline.results import TransferResult
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from bot_dist.store import CheckpointReader
from tests.conftest import Pico

Maker = Callable[..., Pico]

CARRIED = {
    "generation_config.json": json.dumps({"eos_token_id": [2, 1], "temperature": 0.6, "do_sample": True}),
    "chat_template.jinja": "{{ messages[0].content }}",
    "additional_chat_templates/tool_use.jinja": "{{ tools }}",
    "special_tokens_map.json": '{"eos_token": "</s>"}',
    "processor_config.json": '{"processor_class": "X"}',
    "LICENSE": "Do what you like.",
    "LICENSES/MIT.txt": "MIT",
    "model.safetensors.license": "SPDX-License-Identifier: MIT",
    "NOTICE.txt": "Built with X",
    "USE_POLICY.md": "no",
    "CITATION.cff": "cff-version: 1.2.0",
}
LEFT = {"modeling_x.py": "code", "training_args.bin": "pickle or code", "LICENSE.py": "code", "onnx.txt": ""}


def write_tokenizer(folder: Path, **config: Any) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "grow": 3, "<tool>": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "unk_token": "<unk>", **config})
    )


def put(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def source(pico_llama: Maker) -> Path:
    folder = pico_llama().folder
    write_tokenizer(folder)
    put(folder, CARRIED | dict.fromkeys(LEFT, "x"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "my_key": {"a": [1]}, "temperature": 0.3}))
    return folder


def to_store(source: str, store: Path) -> TransferResult:
    plain = {"source": source, "output": str(store.parent), "target_url": str(store)}
    return transfer(make_recipe({**plain, "cluster": {"executor": "local"}}))


def test_a_source_goes_whole_through_a_store_into_an_export(source: Path, tmp_path: Path) -> None:
    store, out = tmp_path / "store", tmp_path / "out"
    (note,) = to_store(str(source), store).notes
    assert all(f"{name} ({why})" if why else name in note for name, why in LEFT.items())
    report = export_store(str(store), str(out))
    assert report.tokenizer
    assert not report.notes, "named once"
    for name in (*CARRIED, "tokenizer.json"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
        assert name in report.files
    assert not {*LEFT} & {path.name for path in out.rglob("*")}
    config = json.loads((out / "config.json").read_text())
    assert (config["my_key"], config["temperature"]) == ({"a": [1]}, 0.3)
    assert load_tokenizer(str(out)).chat_template.keys() == {"default", "tool_use"}


def test_what_was_carried_has_a_digest(source: Path, tmp_path: Path) -> None:
    to_store(str(source), tmp_path / "store")
    reader = CheckpointReader(str(tmp_path / "store"))
    assert {
        "source/LICENSE",
        "source/generation_config.json",
        "tokenizer/tokenizer.json",
    } <= reader.manifest.files.keys()
    (tmp_path / "store" / reader.manifest.data / "source/LICENSE").write_text("Pay.")
    with pytest.raises(Exception, match="source/LICENSE was changed"):
        export_store(str(tmp_path / "store"), str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_an_export_straight_from_a_folder_has_the_same(source: Path, tmp_path: Path) -> None:
    report = export_store(str(source), str(tmp_path / "out"))
    assert {*CARRIED} <= {*report.files}
    assert "modeling_x.py (code)" in report.notes[0]


def test_a_file_is_carried_with_its_folder(source: Path) -> None:
    assert read_companions(str(source / "model.safetensors")).files == read_companions(str(source)).files


def test_remote_folders_are_read_alike(source: Path) -> None:
    import fsspec

    fs = fsspec.filesystem("memory")
    fs.put(f"{source}/", "/whole/", recursive=True)
    there, here = read_companions("memory://whole"), read_companions(str(source))
    assert (there.files, there.left_out) == (here.files, here.left_out)


@pytest.fixture
def unlisted(source: Path) -> Iterator[str]:
    """The source behind a server that lists no folder."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def list_directory(self, path: Any) -> None:
            self.send_error(404)

        def log_message(self, *arguments: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(source)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_where_no_folder_is_listed_known_names_are_asked_for(unlisted: str, source: Path) -> None:
    found = read_companions(unlisted).files
    assert {"tokenizer.json", "generation_config.json", "LICENSE", "chat_template.jinja"} <= found.keys()
    assert found["LICENSE"] == (source / "LICENSE").read_bytes()


def test_what_is_too_large_is_left_out_and_named(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(beside_module, "MAX_FILE_BYTES", 20)
    found = beside(str(source))
    assert found.left_out["tokenizer.json"] == found.left_out["generation_config.json"] == "too large"
    assert "LICENSE" in found.places
    monkeypatch.setattr(beside_module, "MAX_FILES", 1)
    assert "too many files" in beside(str(source)).left_out.values()


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("generation_config.json", "{", r"generation_config\.json is no valid JSON"),
        ("generation_config.json", "[" * 100_000, r"generation_config\.json is no valid JSON"),
        ("generation_config.json", "[]", r"generation_config\.json is a JSON list, wanted an object"),
        ("modules.json", '[{"type": "X", "path": "../etc"}]', "no list of modules"),
        ("modules.json", '{"a": 1}', "no list of modules"),
    ],
)
def test_damage_is_found_before_weights_are_transferred(
    source: Path, tmp_path: Path, name: str, text: str, message: str
) -> None:
    (source / name).write_text(text)
    with pytest.raises(SourceError, match=message):
        to_store(str(source), tmp_path / "store")
    assert not (tmp_path / "store").exists()


def test_a_source_that_does_not_say_how_to_generate(pico_llama: Maker, tmp_path: Path) -> None:
    folder = pico_llama(eos_token_id=[2, 5]).folder
    (folder / "generation_config.json").unlink()
    export_store(str(folder), str(tmp_path / "out"))
    made = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (made["bos_token_id"], made["eos_token_id"], made["_from_model_config"]) == (1, [2, 5], True)


def test_a_tokenizer_is_named_as_both_transformers_know_it(pico_llama: Maker, tmp_path: Path) -> None:
    folder = pico_llama().folder
    write_tokenizer(
        folder,
        tokenizer_class="TokenizersBackend",
        is_local=True,
        backend="tokenizers",
        extra_special_tokens=["<tool>"],
    )
    export_store(str(folder), str(tmp_path / "out"))
    config = json.loads((tmp_path / "out/tokenizer_config.json").read_text())
    assert config["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert config["additional_special_tokens"] == ["<tool>"]
    assert not {"is_local", "backend", "extra_special_tokens"} & config.keys()
    assert "<tool>" in load_tokenizer(str(tmp_path / "out")).all_special_tokens


POOLING, DENSE = "sentence_transformers.models.Pooling", "sentence_transformers.models.Dense"


def sentences(folder: Path, *modules: tuple[str, str]) -> None:
    """Make a model of sentence-transformers of a folder."""
    listed = [("", "sentence_transformers.models.Transformer"), *modules]
    put(
        folder,
        {
            "modules.json": json.dumps([{"idx": i, "path": p, "type": t} for i, (p, t) in enumerate(listed)]),
            "sentence_bert_config.json": '{"max_seq_length": 512, "do_lower_case": false}',
            "config_sentence_transformers.json": "{}",
            "1_Pooling/config.json": '{"word_embedding_dimension": 384, "pooling_mode_mean_tokens": true}',
        },
    )


def exported_modules(out: Path) -> list[str]:
    return [module["path"] for module in json.loads((out / "modules.json").read_text())]


def test_what_comes_after_the_model_takes_its_width(pico_bert: Maker, tmp_path: Path) -> None:
    made = pico_bert(model_class="BertModel")
    sentences(made.folder, ("1_Pooling", POOLING), ("2_Normalize", "sentence_transformers.models.Normalize"))
    to_store(made.url, tmp_path / "store")
    report = export_store(str(tmp_path / "store"), str(tmp_path / "out"))
    assert not report.notes
    pooling = json.loads((tmp_path / "out/1_Pooling/config.json").read_text())
    assert pooling == {"word_embedding_dimension": 24, "pooling_mode_mean_tokens": True}
    assert json.loads((tmp_path / "out/sentence_bert_config.json").read_text())["max_seq_length"] == 32
    assert exported_modules(tmp_path / "out") == ["", "1_Pooling", "2_Normalize"]


@pytest.mark.parametrize(
    ("kind", "width", "weights", "why"),
    [
        (DENSE, 24, "model.safetensors", None),
        (DENSE, 384, "model.safetensors", "its weights take a width of 384, and the model's is 24"),
        (DENSE, 24, "pytorch_model.bin", "its weights are not carried along"),
        ("modeling.Own", 24, "model.safetensors", "its class modeling.Own is code"),
    ],
)
def test_a_module_with_weights_goes_along_where_it_fits(
    pico_bert: Maker, tmp_path: Path, kind: str, width: int, weights: str, why: str | None
) -> None:
    made = pico_bert(model_class="BertModel")
    sentences(made.folder, ("1_Pooling", POOLING), ("2_Dense", kind))
    put(made.folder, {"2_Dense/config.json": json.dumps({"in_features": width, "out_features": 4})})
    save_file({"linear.weight": torch.zeros(4, width)}, made.folder / "2_Dense" / weights)
    report = export_store(made.url, str(tmp_path / "out"))
    assert (tmp_path / "out/2_Dense/model.safetensors").exists() == (why is None)
    assert exported_modules(tmp_path / "out") == ["", "1_Pooling", *(["2_Dense"] if why is None else [])]
    assert why is None or any(f"2_Dense is left out: {why}" in note for note in report.notes)


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_weights_are_written_in_the_dtype_that_is_asked_for(pico_llama: Maker, tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import load_file

    made = pico_llama(dtype=torch.bfloat16 if dtype == "f32" else torch.float32)
    export_store(made.url, str(tmp_path / "out"), dtype=dtype)  # type: ignore[arg-type]
    wanted = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[dtype]
    for name, tensor in load_file(tmp_path / "out/model.safetensors").items():
        assert torch.equal(tensor, made.tensors[name].detach().to(wanted)), name
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == str(wanted).removeprefix("torch.")


def test_values_that_a_dtype_does_not_hold_are_refused(pico_llama: Maker, tmp_path: Path) -> None:
    made = pico_llama()
    with torch.no_grad():
        made.model.model.norm.weight[3] = 70000.0
    made.model.save_pretrained(made.folder)
    with pytest.raises(InputError, match=r"model\.norm\.weight': a value of 70000 is more than f16 holds \(65504\)"):
        export_huggingface(open_source(made.url), str(tmp_path / "out"), dtype=torch.float16)
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="--dtype q8_0 is for GGUF; safetensors takes f32, f16, bf16"):
        export_store(made.url, str(tmp_path / "out"), dtype="q8_0")
