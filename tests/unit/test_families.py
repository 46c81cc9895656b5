"""Every declaration against ``transformers``: names, shapes, and that the roles of the axes are what they say.

The roles are proved without planner or operators: copies along an axis are repeated where it is written, repeated and
divided by their number where it is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from bot_dist.errors import FamilyError, SourceError
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.model import FAMILIES, Model, Weight, model_of
from bot_dist.recipe.values import SIZES
from bot_dist.tensors import whole
from tests.conftest import PICOS, Pico, outputs
from tests.unit.test_formats_safetensors import assert_same, check, edit_tensors, read_all

PicoMaker = Callable[..., Pico]

BARE = {
    **{kind: {"kind": kind} for kind in PICOS},
    "tied llama": {"kind": "llama", "tie_word_embeddings": True},
    "llama with biases": {"kind": "llama", "attention_bias": True, "mlp_bias": True},
    "tied qwen2": {"kind": "qwen2", "tie_word_embeddings": True},
    "qwen3 with biases": {"kind": "qwen3", "attention_bias": True},
    "gemma with biases": {"kind": "gemma", "attention_bias": True},
    "untied gemma": {"kind": "gemma", "tie_word_embeddings": False},
    "untied gemma3": {"kind": "gemma3", "tie_word_embeddings": False, "attention_bias": True},
    "gemma2 without softcaps": {"kind": "gemma2", "attn_logit_softcapping": None, "final_logit_softcapping": None},
    "untied gpt2": {"kind": "gpt2", "tie_word_embeddings": False, "n_inner": 40},
    "sequential gpt_neox": {"kind": "gpt_neox", "use_parallel_residual": False, "attention_bias": False},
    "tied gpt_neox": {"kind": "gpt_neox", "tie_word_embeddings": True},
    "untied bert": {"kind": "bert", "tie_word_embeddings": False},
    "bert for pretraining": {"kind": "bert", "model_class": "BertForPreTraining"},
    "bert model": {"kind": "bert", "model_class": "BertModel"},
    "vit model": {"kind": "vit", "model_class": "ViTModel", "pooler_output_size": 10},
    "vit without biases": {"kind": "vit", "qkv_bias": False, "image_size": [12, 16], "patch_size": [4, 2]},
    "vit without classes": {"kind": "vit", "num_labels": 0},
    "deit for classes": {"kind": "deit", "model_class": "DeiTForImageClassification"},
    "deit model": {"kind": "deit", "model_class": "DeiTModel"},
}


@pytest.fixture(params=BARE)
def any_pico(request: pytest.FixtureRequest, make_pico: PicoMaker) -> PicoMaker:
    """Maker of every kind of model and variant."""
    return partial(make_pico, **BARE[request.param])


def of(made: Pico) -> Model:
    return model_of(open_source(made.url).config)


def load(folder: Path, like: Any) -> Any:
    model, info = type(like).from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


def test_names_and_shapes_are_those_of_transformers(any_pico: PicoMaker) -> None:
    made = any_pico()
    model, inside = of(made), dict(made.model.named_parameters())
    headless = made.model.base_model_prefix not in dict(made.model.named_children())
    prefix = model.family.optional_prefix if headless else ""
    shapes = {p.name.removeprefix(prefix): p.shape for _, _, p in model.parameters()}
    assert shapes == {name: tuple(tensor.shape) for name, tensor in made.tensors.items()}
    names = {model.inside[p.name].removeprefix(prefix): p.shape for _, _, p in model.parameters()}
    assert names == {name: tuple(tensor.shape) for name, tensor in inside.items()}
    assert model.n_parameters == sum(tensor.numel() for tensor in inside.values())
    assert model.family.architecture(model.config) == type(made.model).__name__
    assert model.tied == (model.head is not None and model.head.hf not in made.tensors)


def test_an_export_is_the_same_model(any_pico: PicoMaker, tmp_path: Path) -> None:
    made = any_pico()
    export_huggingface(open_source(made.url), str(tmp_path / "out"))
    before, after = outputs(made.model), outputs(load(tmp_path / "out", made.model))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def copies(model: Model, target: Model) -> dict[str, int]:
    return {axis: target.sizes[axis] // n for axis, n in model.sizes.items() if axis != "layer"}


def tied_factor(model: Model, c: int) -> float:
    """What the head would have been multiplied by, over what the table has been."""
    return 1 / c / (c**-0.5 if any(w.root_width for w in model.weights) else 1)


def grown(weight: Weight, tensor: torch.Tensor, model: Model, target: Model) -> torch.Tensor:
    """One layer's tensor, every unit copied as often as its axis has grown."""
    by = copies(model, target)
    unfused = tensor.reshape([model.sizes[use.axis] for use in weight.uses])
    if weight.query:
        softmax = by["head_dim"] ** -0.5
        axes = [use.axis for use in weight.uses]
        if "qkv" in axes:
            at = [3 if axis == "qkv" else 1 for axis in axes]
            unfused = unfused * torch.tensor([softmax, 1.0, 1.0]).reshape(at)
        else:
            unfused = unfused * softmax
    for dim, use in enumerate(weight.uses):
        if use.role == "fixed":
            assert by[use.axis] == 1, (weight.name, use.axis)
        unfused = unfused.repeat_interleave(by[use.axis], dim) / (by[use.axis] if use.role == "read" else 1)
    if weight.root_width:
        unfused = unfused / math.sqrt(by["embed"])
    if model.tied and weight.name in model.family.before_head:
        unfused = (unfused + weight.offset) * tied_factor(model, by["embed"]) - weight.offset
    return unfused


