"""Every way to change a size, on every family: the function is kept where that is promised, and can be had back."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import bot_dist
from bot_dist.errors import BotDistError, PlanError, RunError, SourceError
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.formats.source import Source
from bot_dist.model import Model, model_of
from bot_dist.operators import Fitted, FittedMatrix, FittedSelection
from bot_dist.pipeline.planning import Planning
from bot_dist.plan import make_plan
from bot_dist.store import CheckpointReader, OperatorWriter, stored_operators
from bot_dist.tensors import whole
from tests.conftest import VARIANTS, inputs, outputs

Factory = Callable[..., Any]


def transfer(source: str, url: Path, target: dict[str, int], **overrides: Any) -> CheckpointReader:
    recipe = {"source": source, "output": str(url.parent), "target_url": str(url), "target": target}
    options = {"cluster.executor": "local", "transfer.analysis": "wavelet", **overrides}
    bot_dist.transfer(bot_dist.make_recipe(recipe, options))
    return CheckpointReader(str(url))


def tensors(source: Source) -> dict[str, torch.Tensor]:
    return {p.name: source.read(p, whole(p.sizes)).reshape(p.shape) for _, _, p in model_of(source.config).parameters()}


def exported(reader: CheckpointReader, folder: Path, like: Any) -> torch.Tensor:
    """Logits of the store's model as ``transformers`` loads it; no key may be missing or left over."""
    export_huggingface(reader, str(folder))
    model, info = type(like).from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return outputs(model)["logits"]


def assert_same(after: torch.Tensor, before: torch.Tensor) -> None:
    assert (after - before).abs().max() < 1e-5 * before.abs().max()


def widths(model: Model, factor: int) -> dict[str, int]:
    """Target options that multiply every width."""
    sizes = model.sizes
    target = {name: factor * sizes[name] for name in ("embed", "mlp", "kv_heads") if name in model.family.resizable}
    if "heads" in model.family.resizable:
        target["heads"] = factor * (sizes["heads"] if "heads" in sizes else sizes["kv_heads"] * sizes["group"])
    return target


def test_haar_growth_keeps_the_function(tmp_path: Path, pico: Factory) -> None:
    source = pico()
    model = model_of(open_source(source.url).config)
    target = {**widths(model, 3), "layers": 2 * model.sizes["layer"]}
    grown = transfer(source.url, tmp_path / "grown", target, **{"transfer.depth": "identity"})
    assert_same(exported(grown, tmp_path / "export", source.model), outputs(source.model)["logits"])


