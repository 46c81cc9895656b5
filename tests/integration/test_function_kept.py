"""What a plan says of the source's function is what is measured, for every family."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bot_dist
from bot_dist.errors import PlanError
from bot_dist.execute.lazy_source import TransformedSource
from bot_dist.model import Model, model_of
from bot_dist.pipeline.planning import Planning
from bot_dist.plan import FunctionKept
from bot_dist.tensors import whole
from tests.conftest import VARIANTS, outputs

Factory = Callable[..., Any]

EXACT = 2e-6
"""Of the largest difference of a logit over the largest: RMSNorm computes in float32, in a model of float64 too."""


def wider(model: Model, ratio: float) -> dict[str, int]:
    """Target options that multiply all widths, those of heads by a whole number of them."""
    now, by_heads = model.sizes, "heads" in model.sizes
    heads = round(now["heads" if by_heads else "kv_heads"] * ratio)
    target = {"mlp": round(now["mlp"] * ratio), "heads": heads * now.get("group", 1)}
    return target | ({"embed": heads * now["head_dim"]} if by_heads else {"kv_heads": heads, "embed": 36})


def units(model: Model, n: int) -> dict[str, int]:
    return {"mlp": model.sizes["mlp"] + n}


CASES: dict[str, tuple[Callable[[Model], dict[str, int]], dict[str, Any], str]] = {
    "nothing": (lambda m: {}, {}, "exactly$"),
    "four times": (lambda m: {**wider(m, 4), "embed": 4 * m.sizes["embed"]}, {"noise": 0}, "exactly$"),
    "twice": (lambda m: {**wider(m, 2), "embed": 2 * m.sizes["embed"]}, {}, r"up to rounding \(.*noise . on copies in"),
    "thrice": (lambda m: {**wider(m, 3), "embed": 3 * m.sizes["embed"]}, {"noise": 0}, r"up to rounding \(factors in"),
    "off integers": (lambda m: wider(m, 1.5), {}, r"up to rounding \(factors in"),
    "averaged": (
        lambda m: wider(m, 1.5),
        {"width": "resample"},
        "not, because .*; 'mlp' .* is averaged, for it is no multiple$",
    ),
    "another wavelet": (lambda m: units(m, m.sizes["mlp"]), {"wavelet": "db2"}, "not, because 'mlp' .* by db2$"),
    "the paper's gain": (lambda m: units(m, m.sizes["mlp"]), {"gain": "orthonormal"}, "not, because .* orthonormal"),
    "silent units": (lambda m: units(m, 3), {"width": "lazy"}, "exactly$"),
    "inserted blocks": (lambda m: {"layers": 4}, {}, "exactly$"),
    "stacked blocks": (lambda m: {"layers": 4}, {"depth": "stack"}, "not, because 'layer' 3 → 4: blocks are stacked$"),
    "resampled blocks": (lambda m: {"layers": 4}, {"depth": "wavelet"}, "not, .*: blocks are resampled by haar$"),
    "more and fewer": (lambda m: {**units(m, 8), "layers": 2}, {}, "not, because 'layer' 3 → 2 shrinks$"),
}
"""What becomes of a model's sizes, how, and what is said of its function."""


def said_of(name: str, variant: str) -> str:
    if name == "off integers" and variant in ("gpt2", "gpt_neox", "bert", "vit", "deit"):
        return "not, because 'embed' .*: copies shift LayerNorm's mean a little, unless at multiples of 24$"
    return CASES[name][2]


def loaded(planning: Planning, like: Any) -> Any:
    """The model that a plan makes, in float64."""
    plan, config = planning.draft, like.config
    made = type(like)(type(config)(**{**config.to_dict(), **plan.target.config})).double()
    source = TransformedSource(plan, planning.source)
    values = [source.read(p, whole(p.sizes)).reshape(p.shape).double() for _, _, p in plan.target.parameters()]
    found = made.load_state_dict(dict(zip(plan.target.inside.values(), values, strict=True)), strict=False)
    assert not found.unexpected_keys
    made.tie_weights()
    return made


