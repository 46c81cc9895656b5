from __future__ import annotations

import datetime
import re
from pathlib import Path

import pytest
import yaml

from bot_dist.errors import RecipeError
from bot_dist.recipe import load_recipe, make_recipe, member_of, members_of, parse_bytes
from bot_dist.urls import label

MINIMAL = {"source": "a", "output": "b"}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"sorce": "a"}, "unknown key 'sorce'; did you mean 'source'?"),
        ({**MINIMAL, "train": {"step": 1}}, r"unknown key 'train\.step'; did you mean .*'steps'"),
        ({"output": "b"}, "source: Field required"),
        ({**MINIMAL, "transfer": {"depth": "similar", "analysis": "wavelet"}}, "transfer: depth similar is fitted to"),
        ({**MINIMAL, "train": {"steps": -1}}, r"train\.steps.*greater than or equal to 0 \(found -1\)"),
        ({**MINIMAL, "transfer": {"memory_limit": "much"}}, r"memory_limit: 'much' is no size.*512 MiB"),
        ({**MINIMAL, "target": {"layer": 20}}, "target: there is no size 'layer'; did you mean 'layers'"),
        ({**MINIMAL, "target": {"kv-heads": 2}}, "no size 'kv-heads'; did you mean 'kv_heads'"),
        ({**MINIMAL, "target": {"hidden_size": 64}}, "no size 'hidden_size'; known: context, embed, head_dim, heads, "),
        ({**MINIMAL, "transfer": {"gain": "loud"}}, r"transfer\.gain.*'measure'.*found 'loud'"),
    ],
)
def test_what_is_wrong_is_named(data: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(data)


def test_overrides() -> None:
    recipe = make_recipe(MINIMAL, ["train.steps=3", "target.layers=15", "output=elsewhere", "transfer.wavelet=db2"])
    assert (recipe.train.steps, recipe.target, recipe.output) == (3, {"layers": 15}, "elsewhere")
    assert make_recipe(MINIMAL, {"train.steps": 3}).train == make_recipe(MINIMAL, ["train.steps=3"]).train
    with pytest.raises(RecipeError, match="no '='"):
        make_recipe(MINIMAL, ["train.steps"])
    with pytest.raises(RecipeError, match=r"unknown key 'train\.stepz'"):
        make_recipe(MINIMAL, ["train.stepz=1"])


FAMILY = {
    **MINIMAL,
    "target": {"embed": 8},
    "transfer": {"preset": "paper-gpt-l2s", "seed": 3},
    "train": {"steps": 9, "batch": 4},
    "family": {
        "small": {"target": {"layers": 2}, "train": {"steps": 5}},
        "big": {"target": {"embed": 64}, "transfer": {"preset": "paper-gpt-s2l"}},
    },
}


def test_members_have_what_is_common_and_their_own() -> None:
    recipe = make_recipe(FAMILY)
    small, big = members_of(recipe).values()
    assert (small.output, big.transferred_url) == ("b/small", "b/big/transferred.zarr")
    assert (small.target, big.target) == ({"embed": 8, "layers": 2}, {"embed": 64})
    assert [(m.train.steps, m.train.batch) for m in (small, big)] == [(5, 4), (9, 4)]
    assert [(m.transfer.wavelet, m.transfer.seed) for m in (small, big)] == [("coif3", 3), ("db2", 3)]
    assert small.calibrate.folder == big.calibrate.folder == "b/calibration"
    assert small.train.token_cache == big.train.token_cache == "b/tokens"
    assert not small.family
    assert {m.transferred_url for m in members_of(make_recipe({**FAMILY, "target_url": "s3://x"})).values()} == {
        "s3://x/small",
        "s3://x/big",
    }
    assert [member_of(recipe, "small"), members_of(make_recipe(MINIMAL))] == [small, {}]


def test_an_override_holds_for_every_member() -> None:
    recipe = make_recipe(FAMILY, ["train.steps=1", "family.big.target.embed=32"])
    assert {name: (m.train.steps, m.target["embed"]) for name, m in members_of(recipe).items()} == {
        "small": (1, 8),
        "big": (1, 32),
    }


def test_a_family_copies_a_source_that_is_not_on_a_file_system() -> None:
    copies = {
        source: member_of(make_recipe({**FAMILY, "source": source}), "big").import_to
        for source in ("hf://owner/model", "s3://b/m", "package://p/m.gguf", "/models/m")
    }
    assert [*copies.values()] == ["b/source.zarr", "b/source.zarr", None, None]


@pytest.mark.parametrize(
    ("member", "message"),
    [
        ({"trian": {}}, r"unknown key 'family\.small\.trian'; did you mean 'train'"),
        ({"train": {"stepz": 1}}, r"family\.small: unknown key 'train\.stepz'; did you mean .*'steps'"),
        ({"transfer": {"gain": "loud"}}, r"family\.small: transfer\.gain.*'measure'.*found 'loud'"),
        ({"target": {"embed": "wide"}}, r"family\.small\.target\.embed"),
        ({"target": {"layer": 3}}, r"family\.small\.target: there is no size 'layer'; did you mean 'layers'"),
        (None, r"family\.small: .*found None"),
    ],
)
def test_what_is_wrong_with_a_member_is_named(member: object, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe({**MINIMAL, "family": {"small": member}})


def test_one_member_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "family.yaml"
    path.write_text(yaml.safe_dump(FAMILY))
    assert load_recipe(f"{path}:small") == member_of(load_recipe(path), "small")
    with pytest.raises(RecipeError, match="has no member 'smal'; did you mean 'small'"):
        load_recipe(f"{path}:smal")
    path.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(RecipeError, match="holds no family: leave the name out"):
        load_recipe(f"{path}:small")
    with pytest.raises(RecipeError, match=r"family\.\.\./x"):
        make_recipe({**MINIMAL, "family": {"../x": {}}})


@pytest.mark.parametrize(("text", "n"), [("512 MiB", 2**29), ("2GB", 2 * 10**9), (17, 17), ("1.5 KiB", 1536)])
def test_sizes(text: object, n: int) -> None:
    assert parse_bytes(text) == n


def test_the_digest_is_of_what_is_computed() -> None:
    digest = make_recipe(MINIMAL).digest()
    assert make_recipe(MINIMAL, ["overwrite=true", "cluster.address=auto"]).digest() == digest
    assert make_recipe(MINIMAL, ["import_to=x", "calibrate.folder=y", "train.token_cache=z"]).digest() == digest
    assert make_recipe(MINIMAL, ["target.layers=3"]).digest() != digest


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("output=s3://bucket/run", "only target_url may be a URL"),
        ("output=", "output"),
        ("train.seed=-1", r"train\.seed"),
        ("train.clip=.inf", r"train\.clip"),
        ("target.embed=true", r"target\.embed"),
        ("train=3", r"train: wanted a section of keys, found 3"),
        ("train.text=a.txt", r"train\.text: wanted a list, found 'a.txt'; write \[a.txt\]"),
        ("source=''", "source: it is empty"),
        ("target_url=s3:/bucket/x", r"target_url: write s3://bucket/x, or \./s3:/bucket/x for a path"),
        ("target_url=gs//bucket/x", r"target_url: write gs://bucket/x"),
    ],
)
def test_values_that_would_fail_later(override: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        make_recipe(MINIMAL, [override])


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "transfer.width=wide",
            "transfer.width: Input should be 'auto', 'resample', 'copy', 'lazy' or 'spread' (found 'wide')",
        ),
        ("transfer.width={mlp: wide}", "transfer.width.mlp: Input should be 'auto', .* (found 'wide')"),
        ("transfer.wavelet={mlp: 3}", "transfer.wavelet.mlp: Input should be a valid string (found 3)"),
        ("transfer.wavelet=[haar]", "transfer.wavelet: Input should be a valid string (found ['haar'])"),
        (
            "transfer.memory_limit=lots",
            "transfer.memory_limit: 'lots' is no size; write a number of bytes or for example 512 MiB",
        ),
    ],
)
def test_a_value_of_several_kinds_is_refused_once_and_as_what_it_was_meant_to_be(override: str, message: str) -> None:
    with pytest.raises(RecipeError) as refused:
        make_recipe({"source": "a", "output": "b"}, [override])
    assert re.fullmatch(re.escape(f"recipe: {message}").replace(r"\.\*", ".*"), str(refused.value))


