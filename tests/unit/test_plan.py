"""Plans are pure: no weight, no Ray, no storage is needed to know what a transfer does."""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
from typing import Any

import pytest

from bot_dist.errors import FamilyError, PlanError, RecipeError
from bot_dist.model import Model, model_of
from bot_dist.operators import Copy, FittedLifting, OperatorSpec, Resample
from bot_dist.plan import ModulePlan, OperatorTable, SourceModule, TransferPlan, make_plan, summarise, target_model
from bot_dist.recipe import PRESETS, TransferConfig, make_recipe
from bot_dist.tensors import Mesh, box_size

SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "num_hidden_layers": 30,
    "intermediate_size": 1536,
    "vocab_size": 49152,
    "head_dim": 64,
    "tie_word_embeddings": True,
}
GPT2 = {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "vocab_size": 50257, "n_positions": 1024}
BERT = {
    "model_type": "bert",
    "architectures": ["BertForMaskedLM"],
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 2,
    "intermediate_size": 128,
    "vocab_size": 100,
    "max_position_embeddings": 32,
    "type_vocab_size": 2,
}
HALF = {"layers": 15, "embed": 288, "mlp": 768}
DOUBLE = {"embed": 1152, "mlp": 3072, "heads": 18, "kv_heads": 6}
THIRD = {"embed": 768, "mlp": 2048, "heads": 12, "kv_heads": 4}
"""A third larger."""


def modules_of(model: Model, dtype: str = "float32") -> dict[str, SourceModule]:
    return {
        w.name: SourceModule(nbytes=4 * model.weight_layers(w) * model.parameter(w).size, dtype=dtype)
        for w in model.weights
    }


def planned(
    config: dict[str, Any],
    target: dict[str, int],
    mesh: Mesh | None = None,
    *,
    fitted: OperatorTable | None = None,
    whole_rows: bool = False,
    optimizer_step: int | None = None,
    **transfer: Any,
) -> TransferPlan:
    model, options = model_of(config), TransferConfig(**transfer)
    return make_plan(
        model,
        target_model(model, target, options),
        options,
        mesh or Mesh(tensor=2),
        modules=modules_of(model),
        source_id="test",
        whole_rows=whole_rows,
        fitted=fitted,
        optimizer_step=optimizer_step,
    )


def module_of(plan: TransferPlan, name: str) -> ModulePlan:
    return next(m for m in plan.modules if m.name == name)


def row_sums(plan: TransferPlan, name: str) -> dict[str, float]:
    return {a.axis: a.spec.gain for a in module_of(plan, name).axes if a.n_source != a.n_target}


def scales(plan: TransferPlan) -> dict[str, float]:
    return {m.weight.name: m.scale for m in plan.modules if m.scale != 1}


def test_parameters_of_the_real_model() -> None:
    assert model_of(SMOLLM2).n_parameters == 134_515_008
    assert model_of(SMOLLM2).resized(HALF).n_parameters == 30_753_504
    assert model_of(GPT2).n_parameters == 124_439_808


def test_flops_are_two_per_multiply_add() -> None:
    model = model_of({**SMOLLM2, "num_hidden_layers": 1})
    matrices = 576 * 576 * 2 + 576 * 192 * 2 + 3 * 576 * 1536
    assert model.flops_per_token(100) == 2 * (matrices + 49152 * 576 + 2 * 576 * 100)


def test_measure_gain() -> None:
    plan = planned(SMOLLM2, {**DOUBLE, "layers": 60}, gain="measure", depth="wavelet")
    assert row_sums(plan, "attn.q") == {"layer": 1, "kv_heads": 1, "embed": 0.5}
    assert row_sums(plan, "attn.out") == {"layer": 0.5, "embed": 1, "kv_heads": 0.5}
    assert row_sums(plan, "attn.norm") == {"layer": 1, "embed": 1}
    assert scales(plan) == {"norm": 0.5}


def test_orthonormal_gain() -> None:
    root = math.sqrt(2)
    plan = planned(SMOLLM2, HALF, gain="orthonormal")
    assert row_sums(plan, "mlp.down") == pytest.approx({"layer": root, "embed": root, "mlp": root})
    assert row_sums(plan, "mlp.norm") == {"layer": 1, "embed": 1}
    assert scales(plan) == {}