def deepened(weight: Weight, layer: int, model: Model, target: Model) -> tuple[int, bool]:
    """The source's layer that a target's layer is a copy of, and whether it speaks."""
    n, n_target = model.weight_layers(weight), target.weight_layers(weight)
    origin = layer * n // n_target
    group = [i for i in range(n_target) if i * n // n_target == origin]
    return origin, weight.speaking == "every" or layer == (group[0] if weight.speaking == "first" else group[-1])


def grow(made: Pico, folder: Path, **options: int) -> Any:
    """The model, every unit and block copied, as ``transformers`` loads it."""
    source = open_source(made.url)
    model = model_of(source.config)
    target = model.resized(options, "identity")
    tensors = {}
    for weight, layer, parameter in target.parameters():
        origin, speaks = deepened(weight, layer, model, target)
        read = model.parameter(weight, origin)
        tensor = grown(weight, source.read(read, whole(read.sizes)), model, target)
        tensors[parameter.name] = (tensor if speaks else torch.full_like(tensor, weight.silent)).reshape(
            parameter.shape
        )
    folder.mkdir()
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(target.config))
    return load(folder, made.model)


def assert_same_function(made: Pico, larger: Any, c: int = 1) -> None:
    """All outputs equal; those along the width, ``c`` copies of each."""
    before, after = outputs(made.model), outputs(larger)
    assert before.keys() == after.keys()
    for name, value in before.items():
        if after[name].shape != value.shape:
            value = value.repeat_interleave(c, -1)
        assert (after[name] - value).abs().max() < 1e-5 * value.abs().max(), name


def widths(model: Model, c: int) -> dict[str, int]:
    sizes = model.sizes
    heads = {"heads": c * sizes["heads"]} if "heads" in sizes else {"heads": c * sizes["kv_heads"] * sizes["group"]}
    kv_heads = {"kv_heads": c * sizes["kv_heads"]} if "kv_heads" in sizes else {}
    return {"embed": c * sizes["embed"], "mlp": c * sizes["mlp"], **heads, **kv_heads}


@pytest.mark.parametrize("c", [2, 3])
def test_copied_units_and_silent_blocks_keep_the_function(any_pico: PicoMaker, tmp_path: Path, c: int) -> None:
    made = any_pico()
    model = of(made)
    assert_same_function(made, grow(made, tmp_path / "both", **widths(model, c), layers=7), c)


def test_every_width_by_itself_keeps_the_function(any_pico: PicoMaker, tmp_path: Path) -> None:
    made = any_pico()
    model = of(made)
    for name, size in widths(model, 2).items():
        if name == "embed" and "heads" in model.sizes:
            continue
        options = {name: size}
        if name == "kv_heads":
            options["heads"] = 2 * model.sizes["kv_heads"] * model.sizes["group"]
        if name == "heads" and "heads" in model.sizes:
            options["embed"] = 2 * model.sizes["embed"]
        assert_same_function(made, grow(made, tmp_path / name, **options), 2)