@pytest.mark.parametrize("variant", ["tied llama", "untied llama", "qwen3", "gemma", "gemma2", "gemma3"])
def test_copies_keep_the_function_at_any_ratio_under_rmsnorm(variant: str, tmp_path: Path, make_pico: Factory) -> None:
    source = make_pico(**VARIANTS[variant], num_attention_heads=6, num_key_value_heads=3)
    sizes = model_of(open_source(source.url).config).sizes
    target = {"embed": sizes["embed"] * 4 // 3, "mlp": sizes["mlp"] * 4 // 3, "kv_heads": 4, "heads": 8}
    grown = transfer(source.url, tmp_path / "grown", target)
    assert_same(exported(grown, tmp_path / "export", source.model), outputs(source.model)["logits"])


@pytest.mark.parametrize("width", ["resample", "copy"])
def test_noise_on_copies_is_invisible_and_breaks_their_symmetry(width: str, tmp_path: Path, pico: Factory) -> None:
    source = pico()
    target = widths(model_of(open_source(source.url).config), 2)
    options = {"transfer.width": width, "transfer.noise": 0.5}
    plain = tensors(transfer(source.url, tmp_path / "plain", target, **{"transfer.width": width, "transfer.noise": 0}))
    noisy = transfer(source.url, tmp_path / "noisy", target, **options)
    assert_same(exported(noisy, tmp_path / "export", source.model), outputs(source.model)["logits"])
    after = tensors(noisy)
    changed = {w.name: not torch.equal(after[p.name], plain[p.name]) for w, _, p in parameters(noisy)}
    reads = {w.name: w.kind == "matrix" and any(u.role == "read" for u in w.uses) for w, _, _ in parameters(noisy)}
    assert changed == reads


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_copies_in_the_residual_stream_are_the_same_to_the_last_bit(
    dtype: torch.dtype, tmp_path: Path, pico_llama: Factory
) -> None:
    source = pico_llama(num_hidden_layers=24)
    target = widths(model_of(open_source(source.url).config), 2)
    grown = transfer(source.url, tmp_path / "grown", target, **{"transfer.noise": 10})
    export_huggingface(grown, str(tmp_path / "export"))
    model = type(source.model).from_pretrained(tmp_path / "export", dtype=dtype)
    with torch.no_grad():
        states = model(**inputs(model), output_hidden_states=True).hidden_states
    assert len(states) == 25
    assert all(torch.equal(h[..., 0::2], h[..., 1::2]) for h in states)


def test_the_seed_decides_the_noise(tmp_path: Path, pico_llama: Factory) -> None:
    source, name = pico_llama(), "model.layers.1.mlp.up_proj.weight"
    made = []
    for i, seed in enumerate((1, 1, 2)):
        options = {"transfer.noise": 0.5, "transfer.seed": seed}
        made.append(tensors(transfer(source.url, tmp_path / str(i), {"embed": 48}, **options))[name])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def parameters(reader: CheckpointReader) -> list[Any]:
    return list(model_of(reader.config).parameters())


def test_lazy_growth_keeps_the_function(tmp_path: Path, pico: Factory) -> None:
    source = pico()
    model = model_of(open_source(source.url).config)
    wide = {"transfer.width": "lazy"} | ({"target.embed": model.sizes["embed"]} if model.family.post_norm else {})
    target = widths(model, 2)
    if model.family.post_norm:
        target = {"mlp": target["mlp"]}
    grown = transfer(source.url, tmp_path / "grown", {**target, "layers": 2 * model.sizes["layer"]}, **wide)
    deep = {"transfer.depth": "identity"}
    grown = transfer(source.url, tmp_path / "deep", {**target, "layers": 2 * model.sizes["layer"]}, **wide, **deep)
    assert_same(exported(grown, tmp_path / "export", source.model), outputs(source.model)["logits"])
    reads = [p for w, _, p in parameters(grown) if w.kind == "matrix" and not w.into_residual and w.layered]
    new = tensors(grown)[reads[0].name]
    assert 0.5 < new.std() / model.init_std(model.weights[0]) < 10 or new.abs().max() > 0


def test_with_measure_shrinking_a_grown_model_returns_the_source(tmp_path: Path, pico: Factory) -> None:
    source = pico()
    model = model_of(open_source(source.url).config)
    measure = {"transfer.gain": "measure", "transfer.use_details": False}
    grown = transfer(source.url, tmp_path / "grown", widths(model, 2), **measure)
    shrunk = transfer(grown.url, tmp_path / "back", widths(model, 1), **measure)
    before = tensors(open_source(source.url))
    for name, tensor in tensors(shrunk).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-5, atol=1e-6)


SHRINKS: dict[str, dict[str, Any]] = {
    "haar": {},
    "measure": {"transfer.gain": "measure"},
    "bior": {"transfer.wavelet": {"layer": "haar", "mlp": "bior2.2", "embed": "coif1"}},
    "even": {"transfer.depth": "even"},
}


