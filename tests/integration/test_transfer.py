"""The function is kept where it should be, and the bytes don't depend on who computes them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pywt
import torch

import bot_dist
from bot_dist.errors import BotDistError, CheckpointError, CheckpointExistsError
from bot_dist.events import Event, OnEvent
from bot_dist.events.transfer import StepDone
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.store import CheckpointReader, CheckpointWriter
from bot_dist.tensors import whole

LLAMA_X2 = {"embed": 48, "mlp": 80, "heads": 8, "kv_heads": 4}
GPT2_X2 = {"embed": 48, "mlp": 192, "heads": 6}
PicoFactory = Callable[..., Any]


def transfer(source: str, target_url: Path, target: dict[str, int], **overrides: Any) -> CheckpointReader:
    recipe = {"source": source, "output": str(target_url.parent), "target_url": str(target_url), "target": target}
    options = {"cluster.executor": "local", "transfer.analysis": "wavelet", **overrides}
    bot_dist.transfer(bot_dist.make_recipe(recipe, options))
    return CheckpointReader(str(target_url))


def tensors(reader: CheckpointReader) -> dict[str, torch.Tensor]:
    return {
        name: reader.read(s.parameter, whole(s.parameter.sizes)).reshape(s.parameter.shape)
        for name, s in reader.manifest.parameters.items()
    }


def logits(reader: CheckpointReader, folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    export_huggingface(reader, str(folder))
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    return run(model)


def run(model: Any) -> torch.Tensor:
    ids = torch.arange(40).reshape(2, 20) * 7 % 64
    with torch.no_grad():
        result: torch.Tensor = model.eval()(ids).logits
    return result


def make(family: str, tied: bool, pico_llama: PicoFactory, pico_gpt2: PicoFactory, **config: Any) -> Any:
    return pico_llama(tied=tied, **config) if family == "llama" else pico_gpt2(**config)


MODELS = [("llama", True), ("llama", False), ("gpt2", True)]


@pytest.mark.parametrize(("family", "tied"), MODELS)
@pytest.mark.parametrize("layers", [3, 6])
def test_haar_growth_with_measure_keeps_the_logits(
    family: str, tied: bool, layers: int, tmp_path: Path, pico_llama: PicoFactory, pico_gpt2: PicoFactory
) -> None:
    pico = make(family, tied, pico_llama, pico_gpt2)
    sizes = {**(LLAMA_X2 if family == "llama" else GPT2_X2), "layers": layers}
    grown = transfer(pico.url, tmp_path / "grown", sizes, **{"transfer.depth": "identity"})
    before, after = run(pico.model), logits(grown, tmp_path / "export")
    assert (after - before).abs().max() < 1e-5 * before.abs().max()


@pytest.mark.parametrize(("family", "tied"), MODELS)
def test_shrinking_a_grown_model_returns_the_source(
    family: str, tied: bool, tmp_path: Path, pico_llama: PicoFactory, pico_gpt2: PicoFactory
) -> None:
    pico = make(family, tied, pico_llama, pico_gpt2)
    up = LLAMA_X2 if family == "llama" else GPT2_X2
    half = {name: n // 2 for name, n in up.items()}
    for layers in ({}, {"layers": 6}):
        grown = transfer(pico.url, tmp_path / f"grown{len(layers)}", {**up, **layers}, **{"transfer.gain": "measure"})
        back = {**half, **({"layers": 3} if layers else {})}
        shrunk = transfer(grown.url, tmp_path / f"back{len(layers)}", back, **{"transfer.gain": "measure"})
        for name, tensor in tensors(shrunk).items():
            torch.testing.assert_close(tensor, pico.tensors[name].detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "coif3", "bior6.8"])
def test_a_module_is_the_3d_approximation_band_of_pywavelets(
    wavelet: str, tmp_path: Path, pico_llama: PicoFactory
) -> None:
    """The paper's transform: stack a weight over layers, keep ``cA`` of ``dwtn``."""
    pico = pico_llama(num_hidden_layers=4)
    options = {"transfer.wavelet": wavelet, "transfer.gain": "orthonormal"}
    shrunk = tensors(transfer(pico.url, tmp_path / "s", {"layers": 2, "embed": 12, "mlp": 20}, **options))
    name = "model.layers.{}.mlp.gate_proj.weight"
    module = np.stack([pico.tensors[name.format(i)].detach().numpy() for i in range(4)])
    band = pywt.dwtn(module.astype(np.float64), wavelet, "periodization", axes=(1, 2))["aa"]
    if wavelet == "haar":  # longer filters meet the ends of the layer axis, where ours extends symmetrically
        band = pywt.dwt(band, wavelet, "periodization", axis=0)[0]
        np.testing.assert_allclose(np.stack([shrunk[name.format(i)] for i in range(2)]), band, rtol=1e-4, atol=1e-6)
    else:
        deep = tensors(transfer(pico.url, tmp_path / "d", {"embed": 12, "mlp": 20}, **options))
        np.testing.assert_allclose(np.stack([deep[name.format(i)] for i in range(4)]), band, rtol=1e-4, atol=1e-6)