@pytest.mark.parametrize("c", [2, 3])
def test_wider_heads_keep_the_function(any_pico: PicoMaker, tmp_path: Path, c: int) -> None:
    made = any_pico()
    model = of(made)
    options = {"head_dim": c * model.sizes["head_dim"], "embed": c * model.sizes["embed"]}
    if "head_dim" in model.family.resizable:
        assert_same_function(made, grow(made, tmp_path / "wider", **options), c)
    else:
        with pytest.raises(FamilyError, match=r"head_dim=.* keeps it: rotary positions turn its coordinates in pairs"):
            model.resized(options)


@pytest.mark.parametrize("kind", ["gpt2", "bert"])
def test_the_context_is_a_table_that_may_change(make_pico: PicoMaker, tmp_path: Path, kind: str) -> None:
    made = make_pico(kind)
    longer = grow(made, tmp_path / "longer", context=64)
    assert longer.config.max_position_embeddings == 64
    assert of(made).resized({"context": 16}).sizes["position"] == 16


@pytest.mark.parametrize("kind", ["gpt_neox", "gemma", "llama", "vit"])
def test_where_there_is_no_table_to_change_it_is_said(make_pico: PicoMaker, kind: str) -> None:
    with pytest.raises(FamilyError, match=f"target context=64: family '{kind}' keeps it: "):
        of(make_pico(kind)).resized({"context": 64})


def test_a_recipe_knows_every_size_that_a_family_has_by_name() -> None:
    assert {*SIZES} == {name for family in FAMILIES.values() for name in (*family.resizable, *family.fixed)}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_declaration_is_consistent(name: str) -> None:
    family = FAMILIES[name]
    weights = (*family.weights, *([family.head] if family.head else ()))
    assert family.name == name
    assert len({w.name for w in weights}) == len(weights)
    assert len({w.hf for w in weights}) == len(weights)
    for weight in weights:
        assert (weight.kind == "vector") == (sum(map(len, weight.dims)) == 1 or weight.hf.endswith(".bias")) or (
            weight.kind == "table"
        )
        if weight.into_residual:
            assert "embed" in {use.axis for use in weight.uses if use.role in ("write", "pointwise")}
        if weight.speaks or weight.silent != weight.neutral:
            assert weight.layered
    assert {*family.before_head} <= {w.name for w in weights}
    assert not family.resizable.keys() & family.fixed.keys()
    assert (family.head is None) == (family.objective == "image")


def test_silent_and_neutral_values_are_the_models_factors() -> None:
    values = {w.name: (w.neutral, w.silent) for w in FAMILIES["gemma2"].weights}
    assert values["attn.norm"] == (0, 0)
    assert values["attn.out.norm"] == (0, -1)
    assert values["attn.out"] == (0, 0)
    values = {w.name: (w.neutral, w.silent) for w in FAMILIES["bert"].weights}
    assert values["mlp.norm.weight"] == (1, 1)
    assert values["mlp.norm.bias"] == (0, 0)


