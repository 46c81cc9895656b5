"""A stranger's config.json: what transformers refuses, fails at later, or would run code for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import FamilyError, PlanError
from bot_dist.formats.configuration import CODE, check_configuration, transformers_config
from bot_dist.formats.open import open_source
from bot_dist.pipeline.transfer import plan_transfer
from bot_dist.recipe import make_recipe
from tests.conftest import PICOS

LLAMA = {
    "model_type": "llama",
    "tie_word_embeddings": True,
    "pad_token_id": None,
    "bos_token_id": 1,
    **PICOS["llama"][2],
}
GPT2 = {"model_type": "gpt2", "bos_token_id": 1, "eos_token_id": 2, **PICOS["gpt2"][2]}
VIT = {"model_type": "vit", "architectures": ["ViTForImageClassification"], **PICOS["vit"][2]}
NAN = float("nan")

WRONG: list[tuple[dict[str, Any], dict[str, Any], str]] = [
    *(
        (LLAMA, fields, next(iter(fields)))
        for fields in (
            {"hidden_act": "swiglu"},
            {"hidden_act": ["silu"]},
            {"hidden_act": "nope"},
            {"rms_norm_eps": 1},
            {"rms_norm_eps": "x"},
            {"rms_norm_eps": NAN},
            {"rms_norm_eps": -1.0},
            {"initializer_range": "abc"},
            {"initializer_range": -1.0},
            {"max_position_embeddings": "x"},
            {"max_position_embeddings": 0},
            {"max_position_embeddings": 10**12},
            {"attention_bias": None},
            {"attention_bias": "yes"},
            {"tie_word_embeddings": "false"},
            {"use_cache": "yes"},
            {"attention_dropout": 7.0},
            {"layer_types": ["full_attention"]},
            {"layer_types": ["full_attention"] * 5},
            {"layer_types": ["evil"] * 3},
            {"layer_types": "full_attention"},
            {"pad_token_id": -5},
            {"pad_token_id": 64},
            {"eos_token_id": [1, 99_999]},
            {"eos_token_id": 1.5},
            {"bos_token_id": True},
            {"rope_theta": "x"},
            {"rope_theta": 0},
            {"rope_theta": -3.0},
            {"rope_parameters": [1]},
            {"rope_parameters": {"rope_type": "evil"}},
            {"rope_parameters": {"rope_type": ["linear"]}},
            {"rope_parameters": {"rope_type": "default", "rope_theta": "x"}},
            {"rope_parameters": {"rope_type": None}},
            {"rope_parameters": {"rope_theta": {}}},
            {"rope_parameters": {"rope_type": "linear"}},
            {"rope_parameters": {"rope_type": "linear", "factor": "x"}},
            {"rope_parameters": {"rope_type": "linear", "factor": 0.0}},
            {"rope_parameters": {"rope_type": "linear", "factor": NAN}},
            {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}},
            {"rope_parameters": {"rope_type": "yarn", "factor": 8.0, "beta_fast": "x"}},
            {
                "rope_parameters": {
                    "rope_type": "longrope",
                    "factor": 8.0,
                    "short_factor": [1.0] * 3,
                    "long_factor": [1.0],
                }
            },
            {"rope_scaling": {"type": "su", "factor": 2.0}},
            {"architectures": "LlamaForCausalLM"},
            {"architectures": [1]},
            {"num_labels": -3},
            {"num_labels": 10**9},
            {"num_labels": "x"},
            {"id2label": {"a": "x"}},
            {"per_layer_config": {"0": {"hidden_size": 3}}},
            {"hidden_size": True},
            {"head_dim": 0},
            {"head_dim": 7},
        )
    ),
    (LLAMA, {"rope_scaling": {"type": None}}, "rope_parameters"),
    (LLAMA, {"hidden_size": 10**9}, "embed"),
    (LLAMA, {"hidden_size": 10**30}, "embed"),
    (LLAMA, {"num_hidden_layers": 1_000_000}, "layer"),
    (LLAMA, {"model_type": ["llama"]}, "model_type|architecture"),
    (LLAMA, {"model_type": {"llama": 1}}, "model_type|architecture"),
    (LLAMA, {"model_type": 3}, "model_type|architecture"),
    (GPT2, {"activation_function": "gelu_newer"}, "activation_function"),
    (GPT2, {"hidden_size": 48}, "contradict"),
    (GPT2, {"num_hidden_layers": 4}, "contradict"),
    (GPT2, {"layer_norm_epsilon": 2.0}, "layer_norm_epsilon"),
    (GPT2, {"resid_pdrop": -0.1}, "resid_pdrop"),
    (VIT, {"pooler_act": "evil"}, "pooler_act"),
    (VIT, {"image_size": "12"}, "image_size"),
    (VIT, {"image_size": 10**6, "patch_size": 1}, "position"),
]


@pytest.mark.parametrize(("config", "fields", "named"), WRONG, ids=[json.dumps(w[1])[:60] for w in WRONG])
def test_a_configuration_that_makes_no_model_is_refused(config: Any, fields: dict[str, Any], named: str) -> None:
    check_configuration(config, "here")
    with pytest.raises(FamilyError, match=f"^here: .*({named.replace('_', '.')})"):
        check_configuration({**config, **fields}, "here")


@pytest.mark.parametrize("field", [*CODE, "_attn_implementation", "_name_or_path", "to_dict", "validate", "__class__"])
def test_what_chooses_code_never_reaches_transformers(field: str) -> None:
    built = transformers_config({**LLAMA, field: "evil/repository"})
    assert "evil" not in json.dumps({key: str(value) for key, value in vars(built).items()})
    assert "evil" not in str(built.to_dict())


def test_other_fields_reach_it_and_the_configuration_stays_as_it_was() -> None:
    config = {**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5.0, "my_field": [1]}
    before = json.dumps(config)
    built = transformers_config(config, use_cache=False)
    assert (built.rope_parameters["factor"], built.rope_parameters["rope_theta"], built.my_field) == (2.0, 5.0, [1])
    assert built.use_cache is False
    assert json.dumps(config) == before


def test_every_verb_refuses_it_before_it_reads_a_weight(make_pico: Callable[..., Any], tmp_path: Path) -> None:
    made = make_pico("llama")
    path = made.folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "hidden_act": "nope"}))
    (made.folder / "model.safetensors").write_bytes((made.folder / "model.safetensors").read_bytes()[:-4] + b"\xff" * 4)
    for url in (made.url, str(path), str(made.folder / "model.safetensors")):
        with pytest.raises(FamilyError, match=r"pico-0.*: config\.json: hidden_act is 'nope'"):
            open_source(url)


def test_a_target_that_transformers_refuses_is_refused_by_the_plan(make_pico: Callable[..., Any]) -> None:
    made = make_pico("gemma2")
    recipe = make_recipe({"source": made.url, "output": "o", "target": {"embed": 30}, "calibrate": {"text": ()}})
    with pytest.raises((FamilyError, PlanError), match=r"hidden.size|embed=30"):
        plan_transfer(recipe)


def test_a_default_of_the_class_says_nothing_of_the_vocabulary(make_pico: Any) -> None:
    made = make_pico("gpt2", bos_token_id=50256, eos_token_id=50256)
    assert open_source(made.url).config["bos_token_id"] == 50256
    made = make_pico("gpt2", bos_token_id=50255)
    with pytest.raises(FamilyError, match="bos_token_id is 50255"):
        open_source(made.url)