def test_auto_gain_is_decided_axis_by_axis() -> None:
    plan = planned(SMOLLM2, {"embed": 1152, "mlp": 768})
    assert row_sums(plan, "mlp.up") == pytest.approx({"mlp": math.sqrt(2), "embed": 0.5})
    assert scales(plan) == {"norm": 0.5}


def test_an_untied_head_reads_and_needs_no_factor() -> None:
    plan = planned({**SMOLLM2, "tie_word_embeddings": False}, DOUBLE)
    assert row_sums(plan, "head") == {"embed": 0.5}
    assert scales(plan) == {}


def test_gpt2_norm_before_the_tied_head_takes_the_factor_whole() -> None:
    assert scales(planned(GPT2, {"embed": 1536, "heads": 24})) == {"norm.weight": 0.5, "norm.bias": 0.5}


def test_identity_depth_silences_inserted_blocks() -> None:
    plan = planned(SMOLLM2, {"layers": 60}, depth="identity")
    for module in plan.modules:
        if module.layered:
            assert module.axes[0].spec.speaks == ("first" if module.weight.into_residual else "every")
            assert module.axes[0].spec.gain == 1


def test_a_plan_names_the_blocks_that_identity_depth_puts_in() -> None:
    plan = planned(SMOLLM2, {"layers": 40}, depth="identity")
    assert plan.inserted_layers == plan.to_json()["inserted_layers"] == tuple(range(1, 40, 4))
    assert planned(BERT, {"layers": 5}, depth="identity").inserted_layers == (1, 2, 4)
    for depth in ("wavelet", "stack", "interpolate"):
        assert planned(SMOLLM2, {"layers": 40}, depth=depth).inserted_layers == ()
    assert planned(SMOLLM2, {"embed": 1152}, depth="identity").inserted_layers == ()


@pytest.mark.parametrize("mesh", [Mesh(), Mesh(tensor=2), Mesh(tensor=3), Mesh(tensor=2, data=3)])
@pytest.mark.parametrize("memory_limit", [2**20, 2**24, 2**30])
@pytest.mark.parametrize(("config", "target"), [(SMOLLM2, HALF), (SMOLLM2, DOUBLE), (GPT2, {"layers": 6, "mlp": 1536})])
def test_every_element_is_written_once_within_the_limit(
    config: dict[str, Any], target: dict[str, int], mesh: Mesh, memory_limit: int
) -> None:
    plan = planned(config, target, mesh, memory_limit=memory_limit)
    plan.validate()
    summary = summarise(plan, 128)
    assert max(summary.actor_peak) <= memory_limit
    assert summary.bytes_written == 4 * plan.target.n_parameters
    # a tile of one index along an axis that doubles reads a source index that its neighbour reads too
    assert 0.999 <= summary.bytes_read / (4 * plan.source.n_parameters) <= 1.2
    assert summary.n_target == sum(box_size(s.target) for s in plan.steps())
    ids = [s.id for s in plan.steps()]
    assert len(set(ids)) == len(ids)


def test_sources_of_whole_rows_read_them_once() -> None:
    """However the target's rows are cut: a step fills the shards of several ranks then."""
    sizes = {name: module.nbytes for name, module in modules_of(model_of(SMOLLM2)).items()}
    read = [
        {row.name: row.bytes_read for row in summarise(planned(SMOLLM2, {}, Mesh(tensor=3), whole_rows=rows), 128).rows}
        for rows in (False, True)
    ]
    assert read == [sizes, sizes]
    cut, whole = (
        next(m for m in planned(SMOLLM2, {}, Mesh(tensor=3), whole_rows=rows).modules if m.name == "mlp.down")
        for rows in (False, True)
    )
    assert cut.shard[-1] == whole.shard[-1] == 512
    assert (cut.axes[-1].tile, whole.axes[-1].tile) == (512, 1536)


def test_biases_keep_the_measure_gain() -> None:
    plan = planned(GPT2, {"layers": 6}, gain="orthonormal")
    assert row_sums(plan, "mlp.down.bias") == {"layer": 2}
    assert row_sums(plan, "mlp.up.bias") == {"layer": 1}


def test_identity_depth_keeps_the_energy() -> None:
    plan = planned(SMOLLM2, {"layers": 60}, depth="identity")
    gains = {m.weight.name: m.energy_gain for m in plan.modules if m.layered}
    assert gains == pytest.approx({n: 1 if n in ("attn.out", "mlp.down") else 2 for n in gains})


