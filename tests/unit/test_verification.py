"""Verifying a whole store: everything that is wrong is told, by name and index, whoever looks."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import zarr

from bot_dist.errors import CheckpointError
from bot_dist.pipeline import checks
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from bot_dist.store import CheckpointReader
from bot_dist.store.verification import parts, verify_part

PicoMaker = Callable[..., Any]


@pytest.fixture
def store(pico_llama: PicoMaker, tmp_path: Path) -> Path:
    """A committed store of a pico model with a tokenizer's file."""
    source = pico_llama()
    words = {"version": "1.0", "added_tokens": [], "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}
    (source.folder / "tokenizer.json").write_text(json.dumps(words))
    recipe = {"source": source.url, "output": str(tmp_path), "target_url": str(tmp_path / "store")}
    transfer(make_recipe({**recipe, "cluster": {"executor": "local", "tensor": 2}}))
    return tmp_path / "store"


def data(store: Path) -> Path:
    (folder,) = (path.parent for path in store.glob("data/*/zarr.json"))
    return folder


def flip(path: Path, offset: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


def hurt(store: Path) -> list[str]:
    """Damage a store in many ways; how each is told begins so."""
    folder = data(store)
    flip(folder / "model.norm.weight/c.0")
    (folder / "model.embed_tokens.weight/c.0.0").unlink()
    (folder / "model.layers.1.mlp.up_proj.weight/c.0.0").write_bytes(b"short")
    flip(folder / "model.layers.2.mlp.up_proj.weight/c.1.0", -1)
    (folder / "model.layers.0.mlp.up_proj.weight/zarr.json").write_text("{}")
    flip(folder / "tokenizer/tokenizer.json", -3)
    return [
        "model.embed_tokens.weight, chunk 0.0: shard data/",
        "model.norm.weight, chunk 0: digest",
        "model.layers.1.mlp.up_proj.weight, chunk 0.0: ",
        "model.layers.2.mlp.up_proj.weight, chunk index of c.1.0: ",
        f"data/{folder.name}/model.layers.0.mlp.up_proj.weight/zarr.json: not what the manifest says",
        "tokenizer/tokenizer.json: digest",
    ]


def test_an_intact_store_is_intact(store: Path) -> None:
    for quick in (False, True):
        found = checks.verify(str(store), quick=quick)
        assert (found.damaged, found.foreign) == ([], {})


def test_every_damage_is_told_whatever_the_number_of_workers(store: Path) -> None:
    expected = hurt(store)
    told = [str(damage) for damage in checks.verify(str(store)).damaged]
    assert not [wanted for wanted in expected if not any(line.startswith(wanted) for line in told)], told
    assert not [line for line in told if not line.startswith(tuple(expected))]
    reader = CheckpointReader(str(store))
    for workers in (1, 3):
        found = [damage for part in parts(reader, workers) for damage in verify_part(reader, part)]
        assert told[: len(found)] == [str(damage) for damage in found]


def test_a_store_that_is_replaced_meanwhile_is_told(store: Path) -> None:
    reader = CheckpointReader(str(store))
    with pytest.raises(CheckpointError, match="was replaced while it was read"):
        verify_part(CheckpointReader(reader.url, "another digest"), parts(reader, 1)[0])


def test_parts_are_all_the_shards_in_order_and_of_like_size(store: Path) -> None:
    reader = CheckpointReader(str(store))
    every = [(name, shard) for name, stored in reader.manifest.parameters.items() for shard in stored.shards()]
    for workers in (1, 2, 50):
        work = parts(reader, workers)
        assert [shard for part in work for shard in part.shards] == every
        share = sum(part.nbytes for part in work) / (8 * workers)
        assert all(part.nbytes <= share + 1 or len(part.shards) == 1 for part in work)


def test_progress_counts_every_byte_of_the_shards(store: Path) -> None:
    events: list[Any] = []
    checks.verify(str(store), events.append)
    start, *read, done = events
    assert (start.bytes, 0) == (sum(event.bytes for event in read), done.damaged)
    assert start.bytes == sum(path.stat().st_size for path in data(store).glob("*/c.*") if path.is_file())


def test_a_quick_look_sees_what_is_missing_or_of_another_size(store: Path) -> None:
    folder = data(store)
    flip(folder / "model.norm.weight/c.0")
    (folder / "model.embed_tokens.weight/c.0.0").unlink()
    (folder / "model.layers.1.mlp.up_proj.weight/c.0.0").write_bytes(b"short")
    (folder / "model.norm.weight/zarr.json").unlink()
    (folder / "tokenizer/tokenizer.json").write_text("")
    assert {damage.name for damage in checks.verify(str(store), quick=True).damaged} == {
        "model.embed_tokens.weight",
        "model.layers.1.mlp.up_proj.weight",
        f"data/{folder.name}/model.norm.weight/zarr.json",
        "tokenizer/tokenizer.json",
    }


def test_strangers_are_noted_and_harmless(store: Path) -> None:
    (store / "notes.txt").write_text("mine")
    (store / "data/another").mkdir()
    (store / "data/another/left.partial").write_text("by a killed writer")
    (data(store) / "model.norm.weight/c.7").write_text("seven")
    for quick in (False, True):
        found = checks.verify(str(store), quick=quick)
        norm = f"data/{data(store).name}/model.norm.weight/c.7"
        assert found.foreign == {"notes.txt": 4, "data/another/left.partial": 18, norm: 5}
        assert not found.damaged


def test_a_remote_store_is_verified_alike(pico_llama: PicoMaker) -> None:
    recipe = {"source": pico_llama().url, "output": ".", "target_url": "memory://verified"}
    transfer(make_recipe({**recipe, "cluster": {"executor": "local"}, "overwrite": True}))
    reader = CheckpointReader("memory://verified")
    assert not checks.verify(reader.url).damaged
    norm = f"{reader.manifest.data}/model.norm.weight"
    reader.storage.write("notes.txt", [b"mine"])
    reader.storage.remove(f"{norm}/c.0")
    for quick in (False, True):
        found = checks.verify(reader.url, quick=quick)
        assert [(damage.name, damage.chunk) for damage in found.damaged] == [("model.norm.weight", "0")]
        assert found.foreign == {"notes.txt": 4}
    assert f"{norm}/c.0 is missing" in str(checks.verify(reader.url).damaged[0])


def test_what_plain_zarr_sees_of_damage(store: Path) -> None:
    """The limits that the package's docstring tells."""
    group = zarr.open_group(data(store), mode="r")
    norm, up = (group[name] for name in ("model.norm.weight", "model.layers.0.mlp.up_proj.weight"))
    assert torch.equal(torch.from_numpy(norm[:]), CheckpointReader(str(store)).read_flat("model.norm.weight", 0, 24))
    flip(data(store) / "model.norm.weight/c.0")
    with pytest.raises(ValueError, match="checksum"):
        norm[:]
    (data(store) / "model.layers.0.mlp.up_proj.weight/c.1.0").unlink()
    assert np.isnan(up[20:]).all()
    assert not np.isnan(up[:20]).any()


@pytest.fixture
def fitted(pico_llama: PicoMaker, tmp_path: Path) -> Path:
    """A committed store that was made with operators fitted to its source."""
    recipe = {"source": pico_llama().url, "output": str(tmp_path), "target_url": str(tmp_path / "fitted")}
    more: dict[str, Any] = {
        "target": {"embed": 12, "mlp": 20},
        "transfer": {"analysis": "adaptive"},
        "cluster": {"executor": "local"},
    }
    more["calibrate"] = {"passes": "each", "tokens": 256, "held_out": 0, "context": 32}
    transfer(make_recipe({**recipe, **more}))
    return tmp_path / "fitted"


def test_the_operators_of_a_store_are_verified_with_it(fitted: Path) -> None:
    embed, mlp = CheckpointReader(str(fitted)).manifest.operators
    events: list[Any] = []
    for quick in (False, True):
        found = checks.verify(str(fitted), events.append, quick=quick)
        assert (found.damaged, found.foreign) == ([], {})
    start, *read, done, _ = events
    assert (start.bytes, 0) == (sum(event.bytes for event in read), done.damaged)
    assert start.bytes == sum(path.stat().st_size for path in fitted.rglob("c.*") if path.is_file())

    flip(data(fitted / mlp) / "mlp.read.mlp.down/c.1.0.0")
    (told,) = checks.verify(str(fitted)).damaged
    assert str(told).startswith(f"{mlp}: mlp.read.mlp.down, chunk 1.0.0: digest ")
    assert not checks.verify(str(fitted), quick=True).damaged
    (data(fitted / mlp) / "mlp.read.mlp.down/c.2.0.0").unlink()
    (fitted / embed / "manifest.json").write_text("{}")
    (fitted / "operators" / "notes.txt").write_text("mine")
    for quick, n in ((False, 3), (True, 2)):
        found = checks.verify(str(fitted), quick=quick)
        told_names = {damage.name for damage in found.damaged}
        assert (told_names, len(found.damaged)) == ({f"{mlp}: mlp.read.mlp.down", embed}, n)
        assert "is damaged: not the JSON of a manifest" in str(found.damaged[-1])
        assert found.foreign == {"operators/notes.txt": 4}


def test_a_store_of_operators_that_was_swapped_is_found(fitted: Path) -> None:
    """Whole in itself, it is not the one that the store was made with."""
    embed, mlp = CheckpointReader(str(fitted)).manifest.operators
    shutil.rmtree(fitted / embed)
    shutil.copytree(fitted / mlp, fitted / embed)
    assert not checks.verify(str(fitted / embed)).damaged
    for quick in (False, True):
        found = checks.verify(str(fitted), quick=quick)
        (told,) = found.damaged
        assert str(told).startswith(f"{embed}: another store lies there: digest ")
        assert not found.foreign


def test_an_operator_that_leads_out_of_the_store_is_refused(fitted: Path) -> None:
    manifest = CheckpointReader(str(fitted)).manifest
    for operators, message in (
        ({"../../elsewhere": "digest"}, "leads out of the store"),
        (["embed"], "names operators without their digests"),
    ):
        provenance = {**manifest.provenance, "operators": operators}
        (fitted / "manifest.json").write_bytes(dataclasses.replace(manifest, provenance=provenance).to_bytes())
        with pytest.raises(CheckpointError, match=message):
            checks.verify(str(fitted))
