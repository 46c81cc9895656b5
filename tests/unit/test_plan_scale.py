"""Plans for hundreds of billions of parameters and thousands of actors, on paper."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bot_dist.cli import main
from bot_dist.errors import InputError, PlanError
from bot_dist.pipeline.transfer import plan_transfer
from bot_dist.plan import Hardware, SourceModule, TransferPlan, make_plan, simulate, summarise, target_model
from bot_dist.recipe import TransferConfig, make_recipe
from bot_dist.tensors import Mesh
from tests.unit.test_plan import DOUBLE, HALF, SMOLLM2, planned

LLAMA = {"model_type": "llama", "head_dim": 128, "vocab_size": 128256, "num_key_value_heads": 8}
LLAMA_405B = {**LLAMA, "num_hidden_layers": 126, "hidden_size": 16384, "intermediate_size": 53248}
LLAMA_405B |= {"num_attention_heads": 128}
TO_70B = {"layers": 80, "embed": 8192, "mlp": 28672, "heads": 64}
LLAMA_70B = {**LLAMA, "num_hidden_layers": 80, "hidden_size": 8192, "intermediate_size": 28672}
LLAMA_70B |= {"num_attention_heads": 64}
TO_405B = {"layers": 126, "embed": 16384, "mlp": 53248, "heads": 128}
CASES = {"down": (LLAMA_405B, TO_70B), "up": (LLAMA_70B, TO_405B)}


def of_shapes(config: dict[str, Any], target: dict[str, int], mesh: Mesh, **transfer: Any) -> TransferPlan:
    """A plan from a configuration alone, all of it bfloat16."""
    from bot_dist.model import model_of

    model, options = model_of(config), TransferConfig(**transfer)
    modules = {
        w.name: SourceModule(nbytes=2 * model.weight_layers(w) * model.parameter(w).size, dtype="bfloat16")
        for w in model.weights
    }
    return make_plan(model, target_model(model, target, options), options, mesh, modules=modules, source_id="shapes")


@pytest.mark.parametrize("wavelet", ["haar", "bior6.8"])
@pytest.mark.parametrize("case", CASES)
def test_405_billion_parameters_over_1024_actors(case: str, wavelet: str) -> None:
    """Planned, validated and summed up in less than 10 s of CPU and 1 GB of memory (a process of its own)."""
    program = (
        "import json, re, resource\n"
        "from pathlib import Path\n"
        "from bot_dist.plan import summarise\n"
        "from bot_dist.tensors import Mesh\n"
        "from tests.unit.test_plan_scale import CASES, of_shapes\n"
        "used_s = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_utime\n"
        "before_s = used_s()\n"
        f"plan = of_shapes(*CASES[{case!r}], Mesh(tensor=8, data=128), wavelet={wavelet!r}, memory_limit=2**32)\n"
        "plan.validate()\n"
        "summary = summarise(plan, 8192)\n"
        "peak = max(summary.actor_peak)\n"
        "resident = re.search(r'VmHWM:\\s+(\\d+) kB', Path('/proc/self/status').read_text())\n"  # not the parent's
        "print(json.dumps([used_s() - before_s, int(resident[1]) * 1024, summary.actor_bytes, peak]))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    cpu_s, rss_bytes, actor_bytes, peak = json.loads(done.stdout)
    assert cpu_s < 10
    assert rss_bytes < 10**9
    assert len(actor_bytes) == 1024
    assert max(actor_bytes) < 1.1 * sum(actor_bytes) / 1024
    assert peak <= 2**32


@pytest.mark.parametrize("mesh", [Mesh(data=64), Mesh(tensor=3, data=21), Mesh(tensor=8, data=8), Mesh(tensor=64)])
@pytest.mark.parametrize("case", CASES)
def test_large_models_are_balanced(case: str, mesh: Mesh) -> None:
    """Also where the KV heads can't be cut evenly, or at all, over so many ranks."""
    config, target = CASES[case]
    config, target = {**config, "num_key_value_heads": 64}, {**target, "kv_heads": 64}
    loads = summarise(of_shapes(config, target, mesh, memory_limit=2**32), 8192).actor_bytes
    fair = sum(loads) / mesh.size
    assert max(abs(load - fair) for load in loads) < 0.1 * fair


@pytest.mark.parametrize("target", [HALF, DOUBLE])
def test_a_small_model_is_balanced_over_64_actors(target: dict[str, int]) -> None:
    for mesh in (Mesh(data=64), Mesh(tensor=3, data=21)):
        loads = summarise(planned(SMOLLM2, target, mesh), 128).actor_bytes
        fair = sum(loads) / mesh.size
        assert max(abs(load - fair) for load in loads) < 0.1 * fair


