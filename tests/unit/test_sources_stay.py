"""What is read is never written over, however either place is spelled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import InputError
from bot_dist.pipeline.export import export_store
from bot_dist.pipeline.run import run
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from tests.conftest import Pico

SPELLINGS: dict[str, Callable[[Path], str]] = {
    "plain": str,
    "a slash": lambda path: f"{path}/",
    "dots": lambda path: f"{path.parent}/./x/../{path.name}",
    "file": lambda path: f"file://{path}",
    "local": lambda path: f"local://{path}",
    "a link": lambda path: f"{path}-link",
    "a link above": lambda path: f"{path.parent}-link/{path.name}",
    "inside, by a link": lambda path: f"{path}-link/inner",
}


@pytest.fixture
def places(tmp_path: Path) -> Path:
    """A folder that may also be reached by links; so may ``source`` in it."""
    folder = tmp_path / "places"
    (folder / "x").mkdir(parents=True)
    (tmp_path / "places-link").symlink_to(folder)
    (folder / "source-link").symlink_to("source")
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("read", "written"),
    [*(("plain", written) for written in SPELLINGS), *((read, "plain") for read in SPELLINGS if "inside" not in read)],
)
def test_a_transfer_leaves_its_source(read: str, written: str, places: Path, pico_llama: Callable[..., Pico]) -> None:
    pico_llama().folder.rename(places / "source")
    before = files(places)
    recipe = {
        "source": SPELLINGS[read](places / "source"),
        "target_url": SPELLINGS[written](places / "source"),
        "output": str(places / "x"),
        "overwrite": True,
        "cluster": {"executor": "local"},
    }
    with pytest.raises(InputError, match="would be written over its source"):
        transfer(make_recipe(recipe))
    assert files(places) == before


@pytest.mark.parametrize("written", [name for name in SPELLINGS if "inside" not in name])
def test_an_export_leaves_what_is_exported(written: str, places: Path, pico_llama: Callable[..., Pico]) -> None:
    export_store(pico_llama().url, str(places / "source"))  # which an export may otherwise replace
    before = files(places)
    for read in (places / "source", places / "source/model.safetensors"):
        options: dict[str, Any] = {"overwrite": True, "dtype": "bf16"}
        with pytest.raises(InputError, match="is what is exported"):
            export_store(str(read), SPELLINGS[written](places / "source"), **options)
        assert files(places) == before


def test_a_run_into_its_source_writes_nothing(places: Path, pico_llama: Callable[..., Pico]) -> None:
    pico_llama().folder.rename(places / "source")
    before = files(places)
    for output in ("source", "source/run", "source-link"):
        recipe = make_recipe({"source": str(places / "source"), "output": str(places / output), "overwrite": True})
        with pytest.raises(InputError, match="would be written over its source"):
            run(recipe)
        assert files(places) == before