@pytest.mark.parametrize("wavelet", [{"embd": "db2"}, {"heads": "haar"}])
def test_wavelets_for_axes_that_do_not_exist(wavelet: dict[str, str]) -> None:
    with pytest.raises(RecipeError, match="family 'llama' has no axis"):
        planned(SMOLLM2, HALF, wavelet=wavelet)
    with pytest.raises(RecipeError, match=r"transfer\.width: family 'llama' has no axis 'ffn'"):
        planned(SMOLLM2, DOUBLE, width={"ffn": "copy"})
    with pytest.raises(RecipeError, match=r"no axis 'layer' to choose for.*transfer\.depth"):
        planned(SMOLLM2, DOUBLE, width={"layer": "copy"})
    with pytest.raises(RecipeError, match="unknown wavelet 'nonsense'"):
        planned(SMOLLM2, {}, wavelet="nonsense")


def test_long_filters_read_a_halo() -> None:
    haar, bior = (summarise(planned(SMOLLM2, HALF, wavelet=w), 128).bytes_read for w in ("haar", "bior6.8"))
    assert haar < bior < 1.4 * haar


def test_wavelets_per_axis() -> None:
    plan = planned(SMOLLM2, HALF, wavelet={"embed": "db2"})
    assert [a.spec.wavelet for a in module_of(plan, "mlp.up").axes] == ["haar", "haar", "db2"]


def test_wavelets_per_kind_of_module() -> None:
    plan = planned(SMOLLM2, HALF, wavelet={"embed": "db2", "mlp:embed": "db3", "mlp.down:embed": "db4"})
    found = {name: module_of(plan, name).axes[-1 if name != "mlp.down" else 1].spec.wavelet for name in WAVELETS}
    assert found == WAVELETS


WAVELETS = {"attn.q": "db2", "mlp.up": "db3", "mlp.down": "db4", "embed": "db2"}


def test_presets_are_the_ablation_of_the_paper() -> None:
    config = TransferConfig.model_validate({"preset": "paper-gpt-l2s", "depth": "even"})
    assert (config.wavelet, config.gain, config.depth) == ("coif3", "orthonormal", "even")
    assert set(PRESETS) == {"paper-bert-l2s", "paper-bert-s2l", "paper-gpt-l2s", "paper-gpt-s2l"}
    with pytest.raises(RecipeError, match=r"unknown preset \['a'\]"):
        make_recipe({"source": "a", "output": "b"}, {"transfer.preset": ["a"]})
    with pytest.raises(RecipeError, match="unknown preset 'paper-gpt-s3l'; did you mean 'paper-gpt-s2l'"):
        make_recipe({"source": "a", "output": "b"}, {"transfer.preset": "paper-gpt-s3l"})


def test_copies_of_the_residual_width_keep_its_root_mean_square() -> None:
    plan = planned(SMOLLM2, THIRD, width="copy")
    specs = {name: {a.axis: a.spec for a in module_of(plan, name).axes} for name in ("mlp.up", "mlp.down", "mlp.norm")}
    assert (specs["mlp.up"]["embed"].gain, specs["mlp.up"]["embed"].split) == (math.sqrt(3 / 4), 0.5)
    assert (specs["mlp.down"]["embed"].gain, specs["mlp.down"]["embed"].split) == (math.sqrt(4 / 3), 0.5)
    assert (specs["mlp.norm"]["embed"].gain, specs["mlp.norm"]["embed"].split) == (1, 0)
    assert [specs[name]["mlp"].split for name in ("mlp.up", "mlp.down")] == [0, 1]
    assert scales(plan) == {"norm": 0.75}


def test_axes_that_shrink_are_resampled_where_others_are_copied() -> None:
    plan = planned(SMOLLM2, {"heads": 12, "kv_heads": 4, "embed": 768, "mlp": 1024}, width="copy")
    assert [type(a.spec) for a in module_of(plan, "mlp.up").axes[1:]] == [Resample, Copy]


def test_learning_rate_factors_follow_what_is_summed_over() -> None:
    plan = planned(SMOLLM2, {**DOUBLE, "layers": 60}, depth="wavelet")
    factors = {m.name: m.learning_rate_factor for m in plan.modules}
    assert factors == {
        **dict.fromkeys(("attn.q", "attn.k", "attn.v", "mlp.gate", "mlp.up"), 0.5),
        **dict.fromkeys(("attn.out", "mlp.down"), 0.25),  # shorter steps of twice the layers
        **dict.fromkeys(("embed", "attn.norm", "mlp.norm", "norm"), 1.0),
    }
    deep = planned(SMOLLM2, {"layers": 60}, depth="identity")
    assert {m.learning_rate_factor for m in deep.modules} == {1.0}


