from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from bot_dist.errors import CheckpointExistsError, InputError, SourceError
from bot_dist.formats.export_folder import RECORD
from bot_dist.formats.exports import safetensors
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.formats.tokenizer import has_tokenizer, load_tokenizer, save_tokenizer
from bot_dist.store import CheckpointReader, CheckpointWriter
from tests.conftest import Pico, outputs

PicoMaker = Callable[..., Pico]


def load(folder: Path) -> Any:
    import transformers

    (architecture,) = json.loads((folder / "config.json").read_text())["architectures"]
    model, info = getattr(transformers, architecture).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A folder with a word-level tokenizer."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, "</s>": 2, "grow": 3, "shrink": 4}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    folder = tmp_path / "tokenizer"
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("options", [{}, {"max_shard_bytes": 9_000}])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_export_loads_completely_and_computes_the_same(
    pico: PicoMaker, tmp_path: Path, options: dict[str, int], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(safetensors, "PIECE_BYTES", 1000)
    made, pieces = pico(dtype=dtype), []
    result = export_huggingface(open_source(made.url), str(tmp_path / "out"), progress=pieces.append, **options)
    model = load(tmp_path / "out")
    assert torch.equal(outputs(model)["logits"], outputs(load(made.folder))["logits"])
    assert model.dtype == dtype
    assert result.files == tuple(names(tmp_path / "out"))
    assert ("model.safetensors.index.json" in result.files) == bool(options)
    assert result.weight_bytes == sum(pieces) == sum(t.nbytes for t in made.tensors.values())
    assert result.n_parameters == sum(t.numel() for t in made.tensors.values())
    assert max(pieces) <= 1000
    assert not result.tokenizer


def test_the_configuration_says_what_was_written(pico_llama: PicoMaker, tmp_path: Path) -> None:
    import transformers

    source = open_source(pico_llama(dtype=torch.bfloat16).url)
    source.config.update(auto_map={"AutoModel": "code.Model"}, torch_dtype="float16")
    export_huggingface(source, str(tmp_path / "out"))
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config["dtype"] == config["torch_dtype"] == "bfloat16"
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["transformers_version"] == transformers.__version__
    assert "auto_map" not in config
    generation = json.loads((tmp_path / "out/generation_config.json").read_text())
    assert (generation["bos_token_id"], generation["eos_token_id"]) == (1, 2)


def test_the_file_is_as_the_format_wants_it(pico_llama: PicoMaker, tmp_path: Path) -> None:
    made = pico_llama()
    export_huggingface(open_source(made.url), str(tmp_path / "out"))
    path = tmp_path / "out/model.safetensors"
    assert int.from_bytes(path.read_bytes()[:8], "little") % 8 == 0
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
        assert {*file.keys()} == made.tensors.keys()


def test_an_export_exports_to_itself(pico: PicoMaker, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    export_huggingface(open_source(pico().url), str(first))
    export_huggingface(open_source(str(first)), str(second))
    held = [n for n in names(first) if n not in ("README.md", RECORD)]  # which names its source, and has its digest
    assert {n: (first / n).read_bytes() for n in held} == {n: (second / n).read_bytes() for n in held}
    assert names(first) == names(second)


def interrupt_after(n_bytes: int) -> Callable[[int], None]:
    written = 0

    def progress(piece: int) -> None:
        nonlocal written
        written += piece
        if written > n_bytes:
            raise KeyboardInterrupt

    return progress


def test_an_interrupted_export_leaves_nothing(pico_llama: PicoMaker, tmp_path: Path) -> None:
    source = open_source(pico_llama().url)
    with pytest.raises(KeyboardInterrupt):
        export_huggingface(source, str(tmp_path / "out"), progress=interrupt_after(9_000), max_shard_bytes=4_000)
    assert not (tmp_path / "out").exists()


def test_an_interrupted_overwrite_leaves_the_old_model(
    pico_llama: PicoMaker, pico_gpt2: PicoMaker, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    export_huggingface(open_source(pico_llama().url), str(out))
    before = {n: (out / n).read_bytes() for n in names(out)}
    with pytest.raises(KeyboardInterrupt):
        export_huggingface(open_source(pico_gpt2().url), str(out), overwrite=True, progress=interrupt_after(9_000))
    assert {n: (out / n).read_bytes() for n in names(out)} == before


def test_what_a_killed_export_left_is_cleared_by_the_next(pico_llama: PicoMaker, tmp_path: Path) -> None:
    (tmp_path / "out/.bot_dist-export-killed").mkdir(parents=True)
    for name in (RECORD, "config.json"):
        (tmp_path / "out/.bot_dist-export-killed" / name).write_text("{}")
    with pytest.raises(SourceError, match=r"no config\.json"):
        open_source(str(tmp_path / "out"))
    result = export_huggingface(open_source(pico_llama().url), str(tmp_path / "out"))
    assert names(tmp_path / "out") == list(result.files)


def test_a_model_is_overwritten_only_on_request_and_then_wholly(
    pico_llama: PicoMaker, pico_gpt2: PicoMaker, tmp_path: Path
) -> None:
    other, out = open_source(pico_gpt2().url), tmp_path / "out"
    export_huggingface(open_source(pico_llama().url), str(out), max_shard_bytes=9_000)
    (out / "thesis.txt").write_text("mine")
    with pytest.raises(CheckpointExistsError, match=r"already holds a model \(config\.json"):
        export_huggingface(other, str(out))
    result = export_huggingface(other, str(out), overwrite=True)
    assert names(out) == sorted(["thesis.txt", *result.files])
    load(out)


def test_a_store_is_never_exported_into(pico_llama: PicoMaker, tmp_path: Path) -> None:
    (tmp_path / "zarr.json").write_text("{}")
    with pytest.raises(CheckpointExistsError, match="holds a bot_dist store"):
        export_huggingface(open_source(pico_llama().url), str(tmp_path), overwrite=True)


def test_remote_targets_are_refused_before_anything_is_read(pico_llama: PicoMaker) -> None:
    with pytest.raises(InputError, match="export writes local folders, and hf:"):
        export_huggingface(open_source(pico_llama().url), "memory://out")


def test_a_source_with_a_tensor_too_many_is_not_exported(pico_llama: PicoMaker, tmp_path: Path) -> None:
    source = open_source(pico_llama(tied=False).url)
    source.config["num_hidden_layers"] = 2
    with pytest.raises(SourceError, match="unexpected tensor"):
        export_huggingface(source, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_the_tokenizer_goes_along(pico_llama: PicoMaker, tmp_path: Path, tokenizer: Path) -> None:
    result = export_huggingface(open_source(pico_llama().url), str(tmp_path / "out"), tokenizer_url=str(tokenizer))
    assert result.tokenizer
    assert load_tokenizer(str(tmp_path / "out"))("grow shrink")["input_ids"] == [3, 4]


def test_a_tokenizer_is_read_from_and_written_to_remote_folders(tokenizer: Path) -> None:
    assert save_tokenizer(str(tokenizer), "memory://model")
    assert load_tokenizer("memory://model")("shrink")["input_ids"] == [4]


def test_a_store_keeps_its_tokenizer_in_a_folder(tmp_path: Path, tokenizer: Path) -> None:
    store = str(tmp_path / "store")
    writer = CheckpointWriter.create(store, [], config={}, attempt="plan")
    assert save_tokenizer(str(tokenizer), f"{writer.url}/tokenizer")
    writer.commit({}, {})
    assert "tokenizer/tokenizer.json" in CheckpointReader(store).manifest.files
    assert load_tokenizer(store)("grow")["input_ids"] == [3]
    assert save_tokenizer(store, str(tmp_path / "out"))
    assert load_tokenizer(str(tmp_path / "out"))("shrink")["input_ids"] == [4]


def test_an_older_format_is_saved_so_that_it_needs_no_configuration(pico_gpt2: PicoMaker, tmp_path: Path) -> None:
    made = pico_gpt2()
    (made.folder / "vocab.json").write_text(json.dumps({"a": 0, "b": 1, "ab": 2, "<|endoftext|>": 3}))
    (made.folder / "merges.txt").write_text("#version: 0.2\na b\n")
    assert has_tokenizer(made.url)
    assert save_tokenizer(made.url, str(tmp_path / "saved"))
    assert load_tokenizer(str(tmp_path / "saved"))("abb")["input_ids"] == [2, 1]


def test_no_tokenizer_is_told(pico_llama: PicoMaker, tmp_path: Path) -> None:
    made = pico_llama()
    assert not has_tokenizer(made.url)
    assert not save_tokenizer(made.url, str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    with pytest.raises(SourceError, match=r"no tokenizer: none of tokenizer\.json"):
        load_tokenizer(made.url)
