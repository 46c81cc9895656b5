"""Benchmarks are no tests, but each starts by the command that its docstring gives, and the guide gives no other."""

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


@pytest.mark.parametrize("page", ["docs/pages/results/measured.md", "configs/README.md"])
def test_pages_name_benchmarks_that_are_there(page: str) -> None:
    text = (ROOT / page).read_text()
    named = set(re.findall(r"python -m tests\.benchmarks\.(\w+)", text))
    assert named, f"{page} gives no command of a benchmark"
    assert named <= {path.stem for path in BENCHMARKS}
    assert "tests/benchmarks" not in text, "a benchmark is started by python -m tests.benchmarks.NAME"
