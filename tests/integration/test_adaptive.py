"""Bases and lifting of every family: what must not change does not, and what is fitted is what is written."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bot_dist
from bot_dist.data.calibration_samples import CalibrationData, Samples
from bot_dist.errors import InputError, PlanError
from bot_dist.events import ignore
from bot_dist.execute.lazy_source import TransformedSource
from bot_dist.fit import Adaptation
from bot_dist.fit.axis_fits import Given, Lifted, Rotation
from bot_dist.fit.weight_only import WeightStatistics
from bot_dist.formats.open import open_source
from bot_dist.formats.source import Source
from bot_dist.model import Model, model_of
from bot_dist.pipeline.planning import known
from bot_dist.pipeline.results import TransferResult
from bot_dist.plan import (
    ORDER,
    FittedName,
    TransferPlan,
    adaptive,
    basis_of,
    make_plan,
    operators,
    placed,
    target_model,
)
from bot_dist.store import CheckpointReader, OperatorWriter, read_rows, stored_operators
from bot_dist.tensors import Mesh, whole
from tests.conftest import UNTRAINED

Factory = Callable[..., Any]
ROTATED = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gpt2", "gpt_neox", "vit", "deit")
REFUSED = ("gemma2", "gemma3", "bert")


def unsettled(model: torch.nn.Module) -> None:
    """Norm weights and biases that matter, and matrices that are large enough."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.add_(noise * (0.3 if parameter.dim() == 1 else 0.1))


def with_quiet_norms(model: torch.nn.Module) -> None:
    """Norms whose gains lie from 1/16 to 2, each with its own."""
    gains = iter(
        torch.rand(len([*model.parameters()]), generator=torch.Generator().manual_seed(3)).mul(5).sub(4).exp2()
    )
    with torch.no_grad():
        for name, module in model.named_modules():
            weight = getattr(module, "weight", None)
            if weight is not None and weight.dim() == 1 and ("norm" in name.lower() or "ln_" in name):
                offset = 1.0 if "Gemma" in type(module).__name__ else 0.0
                weight.copy_((weight + offset) * next(gains) - offset)


def norm_weights(source: Source, model: Model) -> list[torch.Tensor]:
    """What the norms of the residual stream multiply by, block by block."""
    return [
        source.read(p, whole(p.sizes)).double() + weight.offset
        for weight in model.weights
        if model.family.norm_of(weight) and not weight.name.endswith(".bias")
        for p in (model.parameter(weight, layer) for layer in range(model.weight_layers(weight)))
    ]


def loaded(source: Source, target: Model, kind: type[torch.nn.Module]) -> torch.nn.Module:
    """The plan's target in ``transformers``."""
    from transformers import AutoConfig

    config = AutoConfig.for_model(**target.config)
    model = kind._from_config(config) if hasattr(kind, "_from_config") else kind(config)
    with torch.no_grad():
        state = dict(model.named_parameters())
        for _, _, p in target.parameters():
            values = source.read(p, whole(p.sizes)).reshape(p.shape)
            state[target.inside[p.name]].copy_(values)
    return model.eval()