def smaller(model: Model) -> dict[str, int]:
    """Every width that can be halved by itself, an odd ratio of FFN units, and two layers of three."""
    sizes, family = model.sizes, model.family
    small = {"layers": 2, "mlp": sizes["mlp"] * 3 // 4}
    if "head_dim" in family.resizable:
        return {**small, "embed": sizes["embed"] // 2, "head_dim": sizes["head_dim"] // 2}
    return small if family.name == "gpt_neox" else {**small, "embed": sizes["embed"] // 2}


@pytest.mark.parametrize("options", SHRINKS.values(), ids=SHRINKS)
def test_details_give_the_source_back(options: dict[str, Any], tmp_path: Path, pico: Factory) -> None:
    source = pico()
    model = model_of(open_source(source.url).config)
    before, small = tensors(open_source(source.url)), smaller(model)
    shrunk = transfer(source.url, tmp_path / "small", small, **{"transfer.keep_details": True, **options})
    back = {name: model.sizes["layer" if name == "layers" else name] for name in small}
    restored = transfer(shrunk.url, tmp_path / "again", back)
    for name, tensor in tensors(restored).items():
        torch.testing.assert_close(tensor, before[name], rtol=1e-4, atol=2e-6)
    assert restored.config == model.config
    changed = sorted("layer" if name == "layers" else name for name in small)
    assert restored.manifest.provenance["plan"]["notes"] == [f"details restore: {', '.join(changed)}"]
    assert {p.learning_rate_factor for p in restored.manifest.parameters.values()} == {1.0}


def test_the_bands_share_out_the_energy(tmp_path: Path, pico_llama: Factory) -> None:
    source = pico_llama(num_hidden_layers=4)
    small = {"layers": 2, "embed": 12, "mlp": 20}
    shrunk = transfer(source.url, tmp_path / "small", small, **{"transfer.keep_details": True})
    report = shrunk.manifest.provenance["transfer"]
    for name, bands in report["detail_energy"].items():
        assert sum((report["energy_kept"][name], *bands.values())) == pytest.approx(1, rel=1e-4), name
    even = transfer(source.url, tmp_path / "even", {"layers": 2}, **{"transfer.depth": "even"})
    assert even.manifest.provenance["transfer"]["energy_kept"]["mlp.up"] == pytest.approx(0.5, abs=0.05)


def test_restored_layers_have_their_own_kind_of_attention(tmp_path: Path, make_pico: Factory) -> None:
    source = make_pico("gemma2")
    shrunk = transfer(source.url, tmp_path / "s", {"layers": 2, "mlp": 20}, **{"transfer.keep_details": True})
    deep = transfer(shrunk.url, tmp_path / "deep", {"layers": 3})
    assert deep.config["layer_types"] == open_source(source.url).config["layer_types"]
    assert deep.manifest.provenance["plan"]["notes"] == [
        "details restore: layer",
        "details of mlp are not kept in the target",
    ]


def test_the_details_that_are_not_used_are_said(tmp_path: Path, pico_llama: Factory) -> None:
    shrunk = transfer(pico_llama().url, tmp_path / "s", {"embed": 12}, **{"transfer.keep_details": True})
    wide = transfer(shrunk.url, tmp_path / "wide", {"embed": 48})
    assert wide.manifest.provenance["plan"]["notes"] == [
        "the details that the source keeps are not used, and not kept in the target"
    ]
    with pytest.raises(PlanError, match="keep_details: no axis shrinks"):
        transfer(shrunk.url, tmp_path / "again", {"embed": 24}, **{"transfer.keep_details": True})


def test_details_restore_whatever_the_policy_for_growing(tmp_path: Path, pico_gpt2: Factory) -> None:
    source = pico_gpt2()
    small = {"embed": 16, "heads": 2}
    shrunk = transfer(source.url, tmp_path / "s", small, **{"transfer.keep_details": True})
    restored = transfer(shrunk.url, tmp_path / "again", {"embed": 24, "heads": 3}, **{"transfer.width": "lazy"})
    assert_same(exported(restored, tmp_path / "export", source.model), outputs(source.model)["logits"])


MIXED = [
    {"transfer.noise": 0},
    {"transfer.width": "copy", "transfer.noise": 0},
    {"transfer.wavelet": "db2", "transfer.gain": "orthonormal"},
]


@pytest.mark.parametrize("options", MIXED, ids=["haar", "copy", "db2"])
def test_wider_and_shallower_in_one_pass_is_one_after_the_other(
    options: dict[str, Any], tmp_path: Path, pico_llama: Factory
) -> None:
    source = pico_llama()
    wide, shallow = {"embed": 48, "mlp": 60}, {"layers": 2}
    both = transfer(source.url, tmp_path / "both", {**wide, **shallow}, **options)
    step = transfer(source.url, tmp_path / "wide", wide, **options)
    after = tensors(transfer(step.url, tmp_path / "after", shallow, **options))
    for name, tensor in tensors(both).items():
        torch.testing.assert_close(tensor, after[name], rtol=1e-5, atol=1e-6)
    kept = both.manifest.provenance["transfer"]["energy_kept"]
    assert all(0.3 < share <= 1 for share in kept.values())


def test_some_axes_can_be_restored(tmp_path: Path, pico_llama: Factory) -> None:
    source = pico_llama()
    shrunk = transfer(source.url, tmp_path / "small", {"embed": 12, "mlp": 30}, **{"transfer.keep_details": True})
    narrow = tensors(transfer(source.url, tmp_path / "narrow", {"embed": 12}))
    restored = tensors(transfer(shrunk.url, tmp_path / "mlp", {"mlp": 40}))
    for name, tensor in restored.items():
        torch.testing.assert_close(tensor, narrow[name], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("target", [{"head_dim": 16}, {"head_dim": 24}])
def test_head_dim_grows_with_the_softmax_scale_corrected(
    target: dict[str, int], tmp_path: Path, pico_gpt2: Factory
) -> None:
    source = pico_gpt2()
    embed = source.model.config.n_head * target["head_dim"]
    grown = transfer(source.url, tmp_path / "grown", {**target, "embed": embed})
    assert_same(exported(grown, tmp_path / "export", source.model), outputs(source.model)["logits"])


POLICIES = [
    {"transfer.width": "copy", "transfer.noise": 1.0, "transfer.depth": "stack"},
    {"transfer.width": "lazy", "transfer.depth": "identity"},
    {"transfer.wavelet": "db3", "transfer.depth": "wavelet"},
]


@pytest.mark.parametrize("options", POLICIES, ids=["copy", "lazy", "db3"])
def test_the_bytes_do_not_depend_on_the_mesh_or_the_limit(
    options: dict[str, Any], tmp_path: Path, pico_llama: Factory
) -> None:
    source = pico_llama(num_attention_heads=6, num_key_value_heads=3)
    target = {"embed": 40, "mlp": 70, "kv_heads": 4, "heads": 8, "layers": 5}
    one = tensors(transfer(source.url, tmp_path / "one", target, **options))
    for tensor, data, limit in ((2, 1, "1 GiB"), (3, 2, "1 GiB"), (2, 1, "48 KiB")):
        mesh = {"cluster.tensor": tensor, "cluster.data": data, "transfer.memory_limit": limit}
        other = tensors(transfer(source.url, tmp_path / f"{tensor}{data}{limit}", target, **options, **mesh))
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_fitted_operators_act_on_several_axes_and_differ_per_layer(tmp_path: Path, pico_llama: Factory) -> None:
    source = pico_llama()
    random = np.random.default_rng(0)
    heads = random.standard_normal((2 * 8, 4 * 8))
    units = random.standard_normal((3, 20, 40))
    recipe = bot_dist.make_recipe(
        {"source": source.url, "output": str(tmp_path), "target": {"kv_heads": 1, "heads": 2, "mlp": 20}}
    )
    planning = Planning(recipe)
    reader, plan = planning.source, planning.draft
    units_kept = random.integers(40, size=(3, 20))
    operators: dict[str, Fitted] = {
        "heads": FittedMatrix(n_source=32, n_target=16),
        "units": FittedMatrix(n_source=40, n_target=20, per_layer=True),
        "units_kept": FittedSelection(n_source=40, n_target=20, per_layer=True),
    }
    url = str(tmp_path / "operators")
    writer = OperatorWriter(url, operators, layers=3, attempt="fitted")
    for name, layer in writer.places():
        writer.write(name, layer, {"heads": heads, "units": units[layer], "units_kept": units_kept[layer]}[name])
    writer.commit({})
    stored = stored_operators(url, operators, "fitted")
    fitted = {
        "attn.out": {(1, 3): stored["heads"]},
        "mlp.down": {(1, 1): stored["units"]},
        "mlp.up": {(0, 1): stored["units_kept"]},
    }
    plan = make_plan(
        plan.source,
        plan.target,
        recipe.transfer,
        plan.mesh,
        modules={m.weight.name: _known(m) for m in plan.modules},
        source_id="",
        fitted=fitted,
    )
    plan.validate()
    written = run_plan(plan, reader, tmp_path / "store")
    for layer in range(3):
        block = f"model.layers.{layer}."
        out = source.tensors[block + "self_attn.o_proj.weight"].detach().double()
        down = source.tensors[block + "mlp.down_proj.weight"].detach().double()
        up = source.tensors[block + "mlp.up_proj.weight"].detach().double()
        wanted = {
            block + "self_attn.o_proj.weight": out @ torch.from_numpy(heads).T,
            block + "mlp.down_proj.weight": down @ torch.from_numpy(units[layer]).T,
            block + "mlp.up_proj.weight": up[units_kept[layer]],
        }
        for name, tensor in wanted.items():
            torch.testing.assert_close(written[name].double(), tensor, rtol=1e-5, atol=1e-5)


def _known(module: Any) -> Any:
    from bot_dist.plan import SourceModule

    return SourceModule(nbytes=module.source_bytes, dtype=module.source_dtype)


def run_plan(plan: Any, source: Any, url: Path) -> dict[str, torch.Tensor]:
    from bot_dist.execute import ALONE
    from bot_dist.execute.run_plan import PlanRun
    from bot_dist.pipeline.transfer import stored_parameters
    from bot_dist.store import CheckpointWriter

    writer = CheckpointWriter.create(str(url), stored_parameters(plan), config=plan.target.config, attempt=plan.digest)
    plan_run = PlanRun(plan, lambda event: None)
    plan_run.run(ALONE, source, str(url))
    writer.commit(plan_run.digests, {})
    return tensors(CheckpointReader(str(url)))


def test_what_is_no_number_is_named(tmp_path: Path, save_pico: Factory, pico_llama: Factory) -> None:
    source = pico_llama()
    with torch.no_grad():
        source.model.model.layers[1].mlp.up_proj.weight[5, 7] = float("nan")
    source.model.save_pretrained(source.folder)
    with pytest.raises(SourceError, match=r"'model\.layers\.1\.mlp\.up_proj\.weight' holds nan at mlp 5, embed 7.*"):
        transfer(source.url, tmp_path / "refused", {"embed": 12})
    allowed = transfer(source.url, tmp_path / "allowed", {"embed": 12}, **{"transfer.allow_nonfinite": True})
    assert torch.isnan(tensors(allowed)["model.layers.1.mlp.up_proj.weight"][5, 3])
    assert json.loads((tmp_path / "allowed" / "manifest.json").read_text(), parse_constant=_refuse)


def _refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is no JSON")


@pytest.mark.parametrize("options", [{"embed": 12, "mlp": 20}, {"embed": 36, "layers": 4}], ids=["smaller", "larger"])
def test_what_is_too_large_for_its_dtype_is_refused(
    options: dict[str, int], tmp_path: Path, pico_llama: Factory
) -> None:
    source = pico_llama(dtype=torch.float16)
    with torch.no_grad():
        source.model.model.layers[1].mlp.down_proj.weight[:2, :2] = 60000
    source.model.save_pretrained(source.folder)
    name = r"'model\.layers\.[12]\.mlp\.down_proj\.weight'"
    larger = {"transfer.gain": "orthonormal"} if "mlp" in options else {}
    with pytest.raises(
        RunError, match=rf"{name} would hold values too large for float16 \(over 65504\).*transfer\.dtype"
    ):
        transfer(source.url, tmp_path / "refused", options, **larger)
    with pytest.raises(BotDistError, match=r"no manifest\.json, so this is no committed"):
        CheckpointReader(str(tmp_path / "refused"))
    allowed = transfer(source.url, tmp_path / "refused", options, **larger, **{"transfer.allow_nonfinite": True})
    assert allowed.manifest.provenance["transfer"]["overflowed"].keys() == {"mlp.down"}
    wider = transfer(source.url, tmp_path / "wider", options, **larger, **{"transfer.dtype": "bfloat16"})
    assert all(tensor.isfinite().all() for tensor in tensors(wider).values())


def test_the_checkpoint_carries_learning_rate_factors(tmp_path: Path, pico_llama: Factory) -> None:
    source = pico_llama()
    grown = transfer(source.url, tmp_path / "grown", {"embed": 48, "mlp": 80})
    factors = {name: s.learning_rate_factor for name, s in grown.manifest.parameters.items()}
    assert factors["model.layers.0.mlp.up_proj.weight"] == factors["model.layers.2.mlp.down_proj.weight"] == 0.5
    assert factors["model.embed_tokens.weight"] == factors["model.norm.weight"] == 1
    (array,) = tmp_path.glob("grown/data/*/model.layers.0.mlp.up_proj.weight/zarr.json")
    assert json.loads(array.read_text())["attributes"]["learning_rate_factor"] == 0.5
    again = transfer(grown.url, tmp_path / "again", {"embed": 96})
    assert again.manifest.parameters["model.layers.0.mlp.up_proj.weight"].learning_rate_factor == 0.25


def test_a_policy_that_cannot_be_is_one_clear_error(tmp_path: Path, pico_gpt2: Factory) -> None:
    source = pico_gpt2()
    with pytest.raises(BotDistError, match="width policy 'lazy' has no meaning there"):
        transfer(source.url, tmp_path / "s", {"embed": 48, "head_dim": 16}, **{"transfer.width": "lazy"})
