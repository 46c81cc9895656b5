"""In a store's folder only the store's own is replaced and removed, and nothing is read or written through links."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import CheckpointError, CheckpointExistsError
from bot_dist.pipeline import checks
from bot_dist.pipeline.transfer import transfer
from bot_dist.recipe import make_recipe
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointReader, CheckpointWriter, remove_store
from bot_dist.store.summary import operator_rows
from tests.unit.test_store import STORED, VALUES, fill

NAME = STORED[0].parameter.name


FITTED = f"operators/mlp-{'0a' * 8}"
"""A store of operators."""


def commit(url: str, attempt: str = "plan", overwrite: bool = False, **provenance: Any) -> None:
    writer = CheckpointWriter.create(url, STORED, config={}, attempt=attempt, overwrite=overwrite)
    writer.storage.write(f"{writer.folder}/tokenizer/tokenizer.json", [b"{}"])
    writer.commit(fill(writer), provenance, overwrite=overwrite)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    """A committed store, and in it one of operators that it was made with."""
    folder = tmp_path / "store"
    commit(str(folder / FITTED))
    commit_with = CheckpointReader(str(folder / FITTED)).manifest.digest
    shutil.move(folder / "operators", tmp_path / "operators")
    commit(str(folder))
    shutil.rmtree(folder)
    CheckpointWriter.create(str(folder), STORED, config={}, attempt="plan")
    shutil.move(tmp_path / "operators", folder / "operators")
    commit(str(folder), operators={Path(FITTED).name: commit_with})
    return folder


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "operators/my_code.py",
        "operators/mine/zarr.json",
        "data/plan/notes.txt",
        "data/plan/_layout.json",
        "manifest.json",
        "zarr.json",
        ".git/config",
    ],
)
def test_a_folder_that_is_no_stores_is_refused_whatever_its_names(tmp_path: Path, name: str, overwrite: bool) -> None:
    path = tmp_path / "project" / name
    path.parent.mkdir(parents=True)
    path.write_text('{"attributes": {}}')
    before = contents(tmp_path)
    with pytest.raises(CheckpointExistsError, match="is not empty and no bot_dist store"):
        commit(str(tmp_path / "project"), overwrite=overwrite)
    assert contents(tmp_path) == before


def test_nothing_is_fitted_into_a_folder_that_is_no_stores(pico_llama: Callable[..., Any], tmp_path: Path) -> None:
    recipe = {"source": pico_llama().url, "output": str(tmp_path), "target_url": str(tmp_path / "project")}
    (tmp_path / "project/operators").mkdir(parents=True)
    (tmp_path / "project/operators/my_code.py").write_text("mine")
    options = {"cluster.executor": "local", "transfer.analysis": "adaptive", "target.mlp": 20}
    with pytest.raises(CheckpointExistsError, match="is not empty and no bot_dist store"):
        transfer(make_recipe(recipe, options))
    assert contents(tmp_path / "project") == {"operators/my_code.py": b"mine"}


def test_operators_that_were_fitted_take_a_folder_for_no_other(tmp_path: Path) -> None:
    """They are there before what is made with them, be they whole or what a killed writer has left."""
    url = tmp_path / "store"
    commit(str(url / FITTED))
    CheckpointWriter.create(str(url / f"operators/embed-heads-{'1f' * 8}"), STORED, config={}, attempt="plan")
    (url / "operators/layer").mkdir()
    (url / "operators/layer/zarr.json.0f.partial").write_text("{")
    commit(str(url))
    assert not checks.verify(str(url)).damaged


LINKS = {
    "the data": "data",
    "an attempt": "data/plan",
    "an array": f"data/plan/{NAME}",
    "a shard": f"data/plan/{NAME}/c.1.0.0",
    "metadata": f"data/plan/{NAME}/zarr.json",
    "carried files": "data/plan/tokenizer",
    "the manifest": "manifest.json",
    "operators": "operators",
    "a store of operators": FITTED,
    "an operator's data": f"{FITTED}/data",
}


@pytest.mark.parametrize("what", LINKS)
def test_a_link_in_a_store_is_never_followed(store: Path, tmp_path: Path, what: str) -> None:
    """It points to what is right in every byte, so that nothing but the link can be found wrong."""
    place, elsewhere = store / LINKS[what], tmp_path / "elsewhere"
    shutil.move(place, elsewhere)
    place.symlink_to(elsewhere)
    before = contents(tmp_path)
    url = str(store)

    def read() -> None:
        reader = CheckpointReader(url)
        for name in VALUES:
            reader.read_flat(name, 0, reader.parameter(name).size)
        reader.file("tokenizer/tokenizer.json")
        for row in operator_rows(reader):
            CheckpointReader(f"{url}/{row.store}").read_flat(row.name, 0, 1)

    uses: dict[str, Callable[[], object]] = {
        "verify": lambda: checks.verify(url),
        "verify --quick": lambda: checks.verify(url, quick=True),
        "overwrite": lambda: commit(url, "another", overwrite=True),
        "overwrite by the same plan": lambda: commit(url, "plan-2", overwrite=True),
        "remove": lambda: remove_store(Storage(str(tmp_path)), "store"),
    }
    if what != "metadata":  # which only plain zarr reads
        uses["read"] = read
    for use in uses.values():
        with pytest.raises(CheckpointError, match="is a link, and nothing is read, written or removed through links"):
            use()
        assert contents(tmp_path) == before
        assert place.is_symlink()


def test_a_store_may_be_reached_through_links(store: Path, tmp_path: Path) -> None:
    (tmp_path / "scratch").symlink_to(store.parent)
    (tmp_path / "best").symlink_to(tmp_path / "scratch/store")
    for url in (f"{tmp_path}/scratch/store", f"{tmp_path}/best"):
        commit(url, "another", overwrite=True)
        assert not checks.verify(url).damaged
        commit(url, overwrite=True)
    assert [path.name for path in (store / "data").iterdir()] == ["plan"]


def mine(store: Path) -> dict[str, bytes]:
    """The user's own files in a store's folder."""
    return {name: data for name, data in contents(store).items() if data == b"mine"}


@pytest.fixture
def lived_in(store: Path) -> Path:
    """A store in whose folders the user keeps files."""
    for name in (
        "notes.txt",
        "data/notes.txt",
        "data/plan/notes.txt",
        f"data/plan/{NAME}/c.1.0.0.bak",
        f"data/plan/{NAME}/plot/c.0.0.0",
        "data/plan/mine/zarr.json",
        "data/plan/mine/c.0",
        "data/mine/zarr.json",
        "data/mine/c.0",
        "operators/my_code.py",
        "operators/mine/zarr.json",
        "operators/mine/data/plan/c.0",
        f"{FITTED}/notes.txt",
    ):
        (store / name).parent.mkdir(parents=True, exist_ok=True)
        (store / name).write_text("mine")
    return store


def test_overwriting_leaves_what_is_the_users(lived_in: Path) -> None:
    before = mine(lived_in)
    commit(str(lived_in), "another", overwrite=True)
    assert mine(lived_in) == before
    assert not checks.verify(str(lived_in)).damaged
    left = {name for name in contents(lived_in) if not name.startswith("data/another/")} - before.keys()
    assert left == {"manifest.json", "zarr.json"}


@pytest.mark.parametrize("place", ["inner", "data/inner", "operators/inner", f"{FITTED}/inner"])
def test_a_store_of_the_users_in_a_stores_folder_stays(store: Path, place: str) -> None:
    commit(str(store / place))
    before = contents(store / place)
    commit(str(store), "another", overwrite=True)
    assert contents(store / place) == before
    assert not checks.verify(str(store / place)).damaged


def test_a_link_that_leads_nowhere_is_no_target(tmp_path: Path) -> None:
    (tmp_path / "best").symlink_to("not-there")
    with pytest.raises(CheckpointExistsError, match="is a link to not-there, which is not there"):
        commit(str(tmp_path / "best"))
    assert not (tmp_path / "not-there").exists()


def test_a_removed_store_leaves_what_is_the_users(lived_in: Path) -> None:
    before = mine(lived_in)
    remove_store(Storage(str(lived_in.parent)), lived_in.name)
    assert contents(lived_in) == before


def test_a_removed_store_is_gone(store: Path) -> None:
    fill(CheckpointWriter.create(str(store), STORED, config={}, attempt="another", overwrite=True))
    remove_store(Storage(str(store.parent)), store.name)
    assert not store.exists()


def test_what_killed_attempts_have_left_is_collected_and_nothing_else(store: Path) -> None:
    """Before anything was written, in the middle, while committing, and committed but collected half."""
    url = str(store)
    CheckpointWriter.create(url, STORED, config={}, attempt="begun", overwrite=True)
    half = CheckpointWriter.create(url, STORED, config={}, attempt="half", overwrite=True)
    half.record("step-1", {})
    half.write(NAME, half.shards(NAME)[0], VALUES[NAME][:2])
    (store / f"data/half/{NAME}/c.1.0.0.0f.partial").write_bytes(b"1")
    (store / "data/half/_steps/step-2.json.0f.partial").write_bytes(b"1")
    (store / "data/half/_layout.json.0f.partial").write_bytes(b"1")
    (store / "data/half/thesis.txt").write_text("mine")
    late = CheckpointWriter.create(url, STORED, config={}, attempt="late", overwrite=True)
    fill(late)
    late._write_metadata()
    (store / "data/late/_layout.json").unlink()
    shutil.rmtree(store / f"data/late/{NAME}")
    commit(url, "another", overwrite=True)
    assert sorted(path.name for path in (store / "data").iterdir()) == ["another", "half"]
    assert [path.name for path in (store / "data/half").iterdir()] == ["thesis.txt"]


def test_a_loser_leaves_what_is_the_users(store: Path) -> None:
    writer = CheckpointWriter.create(str(store), STORED, config={}, attempt="loser", overwrite=True)
    fill(writer)
    (store / "data/loser/notes.txt").write_text("mine")
    writer.discard()
    assert contents(store / "data/loser") == {"notes.txt": b"mine"}


def test_a_link_that_appears_while_a_folder_is_emptied_is_not_followed(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(store / f"data/plan/{NAME}", elsewhere)
    storage = Storage(str(store))
    names = [f"data/plan/{NAME}/{name}" for name in contents(elsewhere)]
    shutil.rmtree(store / f"data/plan/{NAME}")
    (store / f"data/plan/{NAME}").symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="is a link"):
        storage.remove(*names)
    assert len(contents(elsewhere)) == len(names)