def measured(made: Any, folder: Path) -> Iterator[tuple[str, FunctionKept, float]]:
    """Of every case: what the plan says, and the largest difference of a logit over the largest."""
    model, before = model_of(made.model.config.to_dict()), None
    for name, (target, options, _) in CASES.items():
        recipe = {"source": made.url, "output": str(folder), "target": target(model), "transfer": options}
        planning = Planning(bot_dist.make_recipe(recipe))
        after = outputs(loaded(planning, made.model))["logits"]
        before = after if before is None else before
        said = planning.draft.function_kept
        assert said is not None
        yield name, said, ((after - before).abs().max() / before.abs().max()).item()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_a_plan_says_of_the_function_is_measured(variant: str, tmp_path: Path, make_pico: Factory) -> None:
    for name, said, found in measured(make_pico(**VARIANTS[variant]), tmp_path):
        assert re.match(said_of(name, variant), str(said)), (name, said)
        if said.verdict == "not":
            assert found > 1e-3, (name, said, found)
        else:
            assert found < (EXACT if said.verdict == "exactly" else 2e-5), (name, said, found)


@pytest.mark.parametrize("variant", ["tied llama", "gemma", "gpt_neox"])
def test_bfloat16_keeps_the_function_up_to_its_rounding(variant: str, tmp_path: Path, make_pico: Factory) -> None:
    for name, said, found in measured(make_pico(**VARIANTS[variant], dtype=torch.bfloat16), tmp_path):
        assert re.match(said_of(name, variant), str(said)), (name, said)
        if said.verdict != "not":
            assert found < (EXACT if said.verdict == "exactly" else 0.1), (name, said, found)


SHARED = {variant: VARIANTS[variant] for variant in ("tied llama", "qwen3", "gemma", "gemma2", "gemma3")}
"""Whose query heads share key/value heads."""
OTHER_HEADS: list[tuple[dict[str, int], dict[str, Any], str]] = [
    ({"kv_heads": 4}, {}, "exactly$"),
    ({"kv_heads": 4, "layers": 4}, {"width": "lazy"}, "exactly$"),
    ({"kv_heads": 4, "embed": 48}, {}, "up to rounding"),
    ({"kv_heads": 1}, {}, "not, because 'kv_heads' 2 → 1 shrinks$"),
]


@pytest.mark.parametrize("variant", SHARED)
def test_query_heads_that_come_to_share_other_key_value_heads_stay(
    variant: str, tmp_path: Path, make_pico: Factory
) -> None:
    made = make_pico(**SHARED[variant])
    before = outputs(made.model.double())["logits"]
    for target, options, verdict in OTHER_HEADS:
        recipe = {"source": made.url, "output": str(tmp_path), "target": target, "transfer": options}
        planning = Planning(bot_dist.make_recipe(recipe))
        model = loaded(planning, made.model)
        assert re.match(verdict, said := str(planning.draft.function_kept)), (target, said)
        assert any("all 4 query heads stay" in note for note in planning.draft.notes)
        if verdict.startswith("not"):
            attention = model.model.layers[1].self_attn
            mean = made.model.model.layers[1].self_attn.k_proj.weight.unflatten(0, (2, -1)).mean(0)
            assert torch.allclose(attention.k_proj.weight.float(), mean.float(), atol=1e-6)
            assert torch.equal(attention.q_proj.weight, made.model.model.layers[1].self_attn.q_proj.weight)
            continue
        found = ((outputs(model)["logits"] - before).abs().max() / before.abs().max()).item()
        assert found < (EXACT if verdict == "exactly$" else 2e-5), (target, found)


@pytest.mark.parametrize(
    ("target", "way_out"),
    [
        ({"heads": 8, "kv_heads": 8}, "first target.heads=8 target.kv_heads=4, which keep 2 per key/value head"),
        ({"heads": 3, "kv_heads": 3}, "set target.heads=4"),
    ],
)
def test_heads_that_change_in_number_and_in_groups_are_refused(
    target: dict[str, int], way_out: str, tmp_path: Path, make_pico: Factory
) -> None:
    recipe = {"source": make_pico("llama").url, "output": str(tmp_path), "target": target}
    with pytest.raises(PlanError, match=way_out):
        _ = Planning(bot_dist.make_recipe(recipe)).draft


def test_key_value_heads_that_no_query_head_could_keep_are_refused(tmp_path: Path, make_pico: Factory) -> None:
    made = make_pico("llama", num_attention_heads=12, num_key_value_heads=4, hidden_size=24)
    recipe = {"source": made.url, "output": str(tmp_path), "target": {"kv_heads": 6}}
    with pytest.raises(PlanError, match=r"kv_heads=6, from 4: .* set target.kv_heads=1 or 2 or 4 or 12$"):
        _ = Planning(bot_dist.make_recipe(recipe)).draft
