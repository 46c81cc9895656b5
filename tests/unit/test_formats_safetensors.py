from __future__ import annotations

import itertools
import json
import pickle
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from bot_dist.errors import FamilyError, InputError, SourceError
from bot_dist.formats import indexed as files
from bot_dist.formats.indexed import FileSource
from bot_dist.formats.open import open_source
from bot_dist.formats.sources.safetensors import read_header
from bot_dist.model import model_of
from bot_dist.tensors import Box, runs, whole
from bot_dist.tensors.axes import Parameter
from tests.conftest import Pico, examples

PicoMaker = Callable[..., Pico]


def parameters(source: Any) -> list[Parameter]:
    return [p for _, _, p in model_of(source.config).parameters()]


def read_all(source: Any) -> dict[str, torch.Tensor]:
    return {p.name: source.read(p, whole(p.sizes)).view(p.shape) for p in parameters(source)}


def assert_same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> None:
    assert found.keys() == wanted.keys()
    for name, tensor in wanted.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor), name


def edit_tensors(folder: Path, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> None:
    tensors = load_file(folder / "model.safetensors")
    save_file(edit(tensors), folder / "model.safetensors")


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize(
    "options", [{}, {"max_shard_size": "9KB"}, {"dtype": torch.bfloat16}, {"dtype": torch.float16}]
)
def test_every_parameter_reads_as_transformers_has_it(pico: PicoMaker, options: dict[str, Any]) -> None:
    made = pico(**options)
    source = open_source(made.url)
    source.check(model_of(source.config))
    assert_same(read_all(source), made.tensors)
    assert {source.dtype(p) for p in parameters(source)} == {made.model.dtype}
    assert sum(source.storage_bytes(p) for p in parameters(source)) == sum(t.nbytes for t in made.tensors.values())


def test_a_box_is_that_slice_of_the_unfused_tensor(pico: PicoMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pico()
    source = open_source(made.url)

    @examples(60)
    @given(data=st.data(), piece_bytes=st.sampled_from([1, 200, 2**20]))
    def holds(data: st.DataObject, piece_bytes: int) -> None:
        monkeypatch.setattr(files, "PIECE_BYTES", piece_bytes)
        parameter = data.draw(st.sampled_from(parameters(source)))
        box = data.draw(boxes(parameter.sizes))
        found = source.read(parameter, box)
        assert found.is_contiguous()
        assert torch.equal(found, made.tensors[parameter.name].view(parameter.sizes)[tuple(slice(*r) for r in box)])

    holds()


@st.composite
def boxes(draw: st.DrawFn, sizes: tuple[int, ...]) -> Box:
    starts = [draw(st.integers(0, size - 1)) for size in sizes]
    return tuple((start, draw(st.integers(start + 1, size))) for start, size in zip(starts, sizes, strict=True))


@given(sizes=st.lists(st.integers(1, 5), max_size=4).map(tuple), data=st.data())
def test_runs_are_the_maximal_runs_of_the_box(sizes: tuple[int, ...], data: st.DataObject) -> None:
    box = data.draw(boxes(sizes))
    index = torch.arange(torch.Size(sizes).numel()).view(sizes)
    found = list(runs(sizes, box))
    assert [i for r in found for i in range(*r)] == index[tuple(slice(*r) for r in box)].flatten().tolist()
    assert all(a[1] < b[0] for a, b in itertools.pairwise(found))


def test_only_the_rows_of_the_box_are_read(pico_llama: PicoMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    source = open_source(pico_llama().url)
    read: list[int] = []
    genuine = files.read_range
    monkeypatch.setattr(files, "read_range", lambda *a: read.append(a[2] - a[1]) or genuine(*a))
    query = next(p for p in parameters(source) if "q_proj" in p.name)  # kv_heads 2 × group 2 × head_dim 8, embed 24
    source.read(query, ((0, 2), (1, 2), (0, 8), (6, 12)))
    assert read == [8 * 24 * 4, 8 * 24 * 4]


def test_a_source_is_small_and_reads_after_pickling(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    source = open_source(made.url)
    assert len(pickle.dumps(source)) < 10_000
    assert_same(read_all(pickle.loads(pickle.dumps(source))), made.tensors)


def test_a_single_file_and_a_remote_folder_are_sources_too(pico_llama: PicoMaker) -> None:
    made = pico_llama(max_shard_size="9KB")
    fsspec.filesystem("memory").put(made.url, "/pico", recursive=True)
    assert_same(read_all(open_source("memory://pico")), made.tensors)
    made = pico_llama()
    assert_same(read_all(open_source(f"{made.url}/model.safetensors")), made.tensors)


def test_provenance_identifies_files_by_size_header_and_version(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    first = open_source(made.url).provenance()
    assert first["format"] == "safetensors"
    assert first["url"] == made.url
    assert first["files"]["model.safetensors"]["bytes"] == (made.folder / "model.safetensors").stat().st_size
    shutil.copytree(made.folder, made.folder.parent / "copy")
    copy = open_source(str(made.folder.parent / "copy")).provenance()["files"]["model.safetensors"]
    mine = first["files"]["model.safetensors"]
    assert copy["header_sha256"] == mine["header_sha256"]
    assert copy["version"] != mine["version"]
    assert open_source(made.url).provenance() == first
    edit_tensors(made.folder, lambda t: {**t, "extra": torch.ones(1)})
    assert open_source(made.url).provenance()["files"] != first["files"]


def test_published_gpt2_names_lack_the_prefix(pico_gpt2: PicoMaker) -> None:
    made = pico_gpt2()
    edit_tensors(
        made.folder,
        lambda tensors: (
            {k.removeprefix("transformer."): v for k, v in tensors.items()}
            | {"h.0.attn.bias": torch.ones(1, 1, 32, 32)}
        ),
    )
    source = open_source(made.url)
    source.check(model_of(source.config))
    assert_same(read_all(source), made.tensors)


def test_more_layers_than_tensors_are_refused_at_once(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_json(made.folder / "config.json", num_hidden_layers=9_999)
    refused(made, "29 tensors can't be the 9999 layers")


def test_a_tied_model_may_carry_its_head_too(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_tensors(made.folder, lambda t: {**t, "lm_head.weight": t["model.embed_tokens.weight"].clone()})
    check(made)


def check(made: Pico) -> None:
    source = open_source(made.url)
    source.check(model_of(source.config))


def refused(made: Pico, message: str) -> None:
    with pytest.raises(SourceError, match=message):
        check(made)


def test_a_missing_tensor_is_named(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_tensors(made.folder, lambda t: {k: v for k, v in t.items() if k != "model.layers.1.mlp.up_proj.weight"})
    refused(made, r"tensor 'model\.layers\.1\.mlp\.up_proj\.weight' is missing")


def test_an_unexpected_tensor_is_named_and_integer_buffers_are_not(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_tensors(made.folder, lambda t: {**t, "buffer": torch.arange(3)})
    check(made)
    edit_tensors(made.folder, lambda t: {**t, "adapter": torch.ones(3)})
    refused(made, r"unexpected tensor 'adapter' of shape \(3,\)")


def test_a_head_beside_an_untied_config_is_wanted(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_json(made.folder / "config.json", tie_word_embeddings=False)
    refused(made, r"tensor 'lm_head\.weight' is missing")


def test_another_shape_is_named_with_the_wanted_one(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_tensors(made.folder, lambda t: {**t, "model.norm.weight": torch.ones(23)})
    refused(made, r"'model\.norm\.weight' has shape \(23,\), wanted \(24,\)")


@pytest.mark.parametrize("shape", [(24,), (12, 1)])
def test_integer_weights_are_refused_with_their_dtype(pico_llama: PicoMaker, shape: tuple[int, ...]) -> None:
    made = pico_llama()
    edit_tensors(made.folder, lambda t: {**t, "model.norm.weight": torch.ones(shape, dtype=torch.int8)})
    refused(made, r"'model\.norm\.weight' has dtype I8, wanted one of F64, F32.*if .* quantised, dequantise it first")


def test_a_quantised_model_is_refused_when_it_is_opened(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_json(made.folder / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(FamilyError, match=r"quantization_config \(quant_method='gptq'\) .* dequantise them first"):
        open_source(made.url)


def test_an_unknown_architecture_names_the_known(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_json(made.folder / "config.json", model_type="lama")
    with pytest.raises(FamilyError, match="unknown architecture 'lama'; did you mean 'llama'"):
        open_source(made.url)


def test_heads_must_divide_by_key_value_heads(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    edit_json(made.folder / "config.json", num_key_value_heads=3)
    with pytest.raises(FamilyError, match="num_attention_heads=4 is not divisible by num_key_value_heads=3"):
        check(made)


@pytest.mark.parametrize("keep", [0, 7, 200, -1])
def test_a_truncated_file_is_named_with_its_bytes(pico_llama: PicoMaker, keep: int) -> None:
    made = pico_llama()
    path = made.folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:keep])
    refused(made, rf"model\.safetensors: .*found {len(data[:keep])} bytes, wanted ")


def test_a_file_cut_after_opening_is_a_short_read(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    source = open_source(made.url)
    path = made.folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(
        SourceError, match=r"model\.safetensors: tensor 'model\.norm\.weight': found 95 bytes .* wanted 96"
    ):
        read_all(source)


def test_trailing_bytes_are_refused(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    with (made.folder / "model.safetensors").open("ab") as file:
        file.write(b"x")
    refused(made, "bytes that no tensor accounts for")


def header_of(tensors: dict[str, Any], data: int = 0) -> bytes:
    text = tensors if isinstance(tensors, bytes) else json.dumps(tensors).encode()
    return len(text).to_bytes(8, "little") + text + bytes(data)


def entry(dtype: str, shape: Any, *offsets: Any) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"\xff" * 64, "header length is 18446744073709551615"),
        (header_of(b"{not json"), "no valid JSON"),
        (header_of(b'{"a": {}, "a": {}}'), "key 'a' appears twice"),
        (header_of(b"[]"), "is a JSON list, wanted an object"),
        (header_of({"a": entry("F32", [2], 0, 4)}, 4), r"data_offsets \[0, 4\] \(4 bytes\), wanted 8 bytes"),
        (header_of({"a": entry("F32", [1], -4, 0)}, 4), "header entry of tensor 'a'"),
        (header_of({"a": entry("F32", [True], 0, 4)}, 4), "header entry of tensor 'a'"),
        (header_of({"a": entry("F32", "1", 0, 4)}, 4), "header entry of tensor 'a'"),
        (header_of({"a": entry("F3", [1], 0, 4)}, 4), "unknown dtype F3"),
        (header_of({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 2, 6)}, 6), "'b' begins at byte"),
        (header_of({"a": entry("U8", [4], 0, 4), "b": entry("U8", [4], 5, 9)}, 9), "'b' begins at byte"),
        (header_of({"a": entry("U8", [2**62], 0, 2**62)}, 8), "is truncated"),
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(data)
    with pytest.raises(SourceError, match=message):
        read_header(str(path))


def test_a_header_over_a_mebibyte_is_read_whole(tmp_path: Path) -> None:
    tensors = {f"{i:0200}": torch.ones(1) for i in range(5000)}
    save_file(tensors, tmp_path / "x.safetensors")
    assert read_header(str(tmp_path / "x.safetensors"))[0].keys() == tensors.keys()


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/model.safetensors", "s3://b/m.safetensors", 3, "m.bin"])
def test_an_index_that_leads_elsewhere_is_refused(pico_llama: PicoMaker, name: Any) -> None:
    made = pico_llama(max_shard_size="9KB")
    edit_json(made.folder / "model.safetensors.index.json", weight_map={"model.norm.weight": name})
    refused(made, "'model.norm.weight' is said to be in .*, wanted a .safetensors file inside the folder")


def test_an_index_names_what_its_shards_lack(pico_llama: PicoMaker) -> None:
    made = pico_llama(max_shard_size="9KB")
    index = made.folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = weight_map["model.norm.weight"]
    edit_json(index, weight_map={**weight_map, "model.norm.bias": shard})
    refused(made, rf"tensor 'model\.norm\.bias' is not in '{shard}'")
    edit_json(index, weight_map=weight_map)
    (made.folder / shard).unlink()
    refused(made, rf"{shard}: no such file")


def test_a_tensor_in_two_shards_is_refused(pico_llama: PicoMaker) -> None:
    made = pico_llama(max_shard_size="9KB")
    index = made.folder / "model.safetensors.index.json"
    weight_map = json.loads(index.read_text())["weight_map"]
    shard = Counter(weight_map.values()).most_common(1)[0][0]
    shutil.copy(made.folder / shard, made.folder / "again.safetensors")
    name = next(name for name, held in weight_map.items() if held == shard)
    edit_json(index, weight_map={**weight_map, name: "again.safetensors"})
    refused(made, "is in both")


def test_an_index_without_a_map_is_refused(pico_llama: PicoMaker) -> None:
    made = pico_llama(max_shard_size="9KB")
    (made.folder / "model.safetensors.index.json").write_text("{}")
    refused(made, "no 'weight_map'")


def test_a_missing_path_names_the_near_ones(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    with pytest.raises(SourceError, match=rf"no such file or folder; did you mean '{made.folder.name}'"):
        open_source(made.url + "0")


def test_a_folder_without_config_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "conf.json").write_text("{}")
    with pytest.raises(SourceError, match=r"no config\.json; did you mean 'conf\.json'"):
        open_source(str(tmp_path))


def test_pickle_is_not_read_and_the_way_out_is_told(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    (made.folder / "model.safetensors").rename(made.folder / "pytorch_model.bin")
    refused(made, r"only pytorch_model\.bin, which is pickle .*save_pretrained")


def test_another_file_name_must_be_given_itself(pico_llama: PicoMaker) -> None:
    made = pico_llama()
    (made.folder / "model.safetensors").rename(made.folder / "best.safetensors")
    refused(made, r"best\.safetensors; if one of them is the whole model, give its path")
    assert isinstance(open_source(f"{made.url}/best.safetensors"), FileSource)


def test_an_unknown_protocol_is_the_users_error() -> None:
    with pytest.raises(InputError, match="nonsense"):
        open_source("nonsense://bucket/model")
