"""Sizes that no model has end at once, in one error, before anything is made of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import FamilyError, InputError, PlanError, SourceError
from bot_dist.formats.sources.safetensors import read_header
from bot_dist.pipeline.transfer import plan_transfer
from bot_dist.recipe import make_recipe
from tests.conftest import PICOS

LLAMA = {"model_type": "llama", "tie_word_embeddings": True, **PICOS["llama"][2]}
WIDE = {"hidden_size": 16384, "intermediate_size": 131072, "num_hidden_layers": 400, "num_attention_heads": 128}


@pytest.mark.parametrize(
    ("config", "overrides", "named"),
    [
        ({"num_hidden_layers": 1_000_000}, ["target.embed=12"], "layer is 1,000,000"),
        ({"hidden_size": 10**12}, [], "embed is"),
        ({**WIDE, "num_hidden_layers": 9_999}, [], "parameters"),
        ({}, ["target.mlp=1000000000"], "target mlp is"),
        ({}, ["target.embed=1000000000000"], "target embed is"),
        ({}, ["target.layers=1000000"], "target layers is"),
        ({}, ["target.mlp=4000000", "target.layers=9999", "target.embed=4000000"], "parameters"),
        ({}, ["target.mlp=4000000", "transfer.wavelet=coif17"], "102 taps"),
        ({}, ["cluster.tensor=1000000000"], "at most 65,536"),
        ({}, ["cluster.data=65536", "cluster.tensor=65536"], "at most 65,536"),
        (
            WIDE,
            ["target.embed=8192", "transfer.analysis=wavelet", "transfer.memory_limit=4MB"],
            "steps, wanted at most",
        ),
        ({}, ["train.steps=99999999999999999999"], "at most"),
        ({}, ["transfer.memory_limit=1e30"], "no size"),
    ],
    ids=str,
)
def test_an_absurd_size_is_refused_at_once(
    config: dict[str, Any], overrides: list[str], named: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, **config}))
    began = time.process_time()
    with pytest.raises(InputError, match=named) as caught:
        plan_transfer(make_recipe({"source": str(tmp_path / "config.json"), "output": "o"}, overrides))
    assert isinstance(caught.value, FamilyError | PlanError | InputError)
    assert time.process_time() - began < 20  # nearly all of it the import of transformers


@pytest.mark.parametrize(
    "shape", [[10**19] * 300, [2**63], [1] * 9, [2.0], [True], [-1], "12", [[1]]], ids=lambda shape: str(shape)[:20]
)
def test_a_shape_that_no_tensor_has_is_refused(shape: Any, tmp_path: Path) -> None:
    header = json.dumps({"norm": {"dtype": "F32", "shape": shape, "data_offsets": [0, 4]}}).encode()
    (tmp_path / "m.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(4))
    with pytest.raises(SourceError, match=r"m\.safetensors: .*'norm'"):
        read_header(str(tmp_path / "m.safetensors"))


def test_keys_in_a_buckets_url_are_refused_and_not_shown() -> None:
    from bot_dist.storage.filesystems import filesystem

    with pytest.raises(InputError, match=r"^s3://bucket/x: a bucket has no ':'"):
        filesystem("s3://AKIA:S3cr3t/a@bucket/x")
    for key in ("source", "target_url"):
        with pytest.raises(InputError, match=rf"{key}: a bucket has no ':'") as caught:
            make_recipe({"source": "s", "output": "o", key: "s3://AKIA:S3cr3t@bucket/x"})
        assert "S3cr3t" not in str(caught.value)


@pytest.mark.parametrize("vocab", [257, 300, 1_111, 50_257])
def test_a_vocabulary_that_shards_round_up_is_no_absurd_size(vocab: int, tmp_path: Path) -> None:
    from bot_dist.store.layout import StoredParameter

    (tmp_path / "config.json").write_text(json.dumps({**LLAMA, "vocab_size": vocab}))
    plan = plan_transfer(make_recipe({"source": str(tmp_path / "config.json"), "output": "o"}, ["target.embed=12"]))
    for module in plan.modules:
        for parameter in plan.written(module):
            entry = {
                "axes": parameter.axes,
                "sizes": parameter.sizes,
                "dims": parameter.dims,
                "dtype": module.dtype,
                "shard": module.shard,
                "chunk": module.chunk,
                "learning_rate_factor": 1.0,
            }
            assert StoredParameter.from_json(parameter.name, entry).shard == module.shard
