"""Benchmarks are no tests, but each starts by the command that its docstring gives, and the READMEs give no other."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BENCHMARKS = sorted((ROOT / "tests" / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", BENCHMARKS, ids=lambda path: path.stem)
def test_a_benchmark_starts_by_the_command_that_it_gives(path: Path) -> None:
    assert re.search(rf"python -m tests\.benchmarks\.{path.stem}\b", path.read_text())
    command = [sys.executable, "-m", f"tests.benchmarks.{path.stem}", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("readme", ["README.md", "configs/README.md"])
def test_readmes_name_benchmarks_that_are_there(readme: str) -> None:
    text = (ROOT / readme).read_text()
    named = set(re.findall(r"python -m tests\.benchmarks\.(\w+)", text))
    assert named, f"{readme} gives no command of a benchmark"
    assert named <= {path.stem for path in BENCHMARKS}
    assert "tests/benchmarks" not in text, "a benchmark is started by python -m tests.benchmarks.NAME"