def test_growing_inserts_blocks_and_tells_copies_apart_unless_a_wavelet_or_the_papers_gain_is_asked_for() -> None:
    larger = {**DOUBLE, "layers": 60}
    plan = planned(SMOLLM2, larger)
    assert len(plan.inserted_layers) == 30
    assert {m.name: m.noise for m in plan.modules} == {m.name: 3.0 * (m.weight.kind == "matrix") for m in plan.modules}
    for literal in ({"gain": "orthonormal"}, {"wavelet": "db2"}, {"preset": "paper-gpt-s2l", "wavelet": "haar"}):
        plan = planned(SMOLLM2, larger, **literal)
        assert not plan.inserted_layers
        assert {m.noise for m in plan.modules} == {0}
    for silent in (planned(SMOLLM2, larger, noise=0), planned(SMOLLM2, {"layers": 60}), planned(SMOLLM2, HALF)):
        assert {m.noise for m in silent.modules} == {0}


def test_copies_are_told_apart_where_they_are_read_and_the_residual_streams_stay_alike() -> None:
    copies = {m.name: {a.axis: a.copies for a in m.axes if a.copies} for m in planned(SMOLLM2, DOUBLE).modules}
    assert copies["mlp.up"] == {"embed": "apart"}
    assert copies["mlp.down"] == {"embed": "alike", "mlp": "apart"}


def test_a_weight_with_one_axis_twice_reads_it_once() -> None:
    plan = planned(BERT, {"embed": 128, "heads": 8})
    factors = {m.name: m.learning_rate_factor for m in plan.modules}
    assert factors["head.transform.weight"] == factors["attn.q.weight"] == 0.5
    assert module_of(plan, "head.transform.weight").described() == {"embed": "haar ×1, haar ×0.5"}


def test_a_plan_says_what_becomes_of_the_function() -> None:
    def said(config: dict[str, Any], target: dict[str, int], held: str = "float32", **options: Any) -> str:
        model, transfer = model_of(config), TransferConfig(**options)
        grown = target_model(model, target, transfer)
        plan = make_plan(model, grown, transfer, Mesh(), modules=modules_of(model, held), source_id="test")
        assert plan.to_json()["function_kept"] == str(plan.function_kept)
        return str(plan.function_kept)

    assert said(SMOLLM2, {}) == said(SMOLLM2, {"layers": 40}) == said(SMOLLM2, DOUBLE, noise=0) == "exactly"
    assert said(SMOLLM2, {}, "float16") == "exactly"
    assert said(SMOLLM2, {}, dtype="bfloat16") == "up to rounding (float32 becomes bfloat16)"
    assert said(SMOLLM2, DOUBLE) == "up to rounding (noise 3 on copies in float32)"
    assert said(SMOLLM2, DOUBLE, "bfloat16") == "up to rounding (noise 1 on copies in bfloat16)"
    assert said(SMOLLM2, THIRD, noise=0) == "up to rounding (factors in float32)"
    shrinks = "not, because 'embed' 576 → 288 shrinks; 'layer' 30 → 15 shrinks; 'mlp' 1536 → 768 shrinks"
    assert said(SMOLLM2, HALF) == shrinks
    assert said(SMOLLM2, DOUBLE, wavelet={"mlp": "db2"}) == "not, because 'mlp' 1536 → 3072 is resampled by db2"
    assert said(SMOLLM2, {"layers": 60}, depth="stack") == "not, because 'layer' 30 → 60: blocks are stacked"
    assert said(GPT2, {"context": 2048}) == "not, because 'position' 1024 → 2048: positions are stretched"
    assert "copies shift LayerNorm's mean a little, unless at multiples of 768" in said(
        GPT2, {"embed": 832, "heads": 13}
    )


def test_lazy_growth_under_layernorm_unties_the_head_and_says_so() -> None:
    plan = planned(GPT2, {"embed": 1024, "heads": 16}, width="lazy")
    assert not plan.target.tied
    assert module_of(plan, "head").origin.name == "embed"
    assert plan.notes[0].startswith(f"the head is untied ({50257 * 1024:,} parameters more)")
    centred = {m.name for m in plan.modules for a in m.axes if a.centred}
    assert centred == {"embed", "position", "attn.out.weight", "attn.out.bias", "mlp.down.weight", "mlp.down.bias"}


