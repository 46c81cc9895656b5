"""Docstrings stand alone in an editor's hover: they begin like a sentence, end like one, and say what they are of."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.test_layers import MODULES, PACKAGE

FRAGMENT = re.compile(r"[a-z]|(Of|Where|What|By|As|Per|From|Or|How it|How they)\b")
"""Beginnings that lean on the name they stand under: ``nbytes``, "Of their files."."""


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """Every docstring of a module, its classes and functions, and those under its constants and fields, by line."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if (text := ast.get_docstring(node)) is not None:
                yield node.body[0].lineno, text
            for before, after in zip(node.body, node.body[1:], strict=False):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if is_text and isinstance(before, ast.Assign | ast.AnnAssign):
                    yield after.lineno, str(after.value.value)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_docstrings_are_sentences(path: Path) -> None:
    lacking = [
        line for line, text in docstrings(path) if not re.search(r"[.?!:]\"?$|```$", text.strip().splitlines()[-1])
    ]
    fragments = [line for line, text in docstrings(path) if FRAGMENT.match(text)]
    assert not fragments, f"{path.name}: docstrings of lines {fragments} are no sentences"
    assert not lacking, f"{path.name}: docstrings of lines {lacking} have no end"


def test_the_rule_sees_its_cases() -> None:
    for fragment in ("Of the difference.", "Where it is kept.", "this many targets.", "What a map does."):
        assert FRAGMENT.match(fragment)
    for sentence in ("Largest absolute difference between the two tensors.", "Whether it is tied.", "One shard."):
        assert not FRAGMENT.match(sentence)