TARGETS = [
    ("llama", {"layers": 6, "embed": 12, "mlp": 80}),  # larger on two axes, smaller on one
    ("llama", {"heads": 12, "kv_heads": 6, "embed": 48}),
    ("gpt2", {"embed": 72, "heads": 6, "mlp": 72}),
]


@pytest.mark.parametrize(("family", "target"), TARGETS)
@pytest.mark.parametrize("wavelet", ["haar", "bior6.8"])
def test_the_bytes_do_not_depend_on_the_mesh_or_the_limit(
    family: str,
    target: dict[str, int],
    wavelet: str,
    tmp_path: Path,
    pico_llama: PicoFactory,
    pico_gpt2: PicoFactory,
) -> None:
    sizes = {"n_embd": 36, "n_head": 3} if family == "gpt2" else {"num_attention_heads": 6, "num_key_value_heads": 3}
    pico = make(family, True, pico_llama, pico_gpt2, **sizes)
    options = {"transfer.wavelet": wavelet}
    one = tensors(transfer(pico.url, tmp_path / "one", target, **options))
    for tensor, data, limit in ((2, 1, "1 GiB"), (3, 2, "1 GiB"), (2, 1, "32 KiB")):
        mesh = {"cluster.tensor": tensor, "cluster.data": data, "transfer.memory_limit": limit}
        other = tensors(transfer(pico.url, tmp_path / f"{tensor}{data}{limit}", target, **options, **mesh))
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert one.keys() == other.keys()


@pytest.mark.ray
@pytest.mark.parametrize("tensor", [1, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))])
def test_ray_actors_give_the_bytes_of_this_process(
    tensor: int, ray_cluster: None, tmp_path: Path, pico_llama: PicoFactory
) -> None:
    import ray

    pico = pico_llama(num_attention_heads=6, num_key_value_heads=3)
    target = {"layers": 6, "embed": 12, "kv_heads": 12, "heads": 12}
    local = tensors(transfer(pico.url, tmp_path / "local", target, **{"transfer.wavelet": "db3"}))
    options = {"transfer.wavelet": "db3", "cluster.executor": "ray", "cluster.tensor": tensor}
    by_ray = tensors(transfer(pico.url, tmp_path / "ray", target, **options))
    assert all(torch.equal(local[name], by_ray[name]) for name in local)
    assert not [actor for actor in ray.util.list_named_actors(all_namespaces=True) if "bot_dist" in actor["name"]]
    assert ray.is_initialized()


