"""Stores of format 1, as commit 9c917b3 wrote them (``tests/stores/README.md``), are read as they were."""

from __future__ import annotations

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import torch

import bot_dist
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.model import model_of
from bot_dist.operators import SUFFIXES, spec_from_json, spec_to_json
from bot_dist.pipeline import checks
from bot_dist.store import CheckpointReader
from bot_dist.store.summary import operator_rows
from bot_dist.tensors import whole

ARCHIVE = Path(__file__).parent.parent / "stores" / "format1.tar.xz"
EXPORTED = {
    "fitted": "773be88fb77df813ddecd2b43c36c3a4afc8acfee49c41c3b775dd769cb41636",
    "moments": "4073ebe27904c9d808e0d1e858bdc96e0d5138714dbf6e75bbfc9959d7ecae4c",
    "wavelets": "1199883137478b07e7759faa96aa2e8e36ac7458dac5b7386a405b4f0f7b12ce",
}
"""By store, the SHA-256 of the ``model.safetensors`` that it was exported to then."""
BEFORE = {
    "fitted": {"layers": 3, "embed": 8, "heads": 4, "kv_heads": 2, "mlp": 10},
    "moments": {"layers": 3, "embed": 8, "heads": 4, "kv_heads": 2, "mlp": 10},
    "wavelets": {"layers": 2, "embed": 8, "heads": 4, "mlp": 10},
}
"""The sizes of their sources."""
NAMES = {
    "fitted": {
        *("embed.gain.attn.norm", "embed.gain.mlp.norm", "embed.gain.norm", "embed.read.attn.norm"),
        *("embed.read.mlp.norm", "embed.read.norm", "embed.write", "embed.write.attn.out", "embed.write.mlp.down"),
        *("heads.keyvalue", "heads.query", "heads.read", "mlp.kept", "mlp.read"),
    },
    "moments": {
        *("embed.kept", "embed.read.attn.q", "embed.read.mlp.gate"),
        *("heads.keyvalue", "heads.query", "heads.read", "mlp.kept", "mlp.read"),
    },
    "wavelets": set(),
}
"""Of the operators that were fitted: units and heads were not yet named by the maps that read them."""


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("format-1")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="data")
    return folder


@pytest.mark.parametrize("name", EXPORTED)
def test_a_store_is_verified_and_exported_as_it_was(unpacked: Path, tmp_path: Path, name: str) -> None:
    store = unpacked / f"{name}.zarr"
    found = checks.verify(str(store))
    assert (found.damaged, found.foreign) == ([], {})
    reader = CheckpointReader(str(store))
    assert reader.optimizer_step == (7 if name == "moments" else None)
    assert {row.name for row in operator_rows(reader) if not row.name.endswith(SUFFIXES)} == NAMES[name]
    export_huggingface(reader, str(tmp_path / "out"))
    made = (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hashlib.sha256(made).hexdigest() == EXPORTED[name]
    now, then = (
        json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", unpacked / "exported" / name)
    )
    assert {key: now.get(key) for key in then if key != "transformers_version"}.items() <= then.items()


@pytest.mark.parametrize("name", EXPORTED)
def test_what_is_recorded_of_operators_keeps_its_form(unpacked: Path, name: str) -> None:
    recorded = CheckpointReader(str(unpacked / f"{name}.zarr")).manifest.provenance["details"]["modules"]
    specs = [spec for module in recorded.values() for _, spec in module["operators"] if spec is not None]
    assert specs
    for spec in specs:
        assert json.loads(json.dumps(spec_to_json(spec_from_json(spec)))) == spec


@pytest.mark.parametrize("name", EXPORTED)
def test_a_store_is_grown_back_from_its_details(unpacked: Path, tmp_path: Path, name: str) -> None:
    data = {"source": str(unpacked / f"{name}.zarr"), "output": str(tmp_path / "out"), "target": BEFORE[name]}
    bot_dist.transfer(bot_dist.make_recipe(data, {"cluster.executor": "local"}))
    restored = CheckpointReader(str(tmp_path / "out" / "transferred.zarr"))
    wanted = open_source(str(unpacked / "sources" / name))
    for _, _, p in model_of(wanted.config).parameters():
        expected, found = (s.read(p, whole(p.sizes)) for s in (wanted, restored))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * float(expected.abs().max()), msg=p.name)
    assert {p.learning_rate_factor for p in restored.manifest.parameters.values()} == {1.0}
