"""Comparing two checkpoints: by metadata, by digests, by values."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from bot_dist.errors import CheckpointError
from bot_dist.events import Event
from bot_dist.events.checkpoints import DiffDone
from bot_dist.formats import diff
from bot_dist.formats.diff import Diff
from bot_dist.pipeline import checks
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from tests.conftest import Pico

PicoMaker = Callable[..., Pico]
Stored = Callable[..., str]


@pytest.fixture
def stored(tmp_path: Path) -> Stored:
    """``stored(source, tensor=…, **target)``: the URL of a store made of a source."""

    def make(source: str, tensor: int = 1, **target: int) -> str:
        url = str(tmp_path / f"store-{len(list(tmp_path.glob('store-*')))}")
        cluster = {"executor": "local", "tensor": tensor}
        recipe = {"source": source, "output": str(tmp_path), "target_url": url, "target": target, "cluster": cluster}
        transfer(make_recipe({**recipe, "transfer": {"analysis": "wavelet"}}))
        return url

    return make


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every parameter of a pico model takes several of them."""
    monkeypatch.setattr(diff, "PIECE", 200)
    monkeypatch.setattr(diff, "_BLOCK", 64)


def edit(folder: Path, **changes: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Change tensors of a model, by the last words of their names."""
    path = folder / "model.safetensors"
    tensors = load_file(path)
    for end, change in changes.items():
        (name,) = [name for name in tensors if name.endswith(f"{end}.weight")]
        tensors[name] = change(tensors[name].clone())
    save_file(tensors, path, {"format": "pt"})


def differing(found: Diff) -> dict[str, str]:
    return {difference.name: difference.what for difference in found.parameters}


def test_formats_hold_the_same_model(pico: PicoMaker, stored: Stored) -> None:
    made = pico(dtype=torch.bfloat16)
    found = checks.diff(made.url, stored(made.url))
    assert found.equal
    assert (found.by_digests, found.by_reading, found.undecided) == (0, len(made.tensors), {})


def test_stores_of_one_layout_are_compared_by_digests(pico_llama: PicoMaker, stored: Stored) -> None:
    made = pico_llama()
    events: list[Event] = []
    found = checks.diff(stored(made.url), stored(made.url), events.append)
    assert (found.equal, found.by_digests) == (True, len(made.tensors))
    assert [type(event) for event in events] == [DiffDone]  # nothing is read


def test_stores_of_two_layouts_are_read(pico_llama: PicoMaker, stored: Stored) -> None:
    made = pico_llama()
    whole, cut = stored(made.url), stored(made.url, tensor=2)
    quick, events = checks.diff(whole, cut, quick=True), []
    assert quick.equal
    assert quick.undecided
    found = checks.diff(whole, cut, events.append)
    assert found.equal
    assert (found.by_reading, found.undecided) == (len(quick.undecided), {})
    start, *read, done = events
    assert done.differing == 0
    assert start.elements == sum(quick.undecided.values()) == sum(event.elements for event in read)


@pytest.mark.parametrize("through", ["safetensors", "stores"])
def test_values_that_differ_are_measured(pico_llama: PicoMaker, stored: Stored, through: str) -> None:
    a, b = pico_llama(), pico_llama()
    norm, up = "model.norm.weight", "model.layers.1.mlp.up_proj.weight"
    edit(
        b.folder, **{"model.norm": lambda t: t.index_fill(0, torch.tensor(5), 9), "layers.1.mlp.up_proj": lambda t: -t}
    )
    found = checks.diff(*(stored(p.url) if through == "stores" else p.url for p in (a, b)))
    assert differing(found) == dict.fromkeys((norm, up), "digests" if through == "stores" else "")
    by_name = {difference.name: difference.values for difference in found.parameters}
    x, y = a.tensors[norm].double(), b.tensors[norm].double().index_fill(0, torch.tensor(5), 9)
    assert by_name[norm].elements == 1
    assert by_name[norm].max_abs == pytest.approx((x - y).abs().max().item())
    assert by_name[norm].relative == pytest.approx(((x - y).norm() / x.norm()).item())
    assert by_name[up].elements == a.tensors[up].numel()
    assert by_name[up].relative == pytest.approx(2)


def test_bits_count_also_where_no_value_differs(pico_llama: PicoMaker) -> None:
    a, b = pico_llama(), pico_llama()
    edit(a.folder, **{"model.norm": torch.zeros_like})
    edit(b.folder, **{"model.norm": lambda t: -torch.zeros_like(t)})
    (difference,) = checks.diff(a.url, b.url).parameters
    assert (difference.values.elements, difference.values.max_abs) == (24, 0)


def test_nan_equals_itself_and_nothing_else(pico_llama: PicoMaker) -> None:
    a, b = pico_llama(), pico_llama()
    for folder in (a.folder, b.folder):
        edit(folder, **{"model.norm": lambda t: t.index_fill(0, torch.tensor(3), math.nan)})
    assert checks.diff(a.url, b.url).equal
    edit(b.folder, **{"model.norm": lambda t: t.index_fill(0, torch.tensor([2, 20]), math.nan)})
    (difference,) = checks.diff(a.url, b.url).parameters
    assert difference.values.elements == 2
    assert math.isnan(difference.values.max_abs)


def test_dtypes_and_shapes_and_configurations_are_told(pico_llama: PicoMaker, stored: Stored) -> None:
    made, half = pico_llama(), pico_llama(dtype=torch.bfloat16)
    found = checks.diff(made.url, half.url)
    assert {*differing(found).values()} == {"dtype float32, bfloat16"}
    assert all(0 < difference.values.relative < 0.01 for difference in found.parameters)
    assert not found.config
    found = checks.diff(stored(made.url), stored(made.url, layers=2, mlp=20))
    assert found.config == {"num_hidden_layers": (3, 2), "intermediate_size": (40, 20)}
    told = differing(found)
    assert told["model.layers.2.mlp.up_proj.weight"] == "only in the first"
    assert told["model.layers.0.mlp.down_proj.weight"] == "shape 24×40, 24×20; learning rate factor 1, 2"
    assert "model.embed_tokens.weight" not in told


def test_a_quick_look_tells_by_digests(pico_llama: PicoMaker, stored: Stored) -> None:
    a, b = pico_llama(), pico_llama()
    edit(b.folder, **{"model.norm": lambda t: t + 1})
    (difference,) = checks.diff(stored(a.url), stored(b.url), quick=True).parameters
    assert (difference.name, difference.what, difference.values) == ("model.norm.weight", "digests", None)


def test_a_damaged_store_is_no_difference_but_an_error(pico_llama: PicoMaker, stored: Stored) -> None:
    made = pico_llama()
    store = stored(made.url)
    (shard,) = Path(store).glob("data/*/model.norm.weight/c.0")
    shard.write_bytes(b"short")
    with pytest.raises(CheckpointError, match=r"model\.norm\.weight"):
        checks.diff(made.url, store)
