"""The house rules: who may import whom, what loads when, what lies at the top level of the repository."""

from __future__ import annotations

import ast
import json
import re
import runpy
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bot_dist.compare.recipe import load_comparison
from bot_dist.recipe import load_recipe

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "bot_dist"

FLOORS = [  # of the architecture, lowest first; the names of one line do not import each other
    {"units", "urls", "version"},
    {"errors", "events"},
    {"kernels", "parsing", "registry", "results", "storage", "tensors"},
    {"model", "operators", "recipe"},
    {"plan"},
    {"store"},
    {"execute", "formats"},
    {"data"},
    {"fit", "train"},
    {"baselines", "report"},
    {"pipeline"},
    {"compare"},
    {"__init__"},
    {"cli"},
]
FLOOR_OF = {name: number for number, names in enumerate(FLOORS, 1) for name in names}
ONLY_IN = {
    "ray": {"execute", "train"},
    "deepspeed": {"train"},
    "transformers": {"baselines", "compare", "data", "fit", "formats", "train"},
    "numba": {"kernels"},
}
HEAVY = {"torch", "ray", "deepspeed", "transformers", "zarr", "numpy", "pandas", "matplotlib", "pywt", "numba"}
TOP_LEVEL = {"bot_dist", "launch", "configs", "tests", "findings", "docs", "pyproject.toml", "README.md", "LICENSE"}