def test_flops_are_two_per_multiplication_of_a_token(any_pico: PicoMaker) -> None:
    """Counted by torch on one sequence; embeddings are looked up."""
    from torch.utils.flop_counter import FlopCounterMode

    made = any_pico()
    made.model.set_attn_implementation("eager")
    model = of(made)
    with FlopCounterMode(display=False) as counter:
        result = outputs(made.model)
    tokens = model.sizes["position"] if made.model.main_input_name == "pixel_values" else 20
    counted = counter.get_total_flops() / 2 / tokens
    found = model.flops_per_token(tokens)
    if made.model.main_input_name == "pixel_values":
        patch = next(model.parameter(w).size for w in model.weights if w.name == "patch.weight")
        special = {"vit": 1, "deit": 2}[model.family.name]
        found -= 2 * patch * special / tokens
    assert result
    assert found == pytest.approx(counted, rel=2e-3)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        (
            "llama",
            {"model_type": "mixtral"},
            "architecture 'mixtral' is not known: every expert is a tensor of its own",
        ),
        ("llama", {"model_type": "gemma3"}, "'gemma3' is not known: it has a vision tower; save its language model"),
        ("llama", {"model_type": "gpt_neo"}, "unknown architecture 'gpt_neo'; did you mean 'gpt_neox'"),
        ("llama", {"quantization_config": {"quant_method": "gptq"}}, r"quant_method='gptq'.*dequantise them first"),
        ("llama", {"hidden_size": 25, "head_dim": None}, "no head_dim, and hidden_size=25 is not divisible by 4"),
        ("llama", {"num_key_value_heads": 3}, "num_attention_heads=4 is not divisible by num_key_value_heads=3"),
        ("llama", {"intermediate_size": None}, "'llama' needs the field 'intermediate_size'"),
        ("gpt2", {"add_cross_attention": True}, "'gpt2' does not express add_cross_attention=true; use .*=false"),
        ("gpt2", {"n_head": 5}, "n_embd=24 is not divisible by n_head=5"),
        ("gpt_neox", {"head_dim": 16}, "head_dim=16, but .* hidden_size / num_attention_heads = 8"),
        ("gemma", {"use_bidirectional_attention": True}, "'gemma' does not express use_bidirectional_attention=true"),
        ("gemma3", {"use_bidirectional_attention": True}, "'gemma2' does not express use_bidirectional_attention=true"),
        ("bert", {"is_decoder": True}, "'bert' does not express is_decoder=true"),
        ("bert", {"add_cross_attention": True}, "'bert' does not express add_cross_attention=true"),
        ("bert", {"position_embedding_type": "relative_key"}, "position_embedding_type='relative_key'; .*='absolute'"),
        ("bert", {"architectures": ["BertForTokenClassification"]}, r"does not express architectures=\['BertForToken"),
        ("vit", {"architectures": ["ViTForMaskedImageModeling"]}, "load the model as one of ViTForImageClassification"),
        ("vit", {"patch_size": [4, 0]}, "patch_size=0; family 'vit' needs a positive integer"),
    ],
)
def test_what_a_family_does_not_express_is_named(
    make_pico: PicoMaker, kind: str, changes: dict[str, Any], message: str
) -> None:
    made = make_pico(kind)
    config = json.loads((made.folder / "config.json").read_text()) | changes
    with pytest.raises(FamilyError, match=message):
        assert list(model_of(config).parameters())


@pytest.mark.parametrize("kind", ["bert", "vit", "deit"])
def test_without_architectures_it_is_the_class_that_is_pretrained(make_pico: PicoMaker, kind: str) -> None:
    config = json.loads((make_pico(kind).folder / "config.json").read_text())
    del config["architectures"]
    assert model_of(config).n_parameters


@pytest.mark.parametrize(
    ("kind", "options", "message"),
    [
        ("llama", {"heads": 5}, "target heads=5 is not divisible by kv_heads=2; set target.heads=4, which"),
        ("llama", {"vocab": 80}, "target vocab=80: family 'llama' keeps it: the vocabulary belongs to the tokenizer"),
        ("llama", {"hidden": 48}, "target option 'hidden' does not exist in family 'llama'"),
        ("gpt2", {"embed": 48}, "embed=48 is not heads × head_dim = 3 × 8, .* set target.embed=24 or target.heads=6"),
        (
            "gpt2",
            {"embed": 36},
            "set target.embed=24 or target.embed=32 target.heads=4 or target.embed=40 target.heads=5",
        ),
        (
            "bert",
            {"head_dim": 16},
            "embed=24 is not heads × head_dim = 3 × 16.* set target.embed=48 or target.embed=16 target.heads=1",
        ),
        ("vit", {"heads": 5}, "embed=24 is not heads × head_dim = 5 × 8, .* set target.embed=40 or target.heads=3"),
        (
            "gpt_neox",
            {"heads": 6},
            "embed=24 is not heads × head_dim = 6 × 8, .* set target.embed=48 or target.heads=3",
        ),
        ("gemma2", {"embed": 30}, "embed=30 is not divisible by heads=4, .* set target.embed=28 or 32"),
        ("gemma3", {"embed": 3}, "hidden_size in gemma3_text; set target.embed=4"),
    ],
)
def test_an_impossible_target_names_the_nearest_that_work(
    make_pico: PicoMaker, kind: str, options: dict[str, int], message: str
) -> None:
    with pytest.raises(FamilyError, match=message):
        of(make_pico(kind)).resized(options)


