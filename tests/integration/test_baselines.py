"""Baselines: each against what its paper says of it, on pico models of the families that it is for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import save_file

from bot_dist.baselines import baseline
from bot_dist.baselines.rules.front import resized
from bot_dist.baselines.rules.ligo import STEPS
from bot_dist.data.byte_tokenizer import save_byte_tokenizer
from bot_dist.errors import InputError, PlanError, RecipeError
from bot_dist.formats.tokenizer import load_tokenizer
from bot_dist.model import model_of
from bot_dist.pipeline import transfer as transferring
from bot_dist.pipeline.export import export_store
from bot_dist.recipe import make_recipe
from bot_dist.store import CheckpointReader
from bot_dist.tensors import whole
from tests.conftest import UNTRAINED, Pico, outputs

TEXT = "It was the best of times, it was the worst of times, it was the age of wisdom. "


@pytest.fixture
def transfer(tmp_path: Path) -> Callable[..., CheckpointReader]:
    """``transfer(pico, baseline, target, **keys)``: the store."""

    def make(pico: Pico, name: str, target: dict[str, int], **keys: Any) -> CheckpointReader:
        output = tmp_path / f"run-{len([*tmp_path.glob('run-*')])}"
        data = {"source": pico.url, "output": str(output), "target": target, "cluster": {"executor": "local"}, **keys}
        recipe = make_recipe(data)
        transferring.transfer(recipe, baseline=baseline(name))
        reader = CheckpointReader(recipe.transferred_url)
        reader.check(model_of(reader.config))
        return reader

    return make


def tensors(reader: CheckpointReader) -> dict[str, torch.Tensor]:
    parameters = [p for _, _, p in model_of(reader.config).parameters()]
    assert {reader.learning_rate_factor(p) for p in parameters} == {1.0}
    return {p.name: reader.read(p, whole(p.sizes)).reshape(p.shape) for p in parameters}


def loaded(reader: CheckpointReader, folder: Path) -> Any:
    """The model of ``transformers``."""
    export_store(reader.url, str(folder))
    config = json.loads((folder / "config.json").read_text())
    return getattr(transformers, config["architectures"][0]).from_pretrained(folder, dtype=torch.float32)


WIDTHS = {
    "llama": {"embed": 48, "mlp": 80, "heads": 8, "kv_heads": 4},
    "gemma": {"embed": 48, "mlp": 80, "heads": 8, "kv_heads": 4},
    "gpt2": {"embed": 48, "mlp": 192, "heads": 6},
    "gpt_neox": {"embed": 48, "mlp": 80, "heads": 6},
    "bert": {"embed": 48, "mlp": 80, "heads": 6},
    "vit": {"embed": 48, "mlp": 80, "heads": 6},
}


@pytest.mark.parametrize("kind", WIDTHS)
def test_copies_and_identity_blocks_keep_the_function(
    kind: str, make_pico: Callable[..., Pico], transfer: Callable[..., CheckpointReader], tmp_path: Path
) -> None:
    """HyperCloning and FPI at integers, LLaMA Pro; heads tied and not, norms before sublayers and after."""
    pico = make_pico(kind)
    target = {**WIDTHS[kind], "layers": 5}
    stores = [transfer(pico, name, target) for name in ("hypercloning+llama-pro", "bert2bert-fpi+llama-pro")]
    assert all(torch.equal(a, b) for a, b in zip(*(tensors(s).values() for s in stores), strict=True))
    ours, theirs = outputs(loaded(stores[0], tmp_path / "export"))["logits"], outputs(pico.model)["logits"]
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max().item())


@pytest.mark.parametrize("kind", [kind for kind in WIDTHS if kind != "gemma"])
def test_noise_on_copies_cancels(
    kind: str, make_pico: Callable[..., Pico], transfer: Callable[..., CheckpointReader], tmp_path: Path
) -> None:
    """HyperCloning's optional noise: its power is a tenth of the weights', and the function stays what it was."""
    pico = make_pico(kind)
    target = {**WIDTHS[kind], "layers": 5}
    quiet, noisy = (transfer(pico, name, target) for name in ("hypercloning+llama-pro", "hypercloning-noise+llama-pro"))
    ours, theirs = outputs(loaded(noisy, tmp_path / "export"))["logits"], outputs(pico.model)["logits"]
    assert (ours - theirs).abs().max() < 1e-5 * max(1.0, theirs.abs().max().item())
    made, was = tensors(noisy), tensors(quiet)
    power = {name: ((made[name] - w).square().mean() / w.square().mean()).item() for name, w in was.items() if w.any()}
    maps = {name for name, p in power.items() if p > 0}
    assert 2 * target["layers"] <= len(maps) < len(power)
    for name in maps:
        assert was[name].dim() >= 2, name
        assert power[name] == pytest.approx(0.1, rel=0.25), name


def test_layers_alone(pico_gpt2: Callable[..., Pico], transfer: Callable[..., CheckpointReader]) -> None:
    pico = pico_gpt2(n_layer=3)

    def origins(name: str, layers: int) -> list[int]:
        made = tensors(transfer(pico, name, {"layers": layers}))
        of = [[torch.equal(made[f"transformer.h.{i}.attn.c_attn.weight"], w) for w in weights] for i in range(layers)]
        return [equal.index(True) for equal in of]

    weights = [pico.tensors[f"transformer.h.{i}.attn.c_attn.weight"] for i in range(3)]
    assert origins("stack", 6) == [0, 1, 2, 0, 1, 2]
    assert origins("interpolate", 6) == [0, 0, 1, 1, 2, 2]
    assert origins("llama-pro", 5) == [0, 0, 1, 1, 2]
    assert origins("even-layers", 2) == [0, 2]
    pro = tensors(transfer(pico, "llama-pro", {"layers": 5}))
    silent = [not pro[f"transformer.h.{i}.{w}.weight"].any() for i in range(5) for w in ("attn.c_proj", "mlp.c_proj")]
    assert silent == [False] * 2 + [True] * 2 + [False] * 2 + [True] * 2 + [False] * 2


def test_new_units_are_those_of_the_layer_above(
    pico_bert: Callable[..., Pico], transfer: Callable[..., CheckpointReader]
) -> None:
    pico = pico_bert()
    made = tensors(transfer(pico, "bert2bert-aki+stack", {**WIDTHS["bert"], "layers": 6}))
    theirs, block = pico.tensors, "bert.encoder.layer.{}."
    for layer, above in ((0, 1), (1, 2), (2, 2)):
        for name in ("attention.self.query", "intermediate.dense", "output.dense"):
            own, upper = (theirs[block.format(i) + name + ".weight"] for i in (layer, above))
            wanted = torch.cat([own, upper]).repeat(1, 2) / 2
            for place in (layer, layer + 3):
                assert torch.allclose(made[block.format(place) + name + ".weight"], wanted)
        norm = block.format(layer) + "output.LayerNorm.weight"
        wanted = torch.cat([theirs[norm], theirs[block.format(above) + "output.LayerNorm.weight"]])
        assert torch.equal(made[norm], wanted)
    word = "bert.embeddings.word_embeddings.weight"
    assert torch.equal(made[word], theirs[word].repeat(1, 2))


def test_units_are_ranked_by_magnitude(
    pico_gpt2: Callable[..., Pico], transfer: Callable[..., CheckpointReader]
) -> None:
    pico = pico_gpt2()
    loud = {0: [5, 17, 90], 1: [0, 1, 2], 2: [93, 94, 95]}
    tensors_ = {name: t.detach().clone() for name, t in pico.tensors.items()}
    for layer, units in loud.items():
        tensors_[f"transformer.h.{layer}.mlp.c_fc.weight"][:, units] *= 10
    tensors_["transformer.h.1.attn.c_attn.weight"].view(24, 3, 3, 8)[:, :, 1] *= 10
    tensors_["transformer.wte.weight"][:, [2, 20]] *= 10
    save(pico, tensors_)
    made = tensors(transfer(pico, "minitron-magnitude+even-layers", {"mlp": 3, "embed": 8, "heads": 1}))
    assert made["transformer.h.0.mlp.c_fc.bias"].tolist() == tensors_["transformer.h.0.mlp.c_fc.bias"][loud[0]].tolist()
    assert made["transformer.h.2.mlp.c_fc.bias"].tolist() == tensors_["transformer.h.2.mlp.c_fc.bias"][loud[2]].tolist()
    theirs = tensors_["transformer.h.1.attn.c_attn.bias"].view(3, 3, 8)[:, 1]
    assert torch.equal(made["transformer.h.1.attn.c_attn.bias"].view(3, 8), theirs)
    kept = [tensors_["transformer.ln_f.weight"].tolist().index(v) for v in made["transformer.ln_f.weight"].tolist()]
    assert kept == sorted(kept)
    assert {2, 20} <= {*kept}


def save(pico: Pico, changed: dict[str, torch.Tensor]) -> None:
    save_file({k: v.contiguous() for k, v in changed.items()}, pico.folder / "model.safetensors", {"format": "pt"})


@pytest.fixture
def text(tmp_path: Path) -> str:
    (tmp_path / "text.txt").write_text(TEXT * 60)
    return str(tmp_path / "text.txt")


def test_units_are_ranked_by_what_they_put_out(
    pico_gpt2: Callable[..., Pico], transfer: Callable[..., CheckpointReader], text: str
) -> None:
    """Units whose bias makes them loud on any text; a block that does nothing goes first."""
    pico = pico_gpt2(vocab_size=257)
    save_byte_tokenizer(pico.folder)
    changed = {name: t.detach().clone() for name, t in pico.tensors.items()}
    for layer, units in {0: [7, 8], 1: [1, 50], 2: [3, 95]}.items():
        changed[f"transformer.h.{layer}.mlp.c_fc.bias"][units] = 20.0
    for part in ("attn.c_proj", "mlp.c_proj"):
        changed[f"transformer.h.1.{part}.weight"].zero_()
        changed[f"transformer.h.1.{part}.bias"].zero_()
    save(pico, changed)
    calibrate = {"tokens": 256, "context": 16, "held_out": 0}
    options = {"train": {"text": [text], "context": 16}, "calibrate": calibrate}
    with pytest.raises(InputError, match=r"train\.text .*, and a uniform guess over 257 tokens has 5\.55"):
        transfer(pico, "minitron-activation", {"mlp": 2, "layers": 2}, **options)
    options["calibrate"] = {**calibrate, **UNTRAINED}
    made = transfer(pico, "minitron-activation", {"mlp": 2, "layers": 2}, **options)
    facts = made.manifest.provenance["transfer"]["made"]
    assert facts["layers"] == [0, 2]
    assert facts["flops"] == 256 * model_of(pico.model.config.to_dict()).flops_per_token(16)
    found = tensors(made)
    for layer, origin, units in ((0, 0, [7, 8]), (1, 2, [3, 95])):
        theirs = changed[f"transformer.h.{origin}.mlp.c_proj.weight"][units]
        assert torch.equal(found[f"transformer.h.{layer}.mlp.c_proj.weight"], theirs)


def test_growth_is_learned(
    pico_gpt2: Callable[..., Pico], transfer: Callable[..., CheckpointReader], text: str, tmp_path: Path
) -> None:
    pico = pico_gpt2(vocab_size=257, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    save_byte_tokenizer(pico.folder)
    train = {"text": [text], "context": 16, "batch": 8}
    target = {"embed": 48, "mlp": 192, "heads": 6, "layers": 6}
    made = transfer(pico, "ligo", target, train=train)
    facts = made.manifest.provenance["transfer"]["made"]
    losses = facts["losses"]
    assert len(losses) == STEPS
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 0.2
    trained = model_of(made.config).training_flops_per_token(16) * 16 * 8 * STEPS
    assert trained < facts["flops"] < 10 * trained
    start = transfer(pico, "hypercloning+stack", target)  # but for its noise, what learning starts from
    ids = torch.tensor(load_tokenizer(pico.url)(TEXT * 8)["input_ids"][:512]).view(32, 16)
    loss = {}
    for store in (start, made):
        with torch.no_grad():
            model = loaded(store, tmp_path / f"export-{len(loss)}")
            loss[store.url] = model(input_ids=ids, labels=ids).loss.item()
    assert loss[made.url] < loss[start.url] - 0.2
    assert loss[start.url] == pytest.approx(losses[0], abs=0.2)


def dct_by_fft(values: np.ndarray) -> np.ndarray:
    """The orthonormal DCT-II of the last axis, by the FFT of the mirrored signal."""
    n = values.shape[-1]
    spectrum = np.fft.fft(np.concatenate([values, values[..., ::-1]], -1))[..., :n]
    found = (spectrum * np.exp(-1j * np.pi * np.arange(n) / (2 * n))).real / np.sqrt(2 * n)
    found[..., 0] /= np.sqrt(2)
    return found


@pytest.mark.parametrize("sizes", [(3, 8, 5), (6, 20, 10), (3, 20, 10)])
def test_frequencies_are_truncated_or_padded(sizes: tuple[int, ...]) -> None:
    values = 3 + 2 * torch.randn(3, 8, 10, generator=torch.Generator().manual_seed(0))
    made = resized(values, sizes)
    assert made.shape == sizes
    assert made.mean() == pytest.approx(values.mean().item(), abs=1e-5)
    assert made.std(correction=0) == pytest.approx(values.std(correction=0).item(), abs=1e-5)
    before, after = (x.double().numpy() - x.double().mean().item() for x in (values, made))
    for axis in range(3):
        before = np.moveaxis(dct_by_fft(np.moveaxis(before, axis, -1)), -1, axis)
        after = np.moveaxis(dct_by_fft(np.moveaxis(after, axis, -1)), -1, axis)
    shared = tuple(slice(min(pair)) for pair in zip(before.shape, after.shape, strict=True))
    scale = (before[shared] * after[shared]).sum() / (before[shared] ** 2).sum()
    off = after[shared] - scale * before[shared]
    off[0, 0, 0] = 0  # the mean is restored
    assert np.abs(off).max() < 1e-5
    after[shared] = 0
    assert np.abs(after).max() < 1e-5


def test_frequencies_of_a_model(pico_gpt2: Callable[..., Pico], transfer: Callable[..., CheckpointReader]) -> None:
    """Fused queries, keys and values each by themselves; both directions; what has no deviation stays."""
    pico = pico_gpt2()
    for target in (
        {"embed": 48, "mlp": 192, "heads": 6, "layers": 6},
        {"embed": 16, "mlp": 40, "heads": 2, "layers": 2},
    ):
        made = tensors(transfer(pico, "front", target))
        name, n, layers = "transformer.h.{}.attn.c_attn.weight", target["embed"], target["layers"]
        theirs = torch.stack([pico.tensors[name.format(i)] for i in range(3)]).view(3, 24, 3, 24)
        for slot in range(3):
            wanted = resized(theirs[:, :, slot].permute(0, 2, 1), (layers, n, n)).permute(0, 2, 1)
            ours = torch.stack([made[name.format(i)] for i in range(layers)]).view(layers, n, 3, n)[:, :, slot]
            assert torch.allclose(ours, wanted, atol=1e-6)


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("hypercloning", {"mlp": 100}, r"axis 'mlp' \(96 → 100\): HyperCloning is for integer ratios; use a multiple"),
        (
            "hypercloning",
            {"layers": 6},
            r"says nothing of it; join it .*: hypercloning\+interpolate or hypercloning\+llama-pro",
        ),
        ("hypercloning", {"mlp": 40}, r"axis 'mlp' \(96 → 40\): bert2BERT only grows|HyperCloning"),
        ("stack", {"layers": 6, "mlp": 192}, r"axis 'mlp' .* says nothing of it; join it .* hypercloning\+stack"),
        ("stack", {"layers": 2}, r"axis 'layer' \(3 → 2\): stacking .* only grows"),
        ("bert2bert-aki", {"layers": 6}, r"join it: bert2bert-aki\+stack"),
        ("hypercloning-noise", {"layers": 6}, r"join it: hypercloning-noise\+stack"),
        ("hypercloning-noise", {"mlp": 100}, r"axis 'mlp' \(96 → 100\): HyperCloning is for integer ratios"),
        ("weight-selection", {"mlp": 120}, r"axis 'mlp' \(96 → 120\): weight selection only shrinks"),
        ("minitron-magnitude", {"mlp": 120}, r"axis 'mlp' \(96 → 120\): selection by magnitude only shrinks"),
        ("ligo", {"context": 64}, r"axis 'position' \(32 → 64\): LiGO says nothing of it; keep its size"),
    ],
)
def test_what_a_rule_does_not_say_is_refused(
    name: str,
    target: dict[str, int],
    message: str,
    pico_gpt2: Callable[..., Pico],
    transfer: Callable[..., CheckpointReader],
) -> None:
    with pytest.raises(PlanError, match=message):
        transfer(pico_gpt2(), name, target)


def test_names_are_checked() -> None:
    for name, message in {
        "hyperclone": "unknown baseline 'hyperclone'; did you mean 'hypercloning'",
        "hypercloning+stak": "'stak' is no rule about layers",
        "stack+stack": "join one about widths with one of",
    }.items():
        with pytest.raises(RecipeError, match=message):
            baseline(name)