MODULES = sorted(PACKAGE.rglob("*.py"))
GUIDE = [ROOT / "README.md", ROOT / "configs/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
"""Every page that is read by people."""


def unit_of(path: Path) -> str:
    """The folder or single module of the package that a file belongs to, as FLOORS names it."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(source: str, package: str) -> Iterator[tuple[str, int, bool]]:
    """Every import of a module: (dotted name, line, whether it runs when the module loads).

    ``package`` resolves relative imports. ``from bot_dist import plan`` counts as ``bot_dist.plan``.
    """
    lazy_lines: set[int] = set()
    tree = ast.parse(source)
    for node in ast.walk(tree):
        checking = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        if checking or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            lazy_lines.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            module = ".".join([*parents, *([node.module] if node.module else [])])
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "bot_dist" else [module]
        else:
            continue
        for name in names:
            yield name, node.lineno, node.lineno not in lazy_lines


def package_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).parent.parts)


def layer_violations(unit: str, source: str, package: str) -> Iterator[str]:
    for name, line, _ in imports_of(source, package):
        parts = name.split(".")
        if parts[0] != "bot_dist":
            continue
        target = parts[1] if len(parts) > 1 and parts[1] in FLOOR_OF else "__init__"
        if target == unit or FLOOR_OF[target] < FLOOR_OF[unit]:
            continue
        yield (
            f"line {line}: {unit} imports {name}, which is not below it; a module imports only from "
            "floors below its own: move what both need down, or the caller up"
        )


def library_violations(unit: str, source: str, package: str) -> Iterator[str]:
    for name, line, at_load in imports_of(source, package):
        library = name.split(".")[0]
        if library in ONLY_IN and unit not in ONLY_IN[library]:
            yield f"line {line}: {unit} imports {library}, which only {', '.join(sorted(ONLY_IN[library]))} may"
        if library == "deepspeed" and at_load:
            yield f"line {line}: deepspeed at module level; import it in the function that a worker runs (ray #50406)"


def test_every_module_has_a_floor() -> None:
    homeless = sorted({unit_of(path) for path in MODULES} - FLOOR_OF.keys())
    assert not homeless, f"{homeless} stand on no floor: add them to FLOORS here and to the architecture"


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_floors_below(path: Path) -> None:
    assert not list(layer_violations(unit_of(path), path.read_text(), package_of(path)))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_heavy_libraries_stay_in_their_folders(path: Path) -> None:
    assert not list(library_violations(unit_of(path), path.read_text(), package_of(path)))


@pytest.mark.parametrize(
    "source",
    [
        "import bot_dist.execute",
        "from bot_dist import execute",
        "from bot_dist.execute.local import LocalExecutor",
        "from ..execute import LocalExecutor",
        "from .. import execute",
        "def f():\n    from bot_dist.train import engine",
        "if TYPE_CHECKING:\n    from bot_dist.train import engine",
        "from bot_dist import Recipe",
    ],
)
def test_the_rule_sees_every_form_of_import(source: str) -> None:
    assert list(layer_violations("plan", source, "bot_dist.plan"))


def test_the_rule_allows_floors_below_and_the_own_folder() -> None:
    forms = (
        "from . import cost",
        "from ..tensors.axes import Axis",
        "import bot_dist.errors",
        "from bot_dist.plan.summary import Summary",
    )
    allowed = "\n".join(forms)
    assert not list(layer_violations("plan", allowed, "bot_dist.plan"))


@pytest.mark.parametrize(
    ("unit", "source"),
    [
        ("plan", "def f():\n    import ray"),
        ("execute", "import transformers"),
        ("compare", "def f():\n    import deepspeed.comm"),
        ("train", "import deepspeed"),
        ("train", "try:\n    import deepspeed\nexcept ImportError: ..."),
    ],
)
def test_the_library_rule_sees_its_cases(unit: str, source: str) -> None:
    assert list(library_violations(unit, source, f"bot_dist.{unit}"))


def test_a_worker_function_may_import_deepspeed() -> None:
    assert not list(library_violations("train", "def loop():\n    import deepspeed", "bot_dist.train"))


def test_command_line_loads_nothing_heavy() -> None:
    code = "import sys, json, bot_dist.cli; print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    loaded = HEAVY & set(json.loads(result.stdout))
    assert not loaded, f"`import bot_dist.cli` loads {sorted(loaded)}: import them inside the functions that need them"


def test_top_level_holds_only_what_the_architecture_names() -> None:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    top = {name.split("/")[0] for name in listed.split("\0") if name}
    extra = {name for name in top if not name.startswith(".")} - TOP_LEVEL
    assert not extra, f"{sorted(extra)} at the top level; everything lives in {sorted(TOP_LEVEL)}"


RECIPES = sorted((ROOT / "configs").rglob("*.yaml"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.name)
def test_recipes_load_and_write_where_their_name_says(path: Path) -> None:
    load = load_comparison if path.stem.startswith("compare_") else load_recipe
    assert load(path).output == f"runs/{path.stem}"


def readme_commands(text: str) -> list[list[str]]:
    """The commands of the ```bash blocks, split into words; continued lines joined, comments and prompts left out."""
    blocks = re.findall(r"^```(?:bash|sh|console)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    words = (shlex.split(line.removeprefix("$ "), comments=True) for line in lines)
    return [command for command in words if command]


def verbs() -> set[str]:
    from typer.main import get_command

    from bot_dist.cli.command import app

    command = get_command(app)
    return set(command.list_commands(command.make_context("bot_dist", ["--help"], resilient_parsing=True)))


def test_the_launcher_knows_every_verb() -> None:
    assert set(runpy.run_path(str(ROOT / "launch/run.py"))["VERBS"]) == verbs()


def unknown_in(command: list[str]) -> list[str]:
    """What a command of a page names that this repository doesn't have: scripts, recipes, verbs, options, keys."""
    paths = [word for word in command if re.match(r"(launch|configs|tests|\.ci)/", word)]
    missing = [word for word in paths if not (ROOT / word).exists()]
    if Path(command[0]).name != "bot_dist" or not command[1:] or command[1].startswith("-"):
        return missing
    if command[1] not in verbs():
        return [*missing, f"verb {command[1]}"]
    return missing or [*refused(*command[1:])]


def refused(verb: str, *arguments: str) -> Iterator[str]:
    """What the command line, or the recipe that it names, has to say against a command. Nothing is run."""
    from typer.main import get_command

    from bot_dist.cli.command import app

    command = get_command(app)
    try:
        parsed = command.commands[verb].make_context(verb, [*arguments]).params  # type: ignore[attr-defined]
        if arguments[0].startswith("configs/"):
            load = load_comparison if verb == "compare" else load_recipe
            load(ROOT / arguments[0], parsed.get("overrides") or [])
    except Exception as error:  # click's, which typer hides, or RecipeError
        yield str(error)


def test_readme_commands_are_found_and_checked() -> None:
    block = "# a comment\n$ bash launch/nothing.sh --set a='b c'\n.venv/bin/bot_dist grow \\\n  configs/no.yaml\n"
    text = f"Text.\n```bash\n{block}```\n```yaml\nbash: launch/no.sh\n```\n"
    first, second = readme_commands(text)
    assert first == ["bash", "launch/nothing.sh", "--set", "a=b c"]
    assert unknown_in(first) == ["launch/nothing.sh"]
    assert unknown_in(second) == ["configs/no.yaml", "verb grow"]
    assert not unknown_in(["bash", "launch/quickstart.sh"])
    for wrong in ("--layer=3", "--layers=many", "--set=train.step=3"):
        assert unknown_in(["bot_dist", "scale", "configs/quickstart.yaml", wrong]), wrong
    assert not unknown_in(["bot_dist", "run", "configs/quickstart.yaml"])


@pytest.mark.parametrize("page", GUIDE, ids=lambda path: str(path.relative_to(ROOT)))
def test_commands_name_only_what_exists(page: Path) -> None:
    commands = readme_commands(page.read_text())
    if page.name == "README.md" and page.parent == ROOT:
        assert ["bash", "launch/quickstart.sh"] in commands
    unknown = {shlex.join(command): missing for command in commands if (missing := unknown_in(command))}
    assert not unknown, f"commands name what is not there: {unknown}"