@pytest.mark.parametrize(
    ("config", "options", "field"),
    [
        ({"scale_attn_by_inverse_layer_idx": True}, {"layers": 6}, "scale_attn_by_inverse_layer_idx=true"),
        ({"scale_attn_weights": False}, {"head_dim": 16, "embed": 48}, "scale_attn_weights=false"),
    ],
)
def test_a_softmax_scale_of_its_own_is_not_followed(
    make_pico: PicoMaker, tmp_path: Path, config: dict[str, bool], options: dict[str, int], field: str
) -> None:
    made = make_pico("gpt2", **config)
    with pytest.raises(FamilyError, match=field):
        of(made).resized(options)
    assert_same_function(made, grow(made, tmp_path / "wide", embed=48, heads=6), 2)


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("gemma2", {}),
        ("gemma3", {"sliding_window_pattern": 2}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 6, "max_window_layers": 2}),
    ],
)
def test_windows_follow_their_blocks(make_pico: PicoMaker, tmp_path: Path, kind: str, config: dict[str, Any]) -> None:
    made = make_pico(kind, layer_types=None, **config)
    path = made.folder / "config.json"
    saved = json.loads(path.read_text())
    windows = saved.pop("layer_types")
    assert len(set(windows)) == 2
    path.write_text(json.dumps(saved | config))
    larger = grow(made, tmp_path / "deep", layers=6)
    assert larger.config.layer_types == [w for w in windows for _ in range(2)]
    assert_same_function(made, larger)
    stacked = of(made).resized({"layers": 6}, "stack")
    assert stacked.config["layer_types"] == windows * 2


def edited(made: Pico, edit: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Pico:
    edit_tensors(made.folder, edit)
    return made


def assert_read(made: Pico) -> None:
    check(made)
    assert_same(read_all(open_source(made.url)), made.tensors)


def test_published_bert_has_more_heads_and_older_names(pico_bert: PicoMaker) -> None:
    """As google-bert/bert-base-uncased: BertForMaskedLM with pooler, NSP head and the tied copies."""

    def published(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        old = {
            name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): tensor
            for name, tensor in tensors.items()
        }
        return old | {
            "bert.embeddings.position_ids": torch.arange(32)[None],
            "bert.pooler.dense.weight": torch.ones(24, 24),
            "bert.pooler.dense.bias": torch.ones(24),
            "cls.seq_relationship.weight": torch.ones(2, 24),
            "cls.seq_relationship.bias": torch.ones(2),
            "cls.predictions.decoder.weight": tensors["bert.embeddings.word_embeddings.weight"].clone(),
            "cls.predictions.decoder.bias": tensors["cls.predictions.bias"].clone(),
        }

    assert_read(edited(pico_bert(), published))


@pytest.mark.parametrize(
    ("kind", "prefix"), [("gpt2", "transformer."), ("gpt_neox", "gpt_neox."), ("bert", "bert."), ("vit", "vit.")]
)
def test_the_prefix_may_be_left_out(make_pico: PicoMaker, kind: str, prefix: str) -> None:
    made = make_pico(kind)
    assert_read(edited(made, lambda tensors: {name.removeprefix(prefix): t for name, t in tensors.items()}))


def test_another_models_head_is_not_left_out_silently(pico_vit: PicoMaker) -> None:
    made = edited(pico_vit(), lambda tensors: {**tensors, "decoder.0.weight": torch.ones(3, 24, 1, 1)})
    with pytest.raises(SourceError, match=r"unexpected tensor 'decoder\.0\.weight'"):
        check(made)


@pytest.mark.parametrize("kind", ["bert", "gemma", "gpt_neox"])
def test_a_tied_models_copy_of_the_table_is_passed_over(make_pico: PicoMaker, kind: str) -> None:
    made = make_pico(kind, tie_word_embeddings=True)
    model = of(made)
    assert model.head is not None
    head, table = model.head.hf, next(w.hf for w in model.weights if w.name == "embed")
    assert_read(edited(made, lambda tensors: {**tensors, head: tensors[table].clone()}))