def test_an_actor_owns_tiles_of_its_tensor_parallel_rank() -> None:
    """All of them where the cut is even; what would make a rank's actors do more than others goes elsewhere."""

    def at_home(mesh: Mesh) -> float:
        plan = planned(SMOLLM2, DOUBLE, mesh)
        cut = {i: (d, a.cut) for i, m in enumerate(plan.modules) for d, a in enumerate(m.axes) if a.cut is not None}
        steps = [s for s in plan.steps() if s.module in cut]
        ranks = [cut[s.module][1].owner(s.target[cut[s.module][0]][0]) for s in steps]
        return sum(s.owner % mesh.tensor == rank for s, rank in zip(steps, ranks, strict=True)) / len(steps)

    assert at_home(Mesh(tensor=3, data=2)) > 0.95
    assert 0.6 < at_home(Mesh(tensor=4, data=2)) < 0.95


def test_layers_are_not_cut_where_their_halo_costs_most() -> None:
    """A long filter along the layers reads many for each: rows are cut instead."""
    plan = of_shapes(*CASES["down"], Mesh(), wavelet="bior6.8", memory_limit=2**32)
    assert summarise(plan, 1).bytes_read < 2.5 * sum(m.source_bytes for m in plan.modules)
    short = of_shapes(*CASES["down"], Mesh(), wavelet="haar", memory_limit=2**32)
    assert summarise(short, 1).bytes_read < 1.5 * sum(m.source_bytes for m in short.modules)


def test_a_simulation_names_what_limits() -> None:
    plan = of_shapes(*CASES["down"], Mesh(tensor=8, data=8), memory_limit=2**32)
    fast = {"storage_gb_s": 1e4, "network_gb_s": 1e4, "device_gb_s": 1e5, "request_s": 0.0}
    for limit, slow in (
        ("storage", {"storage_gb_s": 10.0}),
        ("network", {"network_gb_s": 1.0}),
        ("device", {"device_gb_s": 1.0}),
        ("requests", {"request_s": 60.0}),
    ):
        found = simulate(plan, Hardware(**{**fast, **slow}))
        assert found.limit == limit
        assert len(found.actors) == 64
    summary = summarise(plan, 1)
    storage = simulate(plan, Hardware(**{**fast, "storage_gb_s": 10.0}))
    assert [a.bytes_read + a.bytes_written for a in storage.actors] == list(summary.actor_bytes)
    whole_s = sum(summary.actor_bytes) / 10e9
    assert whole_s <= storage.slowest.total_s < 1.1 * whole_s
    assert all(0 < a.peak_bytes <= plan.memory_limit for a in storage.actors)


def test_the_guides_plan_from_a_configuration_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (Path(__file__).parents[2] / "docs/pages/how-to/use.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^bot_dist (plan \S+/config\.json .*)$", page, re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    config = tmp_path / shlex.split(command)[1]
    config.parent.mkdir()
    config.write_text(json.dumps({**LLAMA_70B, "torch_dtype": "bfloat16"}))
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(command))
    assert stop.value.code == 0
    assert re.search(r"the whole takes \S+ s, limited by \w+", capsys.readouterr().out)


def test_fitting_a_model_of_width_16384_is_planned(tmp_path: Path) -> None:
    """What a process would hold is worked out before anything is read, and refused where it is more than it may."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_405B))
    options = {"calibrate.text": ["text.txt"], "transfer.memory_limit": "64GiB", "cluster.data": 8}
    options["transfer.analysis"] = "adaptive"
    recipe = {"source": str(tmp_path / "config.json"), "output": str(tmp_path / "run"), "target": TO_70B}
    with pytest.raises(
        InputError, match=r"8,192 tokens can't tell 28,672 coordinates of 'mlp' .*tokens=28672 at least"
    ):
        plan_transfer(make_recipe(recipe, options))
    options["calibrate.tokens"] = "65536"
    with pytest.raises(PlanError, match="fitting layer, embed, heads, mlp takes about") as refused:
        plan_transfer(make_recipe(recipe, options))
    enough = re.findall(r"calibrate.memory_limit=(\w+)", str(refused.value))[0]
    assert 53248**2 * 8 * 3 / 2**30 < int(enough.removesuffix("GiB")) < 53248**2 * 8 * 10 / 2**30
    plan = plan_transfer(make_recipe(recipe, {**options, "calibrate.memory_limit": enough}))
    assert any(
        re.match(r"fitting takes \S+ GB of memory in each of 8 processes for the text", note) for note in plan.notes
    )
    assert any("65,536 are 2.3 for each of 28,672 coordinates of 'mlp'" in note for note in plan.notes)
