"""What the README shows beside commands: a family of targets, and Python. Its commands are parsed by test_layers.py."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path

import pytest
import yaml

import bot_dist
from bot_dist.cli import main
from bot_dist.recipe import make_recipe, members_of

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def block(language: str) -> str:
    """The one block of code in this language."""
    (found,) = re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    return str(found)


def test_its_family_is_a_recipe() -> None:
    recipe = make_recipe({"source": "a", "output": "b", **yaml.safe_load(block("yaml"))})
    assert {name: member.train.steps for name, member in members_of(recipe).items()} == {"small": 0, "large": 500}


def test_its_python_calls_what_there_is() -> None:
    calls = [node for node in ast.walk(ast.parse(block("python"))) if isinstance(node, ast.Call)]
    home = {ast.unparse(call.func): call for call in calls}
    assert home.keys() == {"bot_dist.resize", "small.export", "bot_dist.run", "bot_dist.load_recipe"}
    for name, call in home.items():
        owner = bot_dist.Checkpoint if name.startswith("small.") else bot_dist
        known = inspect.signature(getattr(owner, name.partition(".")[2])).parameters
        assert {keyword.arg for keyword in call.keywords} <= known.keys()
    for named in re.findall(r"\bsmall\.(\w+)", README):
        assert hasattr(bot_dist.Checkpoint, named)


@pytest.mark.parametrize("name", ["quickstart", "grow_smollm2", "grow_smollm2_copy"])
def test_its_recipes_can_be_planned(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["plan", str(ROOT / f"configs/{name}.yaml")])
    assert stop.value.code == 0
    assert "function kept: " in capsys.readouterr().out