def test_an_interrupted_transfer_resumes(
    tmp_path: Path, pico_llama: PicoFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    pico = pico_llama()
    target, url = {"embed": 12}, tmp_path / "store"
    writes: list[str] = []
    write = CheckpointWriter.write

    def interrupted(self: CheckpointWriter, name: str, *rest: Any) -> bytes:
        if len(writes) == 20:
            raise KeyboardInterrupt
        writes.append(name)
        return write(self, name, *rest)

    monkeypatch.setattr(CheckpointWriter, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        transfer(pico.url, url, target)
    assert not (url / "manifest.json").exists()
    monkeypatch.setattr(CheckpointWriter, "write", write)
    (damaged,) = url.glob("data/*/model.embed_tokens.weight/c.0.0")
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\0")
    resumed: dict[str, bool] = {}
    recipe = {"source": pico.url, "output": str(tmp_path), "target_url": str(url), "target": target}
    report = bot_dist.transfer(
        bot_dist.make_recipe(recipe, {"cluster.executor": "local", "transfer.analysis": "wavelet"}),
        lambda e: resumed.update({e.step: e.resumed}) if isinstance(e, StepDone) else None,
    )
    assert resumed["embed-00000"] is False  # damaged meanwhile: done again
    assert report.steps_resumed == sum(resumed.values()) > 0
    whole_run = tensors(transfer(pico.url, tmp_path / "whole", target))
    assert all(torch.equal(t, whole_run[name]) for name, t in tensors(CheckpointReader(str(url))).items())
    assert not [*url.glob("data/*/_steps")]


def test_a_committed_target_is_refused(tmp_path: Path, pico_llama: PicoFactory) -> None:
    pico = pico_llama()
    transfer(pico.url, tmp_path / "store", {"embed": 12})
    with pytest.raises(CheckpointExistsError, match="--overwrite"):
        transfer(pico.url, tmp_path / "store", {"embed": 12})
    transfer(pico.url, tmp_path / "store", {"embed": 48}, overwrite=True)


def test_the_manifest_tells_where_it_came_from(tmp_path: Path, pico_llama: PicoFactory) -> None:
    pico = pico_llama()
    reader = transfer(pico.url, tmp_path / "store", {"embed": 12, "layers": 6})
    provenance = reader.manifest.provenance
    assert provenance["source"]["url"] == pico.url
    assert provenance["plan"]["operators"]["mlp.up"] == {"layer": "copy ×1", "embed": "haar ×1.41"}
    assert 0 < provenance["transfer"]["energy_kept"]["attn.q"] < 1
    assert provenance["versions"]["torch"] == torch.__version__.split("+")[0] or "torch" in provenance["versions"]
    assert json.loads((tmp_path / "store" / "zarr.json").read_text())["zarr_format"] == 3


def test_energy_kept_is_the_share_that_survives(tmp_path: Path, pico_llama: PicoFactory) -> None:
    """What was grown by an orthonormal wavelet is all in the approximation band; noise keeps its share of the band."""
    pico = pico_llama(hidden_size=64, intermediate_size=128)
    grown = transfer(pico.url, tmp_path / "g", {"embed": 128, "mlp": 256, "layers": 6}, **{"transfer.wavelet": "db2"})
    back = {"embed": 64, "mlp": 128}
    kept = transfer(grown.url, tmp_path / "b", back, **{"transfer.wavelet": "db2"}).manifest.provenance["transfer"]
    assert all(share == pytest.approx(1, abs=1e-4) for share in kept["energy_kept"].values())
    noise = transfer(pico.url, tmp_path / "n", {"embed": 32, "mlp": 64}).manifest.provenance["transfer"]
    assert noise["energy_kept"]["mlp.up"] == pytest.approx(0.25, abs=0.02)


def test_bfloat16_in_and_out(tmp_path: Path, pico_llama: PicoFactory) -> None:
    pico = pico_llama(dtype=torch.bfloat16)
    kept = transfer(pico.url, tmp_path / "kept", {})
    assert all(torch.equal(t, pico.tensors[name].detach()) for name, t in tensors(kept).items())
    wide = transfer(pico.url, tmp_path / "wide", {"embed": 12}, **{"transfer.dtype": "float32"})
    assert {t.dtype for t in tensors(wide).values()} == {torch.float32}


def test_tiles_smaller_than_a_source_cell(tmp_path: Path, pico_llama: PicoFactory) -> None:
    """A growing axis cut so finely that some tiles stand for no source index: its energy is counted once."""
    pico = pico_llama(intermediate_size=2, num_attention_heads=8, num_key_value_heads=8)
    target = {"mlp": 8, "embed": 16}
    one = transfer(pico.url, tmp_path / "one", target)
    fine = transfer(pico.url, tmp_path / "fine", target, **{"cluster.tensor": 8})
    assert all(torch.equal(tensors(one)[name], tensor) for name, tensor in tensors(fine).items())
    kept = [reader.manifest.provenance["transfer"]["energy_kept"] for reader in (one, fine)]
    assert kept[1] == pytest.approx(kept[0], rel=1e-6)


def on_first_step(act: Callable[[], object]) -> OnEvent:
    acted: list[object] = []

    def on_event(event: Event) -> None:
        if isinstance(event, StepDone) and not acted:
            acted.append(act())

    return on_event


@pytest.mark.parametrize("kind", ["safetensors", "store"])
def test_a_source_that_is_replaced_while_it_is_read_is_told(kind: str, tmp_path: Path, pico_llama: PicoFactory) -> None:
    """Its parts would be mixed."""
    source, other = pico_llama(), pico_llama(rms_norm_eps=1e-5)
    url = source.url if kind == "safetensors" else transfer(source.url, tmp_path / "source", {}).url

    def replace() -> None:
        if kind == "safetensors":
            with torch.no_grad():
                source.model.model.norm.weight.add_(1)
            source.model.save_pretrained(source.folder)
        else:
            transfer(other.url, tmp_path / "source", {}, overwrite=True)

    recipe = {"source": url, "output": str(tmp_path), "target_url": str(tmp_path / "store"), "target": {"embed": 12}}
    resolved = bot_dist.make_recipe(recipe, {"cluster.executor": "local"})
    with pytest.raises(BotDistError, match=r"was changed while it was read|are missing or damaged"):
        bot_dist.transfer(resolved, on_first_step(replace))
    assert not (tmp_path / "store/manifest.json").exists()
    again = resolved.model_copy(update={"overwrite": kind == "store"})  # of the old one an unfinished attempt is left
    assert bot_dist.transfer(again).steps_resumed == 0


def test_a_store_pickled_knows_what_it_was(tmp_path: Path, pico_llama: PicoFactory) -> None:
    """As it is sent to an actor that starts later."""
    store = transfer(pico_llama().url, tmp_path / "store", {})
    sent = pickle.dumps(store)
    assert pickle.loads(sent).manifest.digest == store.manifest.digest
    transfer(pico_llama(rms_norm_eps=1e-5).url, tmp_path / "store", {}, overwrite=True)
    with pytest.raises(CheckpointError, match="was replaced while it was read"):
        pickle.loads(sent).config  # noqa: B018


def test_what_is_overwritten_by_its_own_plan_stays_whole_until_then(tmp_path: Path, pico_llama: PicoFactory) -> None:
    source, url = pico_llama().url, tmp_path / "store"
    first = transfer(source, url, {"embed": 12})
    before = tensors(first)

    def stop() -> None:
        raise KeyboardInterrupt

    recipe = {"source": source, "output": str(tmp_path), "target_url": str(url), "target": {"embed": 12}}
    options = {"cluster.executor": "local", "transfer.analysis": "wavelet", "overwrite": True}
    resolved = bot_dist.make_recipe(recipe, options)
    with pytest.raises(KeyboardInterrupt):
        bot_dist.transfer(resolved, on_first_step(stop))
    assert not bot_dist.verify(str(url)).damaged
    bot_dist.transfer(resolved)
    again = CheckpointReader(str(url))
    assert again.manifest.data != first.manifest.data
    assert all(torch.equal(tensor, before[name]) for name, tensor in tensors(again).items())
    assert len([*url.glob("data/*")]) == 1