def test_width_auto_copies_off_integers_unless_a_wavelet_or_a_gain_is_asked_for() -> None:
    def policies(target: dict[str, int], config: dict[str, Any] = SMOLLM2, **options: Any) -> set[tuple[str, type]]:
        modules = planned(config, target, **options).modules
        return {(a.axis, type(a.spec)) for m in modules for a in m.axes if a.n_source != a.n_target and a.spec}

    def every(kind: type[OperatorSpec]) -> set[tuple[str, type]]:
        return {(axis, kind) for axis in ("embed", "mlp", "kv_heads")}

    assert policies(THIRD) == policies(THIRD, wavelet={"layer": "db2"}) == every(Copy)
    assert policies(THIRD, width="copy") == every(Copy)
    assert policies(DOUBLE) == policies(THIRD, width="resample") == every(Resample)
    for literal in ({"wavelet": "db2"}, {"gain": "measure"}, {"gain": "orthonormal"}, {"preset": "paper-gpt-s2l"}):
        assert policies(THIRD, **literal) == every(Resample)
    mixed = {("embed", Copy), ("mlp", Resample), ("kv_heads", Copy)}
    assert policies(THIRD, wavelet={"mlp.up:mlp": "db2"}) == mixed
    assert policies(THIRD, width={"mlp": "resample"}) == policies({**THIRD, "mlp": 1000}) == mixed
    larger = {"embed": 832, "heads": 13, "context": 1536}
    assert policies(larger, GPT2) == {("embed", Copy), ("heads", Copy), ("position", Resample)}


def test_copies_under_layernorm_are_centred_off_integers_but_for_a_tied_table() -> None:
    def centred(config: dict[str, Any], target: dict[str, int]) -> set[str]:
        return {m.name for m in planned(config, target, width="copy").modules for a in m.axes if a.centred}

    writers = {"position", "attn.out.weight", "attn.out.bias", "mlp.down.weight", "mlp.down.bias"}
    larger = {"embed": 832, "heads": 13}
    assert centred(GPT2, larger) == writers
    assert centred({**GPT2, "tie_word_embeddings": False}, larger) == writers | {"embed"}
    assert centred(BERT, {"embed": 80, "heads": 5}) == writers | {"token_type"}
    assert centred(GPT2, {"embed": 1536, "heads": 24}) == centred(SMOLLM2, THIRD) == set()


def test_copies_of_head_dim_keep_scores_and_sums_at_any_ratio() -> None:
    plan = planned(GPT2, {"head_dim": 96, "embed": 1152})
    qkv, out = ({a.axis: a.spec for a in module_of(plan, f"attn.{name}.weight").axes} for name in ("qkv", "out"))
    assert (type(qkv["head_dim"]), qkv["head_dim"].split, out["head_dim"].split) == (Copy, 0.5, 0.5)
    assert qkv["qkv"].factors == pytest.approx((math.sqrt(96 / 64), 1, 1))


def test_details_of_every_band() -> None:
    plan = planned(SMOLLM2, HALF, keep_details=True)
    names = {m.name for m in plan.modules if m.weight.name == "mlp.up"}
    bands = ("aad", "ada", "add", "daa", "dad", "dda", "ddd")
    assert names == {"mlp.up", *(f"details/mlp.up/{band}" for band in bands)}
    plan.validate()
    kept = sum(math.prod(m.target_shape()) for m in plan.modules)
    assert kept == plan.source.n_parameters


def test_a_fitted_operator_takes_the_place_of_others() -> None:
    heads = FittedLifting(n_source=9 * 64, n_target=6 * 64, handle="heads.npy", digest="1")
    fitted = {"attn.out": {(1, 3): heads}}
    plan = planned(SMOLLM2, {"heads": 6, "kv_heads": 2}, Mesh(), fitted=fitted)
    plan.validate()
    module = module_of(plan, "attn.out")
    assert [a.spans for a in module.axes] == [1, 1, 3, 1, 1]
    assert module.order == (2,)
    wrong = dataclasses.replace(heads, n_source=100)
    with pytest.raises(
        PlanError, match=r"'fitted heads\.npy' on kv_heads × group × head_dim is 384 × 100, wanted 384 × 576"
    ):
        planned(SMOLLM2, {"heads": 6, "kv_heads": 2}, fitted={"attn.out": {(1, 3): wrong}})