def test_dates_and_homes() -> None:
    with pytest.raises(RecipeError, match=r"train\.seed"):
        make_recipe({**MINIMAL, "train": {"seed": datetime.date(2024, 1, 1)}})
    assert make_recipe(MINIMAL, ["output=~/run"]).output == str(Path.home() / "run")


def test_what_is_published_has_no_secrets() -> None:
    recipe = make_recipe(
        {"source": "https://me:secret@host/key?token=abc", "output": "b", "train": {"text": ["https://u:p@h/t"]}}
    )
    public = recipe.public()
    assert public["source"] == "https://host/key"
    assert public["train"]["text"] == ["https://h/t"]
    assert label("run --set source=s3://me:secret@host/key?token=abc --x") == "run --set source=s3://host/key --x"


def test_files(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="No such file"):
        load_recipe(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    with pytest.raises(RecipeError, match="holds a list"):
        load_recipe(tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(RecipeError, match="is no YAML"):
        load_recipe(tmp_path / "bad.yaml")
    (tmp_path / "twice.yaml").write_text("source: a\noutput: b\ntarget: {layers: 3}\ntarget: {embed: 4}\n")
    with pytest.raises(RecipeError, match="key 'target' is given twice"):
        load_recipe(tmp_path / "twice.yaml")
    (tmp_path / "methods.yaml").write_text("source: a\noutput: b\nmethods: {ours: {}}\n")
    with pytest.raises(RecipeError, match="is the recipe of a comparison; write: bot_dist compare"):
        load_recipe(tmp_path / "methods.yaml")
    (tmp_path / "latin.yaml").write_bytes("source: é".encode("latin-1"))
    with pytest.raises(RecipeError, match="is no YAML"):
        load_recipe(tmp_path / "latin.yaml")
