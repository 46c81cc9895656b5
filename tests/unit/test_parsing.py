"""Whatever JSON and YAML hold, they are read or refused in one error that names them, at once."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import pytest

from bot_dist.errors import MOST_CHARACTERS, RecipeError, SourceError
from bot_dist.parsing import MOST_DEPTH, YAML_BYTES, parse_json, parse_object, parse_yaml
from bot_dist.recipe import load_recipe, make_recipe

LAUGHS = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join(9 * [f'*a{i - 1}'])}]\n" for i in range(1, 30))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"\xff\xfe\x00",
        b'{"a": 1, "a": 2}',
        b"[" * 100_000,
        b'{"a":' * 500 + b"1" + b"}" * 500,
        b"[" * (MOST_DEPTH + 1) + b"]" * (MOST_DEPTH + 1),
        b"9" * 5_000,
        b"-" + b"9" * 100,
        b'"\\ud800"',
        b'{"\\ud800": 1}',
    ],
    ids=repr,
)
def test_json_out_of_bounds_is_one_error_that_names_it(data: bytes) -> None:
    with pytest.raises(SourceError, match=r"^here is no valid JSON: .+; it is damaged") as caught:
        parse_json(data, "here")
    assert len(str(caught.value)) < 300


def test_json_within_bounds_is_read() -> None:
    nested = b"[" * MOST_DEPTH + b"]" * MOST_DEPTH
    assert parse_json(b'{"model_max_length": 1000000000000000019884624838656}', "") == {"model_max_length": int(1e30)}
    assert parse_json(b'"\\ud83d\\ude00"', "") == "\N{GRINNING FACE}"
    assert json.dumps(parse_json(nested, "")).encode() == nested
    with pytest.raises(RecipeError, match="a JSON list, wanted an object"):
        parse_object(b"[]", "here", RecipeError)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [", "line 1, column 5"),
        ("a: 2001-13-45", "month"),
        ("a: !!int abc", "abc"),
        ("a: !!float abc", "abc"),
        ("a: !!bool abc", "abc"),
        ("a: !!timestamp abc", "."),
        ("a: !!python/object/apply:os.system [ls]", "could not determine a constructor"),
        (f"a: {'9' * 5_000}", "5,000 digits"),
        ("a: \0", "special characters"),
        ("a: 1\na: 2", "key 'a' is given twice"),
        ("? [1]\n: 2", "a key that is no text"),
        ("[" * 5_000, "levels"),
        ("a: &a [*a]", "levels"),
        ("a: &a {b: *a}", "levels"),
        (LAUGHS, "20,000 values"),
        (f"a0: &a0 x\n{''.join(f'a{i}: &a{i} [*a{i - 1}]{chr(10)}' for i in range(1, 100))}", "levels"),
        ("#" * (YAML_BYTES + 1), "characters of YAML"),
        ("<<: 3", "mapping"),
        ("--- 1\n--- 2", "another document"),
    ],
    ids=lambda text: text[:40],
)
def test_yaml_out_of_bounds_is_one_error_that_names_it(text: str, reason: str) -> None:
    began = time.process_time()
    with pytest.raises(RecipeError, match=rf"^here.*{reason}") as caught:
        parse_yaml(text, "here", RecipeError)
    assert len(str(caught.value)) < 300
    assert time.process_time() - began < 5


def test_yaml_within_bounds_is_read() -> None:
    assert parse_yaml("a: &a {b: 1}\nc: {<<: *a, d: 2}\ne: *a", "", RecipeError) == {
        "a": {"b": 1},
        "c": {"b": 1, "d": 2},
        "e": {"b": 1},
    }
    assert parse_yaml("", "", RecipeError) is None


@pytest.mark.parametrize(
    "value",
    [
        'source: "a\\0b"',
        'source: "a\\x1b[2J"',
        "source: x\ntrain: {steps: 999999999999999999999}",
        f"source: x\ntransfer: {{memory_limit: '{'9' * 400}'}}",
        "source: x\ntransfer: {memory_limit: '9999999999 TB'}",
        "source: x\ntrain: {text: [&a [1, 2], *a, *a]}",
        f"source: {'x' * 30_000}\nnothing: 1",
        f"source: x\ntrain: {{steps: [{'x, ' * 5_000}]}}",
    ],
    ids=lambda text: text[-40:],
)
def test_odd_values_of_a_recipe_are_one_short_error(tmp_path: Path, value: str) -> None:
    (tmp_path / "r.yaml").write_text(f"{value}\noutput: o\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(tmp_path / "r.yaml")
    assert len(str(caught.value)) < MOST_CHARACTERS + 100
    assert all(line.isprintable() for line in str(caught.value).split("\n"))


def test_an_override_is_read_within_the_same_bounds() -> None:
    for text in ("train.steps=" + "[" * 3_000, "train.steps=!!int abc", "source=" + "9" * 100, 'output="\\0"'):
        with pytest.raises(RecipeError) as caught:
            make_recipe({"source": "a", "output": "b"}, [text])
        assert len(str(caught.value)) < MOST_CHARACTERS + 100


def test_a_huge_recursion_limit_changes_nothing() -> None:
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        with pytest.raises(SourceError):
            parse_json(b"[" * 5_000 + b"]" * 5_000, "here")
    finally:
        sys.setrecursionlimit(limit)
