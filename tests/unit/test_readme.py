"""What the README and the guide show: recipes, Python, places in the code. test_layers.py parses their commands."""

from __future__ import annotations

import ast
import inspect
import json
import re
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import StableLmConfig, StableLmForCausalLM

import bot_dist
from bot_dist.baselines import BASELINES, baseline
from bot_dist.cli import main
from bot_dist.model import FAMILIES, model_of
from bot_dist.recipe import make_recipe, members_of
from bot_dist.registry import Registry
from tests.conftest import Pico, outputs
from tests.unit.test_layers import FLOORS, GUIDE, PACKAGE, ROOT

NOTEBOOK = ROOT / "docs/pages/tutorials/resize.ipynb"
MOST_LINES = 150
"""Lines of the README; what is more belongs in docs/."""


def blocks(path: Path, language: str) -> list[str]:
    """The blocks of code in this language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def with_blocks(language: str) -> Any:
    """Parametrises over every page that has code in this language."""
    pages = [path for path in GUIDE if blocks(path, language)]
    return pytest.mark.parametrize("page", pages, ids=lambda path: str(path.relative_to(ROOT)))


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


@with_blocks("yaml")
def test_yaml_is_of_a_recipe(page: Path) -> None:
    for block in blocks(page, "yaml"):
        recipe = make_recipe({"source": "a", "output": "b", **yaml.safe_load(block)})
        if recipe.family:
            assert {name: m.train.steps for name, m in members_of(recipe).items()} == {"small": 0, "large": 500}


@with_blocks("python")
def test_python_imports_and_calls_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and node.module:
                names: dict[str, Any] = {}
                exec(ast.unparse(node), names)  # a name of the module, or a module of the package
                assert {alias.name for alias in node.names} <= names.keys(), ast.unparse(node)
            if isinstance(node, ast.Call):
                owner, _, name = ast.unparse(node.func).rpartition(".")
                if known := {"bot_dist": bot_dist, "small": bot_dist.Checkpoint}.get(owner):
                    parameters = inspect.signature(getattr(known, name)).parameters
                    assert {keyword.arg for keyword in node.keywords} <= parameters.keys(), ast.unparse(node)
        for named in re.findall(r"\bsmall\.(\w+)", block):
            assert hasattr(bot_dist.Checkpoint, named)


@pytest.mark.parametrize("page", GUIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_named_files_exist(page: Path) -> None:
    """``bot_dist/…``, ``tests/…`` and the like, and ``plan/rules.py`` inside the package."""
    named = re.findall(r"`((?:[\w.-]+/)+(?:[\w-]+\.(?:py|sh|yaml|sbatch|txt))?)`", page.read_text())
    ours = [
        name
        for name in named
        if re.match(r"(bot_dist|launch|configs|tests|docs|findings|\.ci|\.github)/|.*\.py$", name)
    ]
    missing = [name for name in ours if not (ROOT / name).exists() and not (PACKAGE / name).exists()]
    assert not missing
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text()) if page.parent != ROOT / "configs" else []
    generated = {"recipe.md", "command-line.md", "comparisons.md"}
    assert not [to for to in links if not (page.parent / to).exists() and Path(to).name not in generated]


def test_the_architecture_names_every_folder() -> None:
    page = (ROOT / "docs/pages/reference/architecture.md").read_text()
    units = set().union(*FLOORS) - {"__init__"}
    assert not [name for name in units if f"`{name}/`" not in page and f"`{name}.py`" not in page]


@pytest.mark.parametrize("name", ["quickstart", "grow_smollm2", "grow_smollm2_copy"])
def test_its_recipes_can_be_planned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(ROOT / f"configs/{name}.yaml")])
    assert stop.value.code == 0
    shown = capsys.readouterr().out
    assert "function kept: " in shown
    if name == "grow_smollm2":  # the tutorial quotes it
        (quoted,) = re.findall(r"\*(function kept: [^*]*)\*", (ROOT / "docs/pages/tutorials/grow.md").read_text())
        assert quoted in shown


def defined_by(page: str) -> dict[str, Any]:
    """What a page's Python defines, its blocks run one after the other."""
    names: dict[str, Any] = {}
    exec("\n".join(blocks(ROOT / "docs/pages" / page, "python")), names)
    return names


def enter(monkeypatch: pytest.MonkeyPatch, registry: Registry[Any], name: str, page: str) -> None:
    """A page's Python as a file of a registry's folder."""
    module = types.ModuleType(f"entry_of_{name}")
    module.__dict__.update(defined_by(page))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(registry._modules, name, module.__name__)


def test_the_family_of_the_guide_keeps_its_function(
    save_pico: Callable[..., Pico], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, FAMILIES, "stablelm", "how-to/family.md")
    sizes = {"vocab_size": 64, "hidden_size": 24, "intermediate_size": 40, "num_hidden_layers": 3}
    config = StableLmConfig(**sizes, num_attention_heads=6, num_key_value_heads=3, use_qkv_bias=True)
    source = save_pico(StableLmForCausalLM(config))
    target = {"layers": 4, "embed": 48, "mlp": 80, "heads": 12}
    overrides = {"cluster.executor": "local", **{f"target.{name}": size for name, size in target.items()}}
    grown = bot_dist.resize(source.url, str(tmp_path / "grown.zarr"), overrides=overrides).model()
    torch.testing.assert_close(outputs(grown)["logits"], outputs(source.model)["logits"], rtol=0, atol=1e-4)


def test_the_baseline_of_the_guide_keeps_the_first_units(
    pico_gpt2: Callable[..., Pico], monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, BASELINES, "first-units", "how-to/baseline.md")
    source = model_of(pico_gpt2().model.config.to_dict())
    rule = baseline("first-units")(source, source.resized({"mlp": 48, "layers": 2}))
    assert rule.layers == (0, 1)
    assert {name for name, axes in rule.operators.items() if axes} == {
        "mlp.up.weight",
        "mlp.up.bias",
        "mlp.down.weight",
    }


def cells(kind: str) -> list[str]:
    notebook = json.loads(NOTEBOOK.read_text())
    return ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == kind]


def test_the_notebook_has_no_outputs_and_calls_what_there_is() -> None:
    notebook = json.loads(NOTEBOOK.read_text())
    code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert code
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code)
    for node in ast.walk(ast.parse("\n".join(cells("code")))):
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "bot_dist":
            assert hasattr(bot_dist, node.attr)


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    command = [sys.executable, "-c", "\n".join(cells("code"))]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    before, after = map(
        float, re.findall(r"loss of the source (\S+), of the model of 27 blocks (\S+)", result.stdout)[0]
    )
    assert before < after < before + 2