def output(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(2)
    config: Any = model.config
    with torch.no_grad():
        if hasattr(config, "image_size"):
            size = config.image_size
            images = torch.randn(2, config.num_channels, size, size, generator=generator)
            return model(pixel_values=images).logits
        ids = torch.randint(3, config.vocab_size, (2, 16), generator=generator)
        return model(input_ids=ids).logits


def in_new_basis(source: Any, model: Model, folder: Path) -> TransferPlan:
    """The whole width rotated, and the identity's lifting of units and heads."""
    config = bot_dist.make_recipe({"source": source.url, "output": str(folder)}).transfer
    target = target_model(model, {}, config, rotated=True)
    axes = ("embed", "mlp", "heads")
    basis = basis_of(model, model, "auto")
    assert basis == "rotation"
    table = adaptive(model, target, basis, axes)
    given = Given(source=source, model=model, statistics=WeightStatistics(source, model), ridge=1e-3)
    sizes = model.sizes
    heads = sizes["head_dim"] * sizes.get("heads", 1) * sizes.get("kv_heads", 1) * sizes.get("group", 1)
    kept = {"mlp": {"n_target": sizes["mlp"]}, "heads": {"n_target": heads, "kv_target": sizes.get("kv_heads", 0)}}

    def matrix(name: str, layer: int) -> Any:
        of = FittedName.parse(name)
        if of.part == "gain":
            return given.stored_gain(of.owner, layer)
        if of.axis == "embed":
            return rotation.matrix(of, layer)
        (reader,) = model.readers(*ORDER[of.axis])
        return Lifted(given=given, axis=of.axis, reader=reader, **kept[of.axis]).matrix(of, layer)

    rotation = Rotation(given=given, n_target=sizes["embed"])
    url = str(folder / "operators")
    writer = OperatorWriter(url, operators(table), layers=sizes["layer"], attempt="all")
    for name, layer in writer.places():
        writer.write(name, layer, matrix(name, layer))
    writer.commit({})
    stored = stored_operators(url, operators(table), "all")
    plan = make_plan(
        model,
        target,
        config,
        Mesh(),
        modules=known(source, model),
        source_id="",
        fitted=placed(table, stored),
    )
    plan.validate()
    return plan


@pytest.mark.parametrize("kind", ROTATED)
def test_a_rotation_of_the_whole_width_changes_nothing(tmp_path: Path, make_pico: Factory, kind: str) -> None:
    pico = make_pico(kind)
    unsettled(pico.model)
    with_quiet_norms(pico.model)
    pico.model.save_pretrained(pico.folder)
    source = open_source(pico.url)
    model = model_of(source.config)
    plan = in_new_basis(source, model, tmp_path)
    target = plan.target
    rotated = loaded(TransformedSource(plan, source), target, type(pico.model))
    wanted, found = output(pico.model.eval()), output(rotated)
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    gains = {"was": norm_weights(source, model), "is": norm_weights(TransformedSource(plan, source), target)}
    assert all((weight == weight[0]).all() for weight in gains["is"])  # of the size that it had
    sizes = [weight.square().mean().sqrt().log2().round() for weight in gains["was"]]
    assert [weight[0].log2() for weight in gains["is"]] == sizes
    assert min(sizes) < -2
    if model.tied:
        assert not target.tied
        assert any("the head is untied" in note for note in plan.notes)


@pytest.mark.parametrize("kind", REFUSED)
def test_a_rotation_is_refused_where_it_changes_the_function(tmp_path: Path, make_pico: Factory, kind: str) -> None:
    model = model_of(open_source(make_pico(kind).url).config)
    with pytest.raises(PlanError, match=r"rotation would change the function: in family .* use permutation"):
        basis_of(model, model, "rotation")
    assert basis_of(model, model, "auto") == "permutation"


SMALLER = {
    "llama": {"layers": 2, "embed": 16, "mlp": 24, "heads": 2, "kv_heads": 1},
    "gemma": {"embed": 16, "mlp": 24},
    "gemma2": {"layers": 2, "embed": 16, "mlp": 24},
    "gpt2": {"layers": 2, "embed": 16, "heads": 2, "mlp": 40},
    "gpt_neox": {"embed": 16, "heads": 2, "mlp": 24},
    "bert": {"layers": 2, "embed": 16, "heads": 2, "mlp": 24},
}


def adapted(folder: Path, source: str, target: dict[str, int], text: list[str], **options: Any) -> TransferResult:
    data = {"source": source, "output": str(folder), "target": target, "calibrate": {"text": text, "tokens": 512}}
    data["calibrate"] |= {"context": 32, "held_out": 128, "passes": "sequential", **UNTRAINED}
    options = {"cluster.executor": "local", "transfer.analysis": "adaptive", **options}
    return bot_dist.transfer(bot_dist.make_recipe(data, options))


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return dict(CheckpointReader(str(folder / "transferred.zarr")).tensors())


def with_tokenizer(pico: Any, tokenizer: Path) -> str:
    """With a mask token, which BERT needs."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer)
    loaded.add_special_tokens({"mask_token": "<mask>"})
    loaded.save_pretrained(pico.folder)
    return str(pico.folder)


@pytest.mark.parametrize("kind", SMALLER)
def test_every_family_shrinks_along_all_axes(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str, kind: str
) -> None:
    pico = make_pico(kind)
    source = with_tokenizer(pico, pico_tokenizer)
    options = {"calibrate.passes": "auto", "calibrate.folder": str(tmp_path / "calibration")}
    report = adapted(tmp_path / "one", source, SMALLER[kind], [shakespeare], **options)
    stages = report.calibrate
    assert [axis for stage in stages for axis in stage.axes] == [
        axis for axis in ("layer", "embed", "heads", "mlp") if {"layer": "layers"}.get(axis, axis) in SMALLER[kind]
    ]
    assert all(stage.loss > 0 for stage in stages)
    for stage in stages:
        for axis, facts in stage.facts.items():
            assert all(0 <= e < 1.5 for errors in facts.get("errors", {}).values() for e in errors), (axis, facts)
    verified = bot_dist.verify(str(tmp_path / "one" / "transferred.zarr"))
    assert not verified.damaged
    reader = CheckpointReader(str(tmp_path / "one" / "transferred.zarr"))
    for option, size in SMALLER[kind].items():
        sizes = model_of(reader.config).sizes
        if option == "heads":
            assert sizes.get("heads", sizes.get("kv_heads", 0) * sizes.get("group", 0)) == size
        else:
            assert sizes[{"layers": "layer"}.get(option, option)] == size
    adapted(tmp_path / "two", source, SMALLER[kind], [shakespeare], **options)
    again = tensors(tmp_path / "two")
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors(tmp_path / "one").items())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_actors_fit_and_write_what_one_process_does(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str
) -> None:
    """The statistics' sums are added in another order, so what is fitted to them may differ in its last bits; what is
    written with the same operators may not."""
    source = with_tokenizer(make_pico("llama"), pico_tokenizer)
    target = SMALLER["llama"]
    adapted(tmp_path / "one", source, target, [shakespeare])
    adapted(tmp_path / "two", source, target, [shakespeare], **{"cluster.executor": "ray", "cluster.tensor": 2})
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-3)
    shutil.rmtree(tmp_path / "two" / "transferred.zarr" / "data")
    (tmp_path / "two" / "transferred.zarr" / "manifest.json").unlink()
    adapted(tmp_path / "two", source, target, [shakespeare], **{"cluster.executor": "ray", "cluster.data": 2})
    assert all(torch.equal(tensors(tmp_path / "two")[name], tensor) for name, tensor in two.items())


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_without_a_text_actors_fit_to_the_one_that_one_process_writes(tmp_path: Path, make_pico: Factory) -> None:
    """No tokenizer is needed."""
    url, target = make_pico("llama").url, {"layers": 2, "embed": 16}
    few = {"calibrate.context": 32, "calibrate.held_out": 64}
    for name, cluster in (("one", {}), ("two", {"cluster.executor": "ray", "cluster.tensor": 2})):
        adapted(tmp_path / name, url, target, [], **few, **cluster)
    texts = [load_file(*(tmp_path / name / "calibration").glob("written-*"))["tokens"] for name in ("one", "two")]
    assert torch.equal(*texts)
    assert texts[0].shape == (18, 33)
    one, two = tensors(tmp_path / "one"), tensors(tmp_path / "two")
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("lifting", ["least-squares", "selection"])
@pytest.mark.parametrize("kind", ["gemma2", "bert"])
def test_maps_see_what_a_permutation_drops_as_the_kept_coordinates_predict_it(
    tmp_path: Path, make_pico: Factory, kind: str, lifting: str
) -> None:
    """By least squares, on what each of them reads; a selection sees nothing of it."""
    pico = make_pico(kind)
    unsettled(pico.model)
    pico.model.save_pretrained(pico.folder)
    source = open_source(pico.url)
    model = model_of(source.config)
    target = {"embed": 16, **({"heads": 2} if kind == "bert" else {})}
    data = {"source": pico.url, "output": str(tmp_path), "target": target}
    options = {"cluster.executor": "local", "transfer.ridge": 1e-9, "transfer.lifting": lifting}
    windows = torch.randint(3, model.sizes["vocab"], (16, 32), generator=torch.Generator().manual_seed(3))
    shown, nothing = (Samples.of_text(found, model, 3) for found in (windows, windows[:0]))
    adaptation = Adaptation(
        bot_dist.make_recipe(data, options),
        source,
        model,
        known(source, model),
        CalibrationData(fitted=shown, held_out=nothing),
        operators_url=str(tmp_path / "operators"),
        folder=str(tmp_path / "calibration"),
        on_event=ignore,
    )
    adaptation.run()
    plan = adaptation.plan()
    shrunk = TransformedSource(plan, source)
    n = model.sizes["embed"]
    kept = torch.from_numpy(read_rows(adaptation.done.stored["embed.kept"], (0, 16))[0][:, 0])

    def seen(name: str) -> torch.Tensor:
        found = torch.zeros(16, n, dtype=torch.float64)
        if lifting == "least-squares":
            x = read_by(pico.model, model.inside[name], shown.inputs)
            found = torch.linalg.lstsq(x[:, kept], x).solution
        found[:, kept] = torch.eye(16, dtype=torch.float64)
        return found

    readers = {"gemma2": ["attn.q", "mlp.gate"], "bert": ["attn.q", "mlp.up", "head.transform"]}[kind]
    assert {*adaptation.done.stored} >= {f"embed.read.{name}" for name in readers}
    gain = 1.0 if model.family.post_norm else (n / 16) ** 0.5
    for weight in model.weights:
        name = weight.name.removesuffix(".weight")
        for layer in range(model.weight_layers(weight)):
            parameter, after = (each.parameter(weight, layer) for each in (model, plan.target))
            if name in readers:
                _, matrix = read_rows(adaptation.done.stored[f"embed.read.{name}"], (0, 16), layer)
                torch.testing.assert_close(torch.from_numpy(matrix), seen(parameter.name), rtol=1e-3, atol=1e-3)
            reads = weight.kind == "matrix" and parameter.axes[-1] == "embed"
            if reads and parameter.sizes[:-1] == after.sizes[:-1]:  # no other axis has shrunk
                wanted = gain * source.read(parameter, whole(parameter.sizes)).double() @ seen(parameter.name).T
                found = shrunk.read(after, whole(after.sizes)).double()
                torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)


def read_by(model: torch.nn.Module, name: str, inputs: torch.Tensor) -> torch.Tensor:
    """What a map of a ``transformers`` model reads, ``(tokens, width)`` in float64."""
    found: list[torch.Tensor] = []
    module = model.get_submodule(name.removesuffix(".weight"))
    handle = module.register_forward_pre_hook(lambda _, args: found.append(args[0]))
    with torch.no_grad():
        model.eval()(input_ids=inputs)
    handle.remove()
    return found[0].flatten(0, -2).double()


@pytest.mark.parametrize("basis", ["rotation", "permutation"])
def test_weights_alone_are_fitted_to_where_there_is_no_text(tmp_path: Path, make_pico: Factory, basis: str) -> None:
    """Said aloud."""
    pico = make_pico("vit")
    report = adapted(tmp_path, pico.url, {"embed": 16, "heads": 2, "mlp": 24}, [], **{"transfer.basis": basis})
    assert [stage.axes for stage in report.calibrate] == [("embed", "heads", "mlp")]
    notes = CheckpointReader(str(tmp_path / "transferred.zarr")).manifest.provenance["plan"]["notes"]
    assert any("fitted to the weights alone" in note for note in notes)


@pytest.mark.parametrize("held_out", [128, 0])
@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_a_text_that_the_source_does_not_understand_is_refused(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str, kind: str, held_out: int
) -> None:
    """Before anything is fitted, whether the loss is measured on what is held out or on what would be fitted to."""
    source = with_tokenizer(make_pico(kind), pico_tokenizer)
    options = {"calibrate.held_out": held_out, "calibrate.allow_mismatch": False}
    wanted = rf"calibrate.text '{shakespeare}': .* as the tokenizer of {source} cuts it, .* over 64 tokens has 4.16: "
    with pytest.raises(InputError, match=wanted + r".* insist with calibrate.allow_mismatch=true"):
        adapted(tmp_path, source, {"mlp": 24}, [shakespeare], **options)
    assert not (tmp_path / "transferred.zarr").exists()


def test_a_tokenizer_of_more_tokens_than_the_model_has_is_refused(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str
) -> None:
    source = with_tokenizer(make_pico("llama", vocab_size=50), pico_tokenizer)
    with pytest.raises(InputError, match="has 63 tokens, but the model's vocabulary has 50"):
        adapted(tmp_path, source, {"mlp": 24}, [shakespeare])


def test_of_several_fits_the_one_with_the_least_loss_is_kept(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str
) -> None:
    pico = make_pico("llama")
    unsettled(pico.model)
    pico.model.save_pretrained(pico.folder)
    source, target = with_tokenizer(pico, pico_tokenizer), {"layers": 2, "mlp": 24}
    auto = {"calibrate.passes": "auto", "calibrate.folder": str(tmp_path / "calibration")}
    report = adapted(tmp_path / "auto", source, target, [shakespeare], **auto)
    found = {one.name: one.loss for one in report.calibrate[1].candidates}
    assert report.calibrate[1].chosen == min(found, key=lambda name: found[name])
    assert report.calibrate[1].loss == min(found.values())
    ways = {
        "block by block, selecting": {"calibrate.passes": "sequential"},
        "one pass, predicting": {"calibrate.passes": "one", "transfer.lifting": "least-squares"},
        "one pass, selecting": {"calibrate.passes": "one", "transfer.lifting": "selection"},
    }
    assert [*found] == [*ways]
    for name, options in ways.items():
        alone = adapted(tmp_path / name, source, target, [shakespeare], **options).calibrate[1]
        assert (alone.loss, alone.candidates) == (found[name], None)
        equal = [torch.equal(tensors(tmp_path / name)[key], t) for key, t in tensors(tmp_path / "auto").items()]
        assert all(equal) == (name == report.calibrate[1].chosen)
    notes = CheckpointReader(str(tmp_path / "auto" / "transferred.zarr")).manifest.provenance["plan"]["notes"]
    assert any(f"of 3 fits {report.calibrate[1].chosen} is kept, for its loss of" in note for note in notes)
    # Known from then on: another store is made by the best alone.
    again = adapted(tmp_path / "again", source, target, [shakespeare], **auto)
    assert again.calibrate == report.calibrate
    # Nothing held out, nothing ranked.
    without = {"calibrate.passes": "auto", "calibrate.held_out": 0}
    (stage,) = adapted(tmp_path / "without", source, target, [shakespeare], **without).calibrate
    assert stage.candidates is None


def test_leaving_blocks_out_as_they_are_is_a_fit_too(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is stored for it, and the rest is the source's, to the bit."""
    pico = make_pico("llama")
    source = with_tokenizer(pico, pico_tokenizer)
    falling = itertools.count(4.0, -0.01)  # whatever comes last is best
    monkeypatch.setattr("bot_dist.fit.Statistics.loss", property(lambda self: next(falling)))
    report = adapted(tmp_path, source, {"layers": 2}, [shakespeare], **{"calibrate.passes": "auto"})
    assert report.calibrate[1].chosen == "one pass, predicting"
    kept = report.calibrate[1].facts["layer"]["kept"]
    for name, tensor in tensors(tmp_path).items():
        number = name.removeprefix("model.layers.").partition(".")[0]
        origin = name.replace(f"layers.{number}.", f"layers.{kept[int(number)]}.") if number.isdigit() else name
        assert torch.equal(tensor, pico.tensors[origin])


def test_a_fit_that_fails_is_not_kept(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str
) -> None:
    """Of units that are the same, the moment is singular without a ridge."""
    pico = make_pico("llama")
    with torch.no_grad():
        for name, parameter in pico.model.named_parameters():
            if "gate_proj" in name or "up_proj" in name:
                parameter[1::2] = parameter[::2]
    pico.model.save_pretrained(pico.folder)
    source, options = with_tokenizer(pico, pico_tokenizer), {"transfer.ridge": 0.0, "calibrate.passes": "one"}
    report = adapted(tmp_path, source, {"mlp": 30}, [shakespeare], **options)
    predicting, selecting = report.calibrate[1].candidates
    assert (predicting.loss, "is singular at ridge 0" in predicting.failed) == (None, True)
    assert report.calibrate[1].chosen == selecting.name
    options["transfer.lifting"] = "least-squares"
    with pytest.raises(InputError, match="is singular at ridge 0"):
        adapted(tmp_path / "alone", source, {"mlp": 30}, [shakespeare], **options)


def test_another_depth_policy_is_kept_to(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str
) -> None:
    pico = make_pico("llama", num_hidden_layers=4)
    source = with_tokenizer(pico, pico_tokenizer)
    report = adapted(tmp_path, source, {"layers": 2, "mlp": 24}, [shakespeare], **{"transfer.depth": "even"})
    assert [stage.axes for stage in report.calibrate] == [(), ("layer", "mlp")]
    assert report.calibrate[1].facts["layer"]["kept"] == [0, 2]
    for name in ("model.layers.1.self_attn.q_proj.weight", "model.layers.1.input_layernorm.weight"):
        of_source = dict(pico.model.named_parameters())[name.replace("layers.1", "layers.2")]
        assert torch.equal(tensors(tmp_path)[name], of_source)


def test_the_blocks_that_change_the_stream_most_stay_as_they_are(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str
) -> None:
    pico = make_pico("llama", num_hidden_layers=4)
    with torch.no_grad():
        for name in ("self_attn.o_proj", "mlp.down_proj"):
            pico.model.get_submodule(f"model.layers.1.{name}").weight.mul_(0.01)
    pico.model.save_pretrained(pico.folder)
    report = adapted(tmp_path, with_tokenizer(pico, pico_tokenizer), {"layers": 3}, [shakespeare])
    assert [*report.calibrate[1].facts["layer"]["kept"]] == [0, 2, 3]
    wanted = dict(pico.model.named_parameters())
    found = tensors(tmp_path)
    for target, origin in enumerate((0, 2, 3)):
        name = f"model.layers.{target}.mlp.up_proj.weight"
        assert torch.equal(found[name], wanted[f"model.layers.{origin}.mlp.up_proj.weight"])


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_two_neighbours_become_one_block(
    tmp_path: Path, make_pico: Factory, pico_tokenizer: Path, shakespeare: str, kind: str
) -> None:
    """Their weights are averaged, and what they write adds up where no norm comes after it."""
    source = with_tokenizer(make_pico(kind), pico_tokenizer)
    report = adapted(tmp_path / "one", source, {"layers": 2}, [shakespeare], **{"transfer.depth": "pairs"})
    (facts,) = (stage.facts["layer"] for stage in report.calibrate if "layer" in stage.facts)
    runs = [[0], [1, 2]] if facts["kept"] == [0, 1] else [[0, 1], [2]]
    stored = tensors(tmp_path / "one")
    before, model = open_source(source), model_of(open_source(source).config)
    for weight in (w for w in model.weights if w.layered):
        for i, run in enumerate(runs):
            parts = [model.parameter(weight, layer) for layer in run]
            total = torch.stack([before.read(p, whole(p.sizes)).reshape(p.shape) for p in parts]).sum(0)
            adds = weight.into_residual and model.family.half_steps
            wanted = total if adds else total / len(run)
            torch.testing.assert_close(stored[model.parameter(weight, i).name], wanted)
    small = {"layers": 2, "mlp": 24}
    adapted(tmp_path / "two", source, small, [shakespeare], **{"transfer.depth": "pairs"})
    assert not bot_dist.verify(str(tmp_path / "two" / "transferred.zarr")).damaged
    with pytest.raises(PlanError, match="'pairs' merges two blocks at most"):
        adapted(tmp_path / "three", source, {"layers": 1}, [shakespeare], **{"transfer.depth": "pairs"})


def test_averaged_blocks_are_those_of_the_same_function(tmp_path: Path, make_pico: Factory) -> None:
    """Where some norms are quieter, and what reads them is as much louder."""
    pico = make_pico("llama")
    made = {}
    for name in ("alike", "apart"):
        if name == "apart":
            for block in list(pico.model.model.layers)[::2]:
                readers = [getattr(block.self_attn, f"{letter}_proj") for letter in "qkv"]
                for module in (block.input_layernorm, block.post_attention_layernorm):
                    module.weight.data.div_(4)
                for module in (*readers, block.mlp.gate_proj, block.mlp.up_proj):
                    module.weight.data.mul_(4)
        pico.model.save_pretrained(pico.folder)
        data = {"source": pico.url, "output": str(tmp_path / name), "target": {"layers": 2, "embed": 16}}
        options = {"cluster.executor": "local", "transfer.analysis": "adaptive", "transfer.depth": "wavelet"}
        bot_dist.transfer(bot_dist.make_recipe(data, options))
        made[name] = tensors(tmp_path / name)
    block = "model.layers.0"
    for norm, reader in (("input_layernorm", "self_attn.q_proj"), ("post_attention_layernorm", "mlp.up_proj")):
        alike, apart = (t[f"{block}.{norm}.weight"] * t[f"{block}.{reader}.weight"] for t in made.values())
        torch.testing.assert_close(apart, alike, rtol=1e-4, atol=1e-6)
