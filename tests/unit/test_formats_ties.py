"""What files and configurations say of a model that are at odds: tensors that are tied and differ, classes that are
others', names without a prefix, shards without an index, adapters, links."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import bot_dist
from bot_dist.errors import FamilyError, SourceError
from bot_dist.formats.open import open_source
from bot_dist.model import FAMILIES, model_of
from bot_dist.pipeline.checks import diff
from tests.conftest import PICOS, VARIANTS, Pico, outputs
from tests.unit.test_formats_safetensors import assert_same, edit_json, edit_tensors, read_all

Maker = Callable[..., Pico]

TIED = [name for name, kind in VARIANTS.items() if kind["kind"] not in ("vit", "deit") and "untied" not in name]


def loaded(folder: str | Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(folder)
    return getattr(transformers, config.architectures[0]).from_pretrained(folder).eval()


def tied_pico(make_pico: Maker, variant: str) -> Pico:
    return make_pico(**{"tie_word_embeddings": True, **VARIANTS[variant]})


@pytest.mark.parametrize("variant", TIED)
def test_a_tied_tensor_that_differs_is_kept_as_transformers_does(
    make_pico: Maker, tmp_path: Path, variant: str
) -> None:
    made = tied_pico(make_pico, variant)
    family = model_of(open_source(made.url).config).family
    for name, other in family.ties.items():
        folder = tmp_path / name
        shutil.copytree(made.folder, folder)
        own = torch.randn(made.tensors[other].shape)
        edit_tensors(folder, lambda tensors, name=name, own=own: {**tensors, name: own})  # type: ignore[misc]
        source = open_source(str(folder))
        model = model_of(source.config)
        source.check(model)
        assert not model.tied
        assert torch.equal(read_all(source)[name], own)
        assert f"'{name}' differs from '{other}'" in source.provenance()["notes"][0]
        store = bot_dist.resize(str(folder), f"{folder}.zarr", overrides={"cluster.executor": "local"})
        wanted = outputs(loaded(folder))
        for output, value in outputs(store.model()).items():
            torch.testing.assert_close(value, wanted[output], rtol=0, atol=1e-5)
        found = diff(made.url, str(folder))
        assert "tie_word_embeddings" in found.config
        assert not found.equal


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_copy_of_a_tied_tensor_changes_nothing_also_in_another_dtype(make_pico: Maker, dtype: torch.dtype) -> None:
    made = make_pico("llama", tie_word_embeddings=True, dtype=torch.bfloat16)
    table = made.tensors["model.embed_tokens.weight"].detach().to(dtype)
    edit_tensors(made.folder, lambda tensors: {**tensors, "lm_head.weight": table})
    source = open_source(made.url)
    source.check(model_of(source.config))
    assert model_of(source.config).tied
    assert_same(read_all(source), made.tensors)


def test_a_table_under_the_heads_name_alone_is_read(pico_llama: Maker) -> None:
    made = pico_llama(tied=True)
    edit_tensors(made.folder, lambda t: {re.sub("^model.embed_tokens", "lm_head", name): w for name, w in t.items()})
    source = open_source(made.url)
    source.check(model_of(source.config))
    assert_same(read_all(source), made.tensors)


@pytest.mark.parametrize("kind", [kind for kind, spec in PICOS.items() if FAMILIES.get(kind) or spec])
def test_names_may_lack_the_prefix_in_every_family(make_pico: Maker, kind: str) -> None:
    made = make_pico(kind)
    prefix = model_of(open_source(made.url).config).family.optional_prefix
    assert prefix, f"{kind} has a base model, whose files lack a prefix"
    edit_tensors(made.folder, lambda tensors: {name.removeprefix(prefix): w for name, w in tensors.items()})
    source = open_source(made.url)
    source.check(model_of(source.config))
    assert_same(read_all(source), made.tensors)


CAUSAL = [kind for kind in PICOS if kind not in ("vit", "deit", "bert")]


@pytest.mark.parametrize("kind", [*CAUSAL, "bert", "vit"])
@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": ["TimeTravellingModel"]},
        {"architectures": ["LlamaForSequenceClassification"]},
        {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}},
        {"auto_map": {"AutoModelForMaskedLM": "someone/else--modeling.OwnForMaskedLM"}},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_class_is_refused_by_name(make_pico: Maker, kind: str, changes: dict[str, Any]) -> None:
    made = make_pico(kind)
    edit_json(made.folder / "config.json", **changes)
    key = next(iter(changes))
    with pytest.raises(FamilyError, match=key):
        open_source(made.url)


def test_configurations_without_a_class_and_code_of_the_same_one_are_read(pico_llama: Maker) -> None:
    made = pico_llama()
    edit_json(
        made.folder / "config.json", auto_map={"AutoModelForCausalLM": "m.LlamaForCausalLM", "AutoConfig": "c.Mine"}
    )
    open_source(made.url)
    edit_json(made.folder / "config.json", architectures=None)
    open_source(made.url)


def test_shards_without_their_index_are_read_if_all_are_there(pico_llama: Maker) -> None:
    made = pico_llama(max_shard_size="9KB")
    (made.folder / "model.safetensors.index.json").unlink()
    source = open_source(made.url)
    source.check(model_of(source.config))
    assert_same(read_all(source), made.tensors)
    shards = sorted(made.folder.glob("model-*"))
    shards[1].rename(made.folder / "model-00002-of-00099.safetensors")
    with pytest.raises(SourceError, match=r"shards are not those of one checkpoint.*download it again"):
        open_source(made.url)
    (made.folder / "model-00002-of-00099.safetensors").unlink()
    with pytest.raises(SourceError, match=r"model-00002-of-\d+.safetensors is missing"):
        open_source(made.url)


@pytest.mark.parametrize("base", [True, False])
def test_an_adapter_is_no_model(pico_llama: Maker, base: bool) -> None:
    made = pico_llama()
    (made.folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    save_file({"x": torch.zeros(2)}, made.folder / "adapter_model.safetensors")
    if not base:
        (made.folder / "model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"adapter.*merge_and_unload"):
        open_source(made.url)
    if base:
        assert_same(read_all(open_source(f"{made.url}/model.safetensors")), made.tensors)


def test_a_link_that_leads_nowhere_is_told_as_such(pico_llama: Maker) -> None:
    made = pico_llama()
    (made.folder / "model.safetensors").unlink()
    (made.folder / "model.safetensors").symlink_to("../blobs/abc")
    with pytest.raises(SourceError, match=r"model\.safetensors is a link to \.\./blobs/abc, which is not there"):
        open_source(made.url)


def test_the_tied_comparison_reads_no_more_than_it_must(pico_llama: Maker, monkeypatch: pytest.MonkeyPatch) -> None:
    made = pico_llama(tied=True)
    tensors = load_file(made.folder / "model.safetensors")
    save_file(
        {**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, made.folder / "model.safetensors"
    )
    read: list[int] = []
    from bot_dist.formats import ties

    monkeypatch.setattr(ties, "PIECE_BYTES", 256)
    inner = ties.read_range
    monkeypatch.setattr(ties, "read_range", lambda *a: (read.append(a[2] - a[1]), inner(*a))[1])
    for _ in range(3):
        open_source(made.url)
    assert sum(read) == 2 * tensors["model.embed_tokens.weight"].nbytes, "once, whatever is opened again"
    assert max(read) <= 256
