"""What fitted operators drop is kept, and growing from the store gives the source back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import bot_dist
from bot_dist.formats.open import open_source
from bot_dist.model import model_of
from bot_dist.store import CheckpointReader
from bot_dist.tensors import whole
from tests.integration.test_adaptive import SMALLER, adapted, unsettled, with_quiet_norms, with_tokenizer

Factory = Callable[..., Any]
STORE = "transferred.zarr"
KEPT = {"transfer.keep_details": True}
TIED = {"tie_word_embeddings": True}
CASES: dict[str, tuple[str, dict[str, Any], dict[str, int], dict[str, Any]]] = {
    "llama": ("llama", {}, SMALLER["llama"], {}),
    "llama tied, rotated": ("llama", TIED, {"embed": 16}, {"calibrate.passes": "one"}),
    "llama tied, permuted": ("llama", TIED, {"layers": 2, "embed": 16}, {"transfer.basis": "permutation"}),
    "llama units": ("llama", {}, {"mlp": 24}, {}),
    "llama heads": ("llama", {}, {"heads": 2, "kv_heads": 1}, {"calibrate.passes": "one"}),
    "llama layers": ("llama", {}, {"layers": 2}, {}),
    "llama averaged layers": ("llama", {}, {"layers": 2, "mlp": 24}, {"transfer.depth": "wavelet"}),
    "gpt2": ("gpt2", {}, SMALLER["gpt2"], {}),
    "gpt2 units": ("gpt2", {}, {"mlp": 40}, {}),
    "gemma": ("gemma", {}, SMALLER["gemma"], {}),
    "bert": ("bert", {}, SMALLER["bert"], {}),
}


def grown(store: Path, folder: Path, target: dict[str, int], **options: Any) -> CheckpointReader:
    data = {"source": str(store), "output": str(folder), "target": target}
    bot_dist.transfer(bot_dist.make_recipe(data, {"cluster.executor": "local", **options}))
    return CheckpointReader(str(folder / STORE))


def before(url: str, target: dict[str, int]) -> dict[str, int]:
    """The source's sizes of what a target names."""
    sizes = model_of(open_source(url).config).sizes
    heads = sizes.get("heads", sizes.get("kv_heads", 0) * sizes.get("group", 0))
    return {name: {**sizes, "layers": sizes["layer"], "heads": heads}[name] for name in target}


def every(reader: CheckpointReader) -> dict[str, torch.Tensor]:
    """Tensors of the model, and details."""
    return dict(reader.tensors([*reader.manifest.parameters]))


EPS = 2.0**-24
"""Half a unit in the last place of float32, relative."""


def worst_condition(stores: list[CheckpointReader]) -> float:
    """By how much undoing what was fitted may enlarge the rounding of weights and operators, at most."""
    matrices = [
        tensor.double()
        for store in stores
        for name, tensor in store.tensors([*store.manifest.parameters])
        if tensor.ndim >= 2 and min(tensor.shape[-2:]) > 1 and not name.endswith(".dual")
    ]
    return max((float(torch.linalg.cond(matrix).max()) for matrix in matrices), default=1.0)


def notes(reader: CheckpointReader) -> list[str]:
    found: list[str] = reader.manifest.provenance["plan"]["notes"]
    return found


@pytest.fixture
def source(make_pico: Factory, pico_tokenizer: Path) -> Callable[..., str]:
    def make(kind: str, **config: Any) -> str:
        pico = make_pico(kind, **config)
        unsettled(pico.model)
        with_quiet_norms(pico.model)
        pico.model.save_pretrained(pico.folder)
        return with_tokenizer(pico, pico_tokenizer)

    return make