FORMER = [
    (HALF, {"keep_details": True, "wavelet": "db2", "depth": "wavelet"}, "bd9639d06ffe29b23566f30ab58d4b03"),
    (THIRD, {"width": "copy", "depth": "identity", "noise": 0.01}, "400aa2bede6f4f7516ece4d52cabe067"),
]
"""Targets, options, and the digests that 9c917b3 gave their plans."""


@pytest.mark.parametrize(("target", "options", "digest"), FORMER)
def test_plans_have_the_digests_that_they_had(target: dict[str, int], options: dict[str, Any], digest: str) -> None:
    """So that what an earlier version has begun is gone on with. Where other bytes come to be written, raise
    ``RESULTS`` and give the new digests here."""
    assert planned(SMOLLM2, target, optimizer_step=7, **options).digest == digest


def test_equal_plans_have_equal_digests_in_every_process() -> None:
    """The digest decides whether an interrupted transfer is resumed."""
    code = "from tests.unit.test_plan import *; print(planned(SMOLLM2, HALF).digest)"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    assert other == planned(SMOLLM2, HALF).digest
    assert planned(SMOLLM2, HALF).digest == planned(SMOLLM2, HALF).digest
    assert planned(SMOLLM2, HALF).digest != planned(SMOLLM2, HALF, wavelet="db2").digest


@pytest.mark.parametrize(
    ("config", "target", "options", "message"),
    [
        (SMOLLM2, {"layers": 15}, {"depth": "identity"}, "'identity' only grows, and 30 → 15 shrinks"),
        (SMOLLM2, {"layers": 60}, {"depth": "even"}, "'even' only shrinks, and 30 → 60 grows"),
        (SMOLLM2, {"mlp": 768}, {"width": {"mlp": "copy"}}, r"axis 'mlp' .1536 → 768.*'copy' only grows"),
        (SMOLLM2, DOUBLE, {"noise": 1, "wavelet": "db2"}, "resampled by db2 .* no copies"),
        (SMOLLM2, HALF, {"noise": 1}, "transfer.noise: no axis"),
        (SMOLLM2, {**HALF, "embed": 1152}, {"keep_details": True}, "axis 'embed' grows .576 → 1152., and keep_details"),
        (SMOLLM2, HALF, {"memory_limit": 1000}, r"memory limit of 1,000 bytes.*smallest that works is [\d,]+ bytes"),
        (SMOLLM2, {"layers": 0}, {}, "target layers is 0"),
        (SMOLLM2, {"width": 288}, {}, "target option 'width' does not exist"),
        (SMOLLM2, {"heads": 10}, {}, "heads=10 is not divisible by kv_heads=3"),
        (GPT2, {"embed": 384}, {}, r"embed=384 is not heads × head_dim = 12 × 64.*heads=6"),
    ],
)
def test_what_cannot_be_planned(
    config: dict[str, Any], target: dict[str, int], options: dict[str, Any], message: str
) -> None:
    with pytest.raises((PlanError, FamilyError), match=message):
        planned(config, target, **options)


def test_the_smallest_limit_named_works() -> None:
    with pytest.raises(PlanError) as caught:
        planned(SMOLLM2, HALF, memory_limit=1000)
    smallest = int(str(caught.value).rpartition("transfer.memory_limit=")[2])
    planned(SMOLLM2, HALF, memory_limit=smallest).validate()
    with pytest.raises(PlanError):
        planned(SMOLLM2, HALF, memory_limit=smallest - 1)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "lama"}, "unknown architecture 'lama'; did you mean 'llama'"),
        ({"model_type": "rwkv"}, "known: bert, deit, gemma"),
        ({}, "no 'model_type'"),
        ({**SMOLLM2, "num_key_value_heads": 2}, "num_attention_heads=9 is not divisible by num_key_value_heads=2"),
        ({**SMOLLM2, "hidden_size": 0}, "hidden_size=0; family 'llama' needs a positive integer"),
        ({**GPT2, "n_layer": "12"}, "n_layer='12'"),
        ({**SMOLLM2, "model_type": "mixtral"}, "mixtral"),
        ({k: v for k, v in SMOLLM2.items() if k != "intermediate_size"}, "needs the field 'intermediate_size'"),
    ],
)
def test_configurations_that_are_not_understood(config: dict[str, Any], message: str) -> None:
    with pytest.raises(FamilyError, match=message):
        Model(model_of(config).family, config).sizes  # noqa: B018
