"""Into a store and out again, without a change of size: every byte is kept, and little memory is taken."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from bot_dist.formats.export_folder import RECORD
from bot_dist.model import model_of
from bot_dist.pipeline.export import export_store
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from bot_dist.store import CheckpointReader, CheckpointWriter, store_layout
from tests.conftest import Pico

PicoMaker = Callable[..., Pico]


@pytest.mark.parametrize(
    "options", [{}, {"dtype": torch.bfloat16, "max_shard_size": "9KB"}], ids=["one file", "shards of bfloat16"]
)
def test_every_byte_is_kept(pico: PicoMaker, tmp_path: Path, options: dict[str, Any]) -> None:
    made = pico(**options)
    assert (made.folder / "model.safetensors.index.json").exists() == bool(options)
    store, straight, through = (str(tmp_path / name) for name in ("store", "straight", "through"))
    recipe = {"source": made.url, "output": str(tmp_path), "target_url": store, "cluster": {"executor": "local"}}
    transfer(make_recipe(recipe))
    for url, folder in ((made.url, straight), (store, through)):
        export_store(url, folder, max_shard_bytes=9_000 if options else None)
    expected, found = ({path.name: path.read_bytes() for path in Path(f).iterdir()} for f in (straight, through))
    said, says = (json.loads(files.pop("config.json")) for files in (expected, found))
    assert {key: value for key, value in said.items() if value is not None}.items() <= says.items()
    for differs in ("README.md", RECORD):  # which names what it is made of; which has its digest
        assert expected.pop(differs) != found.pop(differs)
    assert found == expected
    read = {name: tensor for path in Path(through).glob("*.safetensors") for name, tensor in load_file(path).items()}
    assert read.keys() == made.tensors.keys()
    assert all(read[name].dtype == t.dtype and torch.equal(read[name], t) for name, t in made.tensors.items())


BIG = {
    "model_type": "llama",
    "vocab_size": 4096,
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 5,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
"""Of a Llama of 0.98 GB in float32."""


@pytest.fixture(scope="module")
def big_store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of random values."""
    url = str(tmp_path_factory.mktemp("big") / "store")
    stored = [store_layout(parameter) for _, _, parameter in model_of(BIG).parameters()]
    writer = CheckpointWriter.create(url, stored, config=BIG, attempt="plan")
    generator, digests = torch.Generator().manual_seed(0), {}
    for s in stored:
        for shard in s.shards():
            values = torch.randn([stop - start for start, stop in shard], generator=generator)
            digests.setdefault(s.parameter.name, {})[s.shard_key(shard)] = writer.write(s.parameter.name, shard, values)
    writer.commit(digests, {})
    return url


EXPORT = """
import json, sys
from bot_dist.pipeline.export import export_store

def status(key):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(key))

pico, big, folder = sys.argv[1:]
measured = {}
for to in ("safetensors", "dcp"):
    export_store(pico, f"{folder}/pico-{to}", to=to)  # everything is imported, and has run
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    idle = status("VmRSS:")
    report = export_store(big, f"{folder}/big-{to}", to=to)
    measured[to] = {"bytes": report.weight_bytes, "more": status("VmHWM:") - idle}
print(json.dumps(measured))
"""


def test_an_export_holds_a_few_pieces(pico_llama: PicoMaker, big_store: str, tmp_path: Path) -> None:
    command = [sys.executable, "-c", EXPORT, pico_llama().url, big_store, str(tmp_path)]
    measured = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert all(export["bytes"] > 900_000_000 for export in measured.values())
    assert all(export["more"] < 200_000_000 for export in measured.values()), measured


def test_a_large_model_is_sharded_and_loads(big_store: str, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    result = export_store(big_store, str(tmp_path / "out"), max_shard_bytes=300_000_000)
    weights = [tmp_path / "out" / name for name in result.files if name.endswith(".safetensors")]
    assert len(weights) == 4
    assert all(path.stat().st_size < 300_100_000 for path in weights)
    index = json.loads((tmp_path / "out/model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == result.weight_bytes
    model, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    reader = CheckpointReader(big_store)
    name = "model.layers.4.mlp.down_proj.weight"
    (wanted,) = [tensor for _, tensor in reader.tensors([name])]
    assert torch.equal(model.get_parameter(name), wanted)