@pytest.mark.parametrize("case", CASES)
def test_details_give_the_source_back(tmp_path: Path, source: Callable[..., str], shakespeare: str, case: str) -> None:
    kind, config, target, options = CASES[case]
    url = source(kind, **config)
    adapted(tmp_path / "small", url, target, [shakespeare], **KEPT, **options)
    small = CheckpointReader(str(tmp_path / "small" / STORE))
    details = sum(s.parameter.size for name, s in small.manifest.parameters.items() if name.startswith("details/"))
    assert any(f"{details:,} values beside" in note for note in notes(small))
    stores = [CheckpointReader(f"{small.url}/{folder}") for folder in small.manifest.operators]
    duals = sum(s.nbytes for store in stores for name, s in store.manifest.parameters.items() if name.endswith(".dual"))
    assert any(f"takes {duals:,} bytes" in note for note in notes(small)) == (duals > 0)
    bound = max(3e-6, EPS * worst_condition(stores))
    shutil.move(tmp_path / "small" / STORE, tmp_path / "moved")
    restored = grown(tmp_path / "moved", tmp_path / "again", before(url, target))
    wanted = open_source(url)
    assert restored.config == wanted.config
    for _, _, p in model_of(wanted.config).parameters():
        expected, found = (s.read(p, whole(p.sizes)) for s in (wanted, restored))
        error = (found - expected).abs().max() / expected.abs().max()
        assert error < bound, p.name
    assert {p.learning_rate_factor for p in restored.manifest.parameters.values()} == {1.0}
    (note,) = notes(restored)
    assert note.startswith("details restore: ")


def test_what_is_fitted_per_layer_is_restored_with_the_layers_only(
    tmp_path: Path, source: Callable[..., str], shakespeare: str
) -> None:
    """What is not, axis by axis; the notes of the plans say so."""
    url = source("llama")
    apart = {**KEPT, "calibrate.passes": "one"}
    adapted(tmp_path / "both", url, {"layers": 2, "mlp": 24}, [shakespeare], **apart)
    kept = notes(CheckpointReader(str(tmp_path / "both" / STORE)))
    assert kept[0].startswith("details of layer, mlp are kept: ")
    assert "what is fitted differs per layer, so it is undone only together with the layers" in kept
    deep = grown(tmp_path / "both" / STORE, tmp_path / "deep", {"layers": 3})
    assert notes(deep)[-1] == (
        "the details that the source keeps are not used, and not kept in the target: they restore layer, mlp together "
        "only"
    )
    adapted(tmp_path / "widths", url, {"embed": 16, "mlp": 24}, [shakespeare], **apart)
    adapted(tmp_path / "narrow", url, {"embed": 16}, [shakespeare], **{"calibrate.passes": "one"})
    wide = grown(tmp_path / "widths" / STORE, tmp_path / "wide", {"mlp": 40})
    assert notes(wide) == ["details restore: mlp", "details of embed are not kept in the target"]
    for name, tensor in CheckpointReader(str(tmp_path / "narrow" / STORE)).tensors():
        torch.testing.assert_close(dict(wide.tensors())[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_cluster")
def test_actors_write_and_restore_what_one_process_does(
    tmp_path: Path, source: Callable[..., str], shakespeare: str
) -> None:
    """In tiles of any size."""
    url = source("llama")
    folder = tmp_path / "small"
    adapted(folder, url, SMALLER["llama"], [shakespeare], **KEPT, **{"transfer.memory_limit": "256KiB"})
    small = every(CheckpointReader(str(folder / STORE)))
    back = before(url, SMALLER["llama"])
    restored = [
        every(grown(folder / STORE, tmp_path / limit, back, **{"transfer.memory_limit": limit}))
        for limit in ("128KiB", "1GiB")
    ]
    ray = {"cluster.executor": "ray", "cluster.tensor": 2}
    restored.append(every(grown(folder / STORE, tmp_path / "ray", back, **ray)))
    shutil.rmtree(folder / STORE / "data")
    (folder / STORE / "manifest.json").unlink()
    adapted(folder, url, SMALLER["llama"], [shakespeare], **KEPT, **ray)
    again = every(CheckpointReader(str(folder / STORE)))
    assert any(name.startswith("details/") for name in small)
    for one, two in ((small, again), (restored[0], restored[1]), (restored[0], restored[2])):
        assert one.keys() == two.keys()
        assert all(torch.equal(tensor, two[name]) for name, tensor in one.items())
