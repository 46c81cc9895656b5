"""An export replaces and removes what exports have made, and nothing else."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bot_dist.errors import CheckpointExistsError
from bot_dist.formats.export_folder import MARKERS, RECORD, STAGING, ExportFolder
from bot_dist.formats.exports.dcp import export_dcp
from bot_dist.formats.exports.gguf import export_gguf
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source

Exporter = Callable[..., Any]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def put(folder: Path, files: dict[str, str], **options: Any) -> tuple[str, ...]:
    """What every export does, with other files."""
    place = ExportFolder(folder, **{"overwrite": True, **options})
    with place.staging() as staging:
        for name, text in files.items():
            (staging / name).parent.mkdir(parents=True, exist_ok=True)
            (staging / name).write_text(text)
        return place.publish(staging)


FIRST = {"config.json": "{}", "model.safetensors": "1", "README.md": "ours", "1_Pooling/config.json": "[]"}
SECOND = {"config.json": "{ }", "model-00001-of-00001.safetensors": "2", "README.md": "ours too"}


@pytest.fixture(params=[export_huggingface, export_dcp])
def export(request: pytest.FixtureRequest, pico_llama: Callable[..., Any]) -> Callable[..., Any]:
    source = open_source(pico_llama().url)
    return lambda folder, **options: request.param(source, str(folder), **options)


@pytest.mark.parametrize("name", ["notes.txt", "README.md", "results/notes.txt", ".gitignore", f"{STAGING}x/notes.txt"])
def test_what_is_in_a_folder_stays(export: Exporter, tmp_path: Path, name: str) -> None:
    path = tmp_path / "out" / name
    path.parent.mkdir(parents=True)
    path.write_text("mine")
    with pytest.raises(CheckpointExistsError, match=r"is not empty \(.*\); give another folder, or --overwrite"):
        export(tmp_path / "out")
    assert contents(tmp_path / "out") == {name: b"mine"}
    for _ in range(2):
        result = export(tmp_path / "out", overwrite=True)
        assert contents(tmp_path / "out").keys() == {name, *result.files}
        assert path.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["config.json", "model-00001-of-00002.safetensors", "pytorch_model.bin", "__0_0.distcp"]
)
def test_a_model_that_no_export_has_made_stays(export: Exporter, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(CheckpointExistsError, match=r"already holds a model"):
        export(tmp_path)
    with pytest.raises(CheckpointExistsError, match=r"holds a model that no export has made"):
        export(tmp_path, overwrite=True)
    assert (tmp_path / name).read_text() == "mine"


def test_an_export_takes_the_place_of_the_last_wholly(tmp_path: Path) -> None:
    assert put(tmp_path / "out", FIRST) == tuple(sorted([*FIRST, RECORD]))
    with pytest.raises(CheckpointExistsError, match="already holds a model"):
        put(tmp_path / "out", SECOND, overwrite=False)
    put(tmp_path / "out", SECOND)
    assert contents(tmp_path / "out").keys() == {*SECOND, RECORD}
    assert not (tmp_path / "out/1_Pooling").exists()


@pytest.mark.parametrize("name", FIRST)
def test_what_was_changed_since_is_the_users(tmp_path: Path, name: str) -> None:
    put(tmp_path, FIRST)
    text = (tmp_path / name).read_text()
    (tmp_path / name).write_text("mine")
    before = contents(tmp_path)
    if name in ("config.json", "model.safetensors", "README.md"):
        with pytest.raises(CheckpointExistsError, match="changed since"):
            put(tmp_path, SECOND)
        assert contents(tmp_path) == before
        (tmp_path / name).write_text(text)  # as it was
        put(tmp_path, SECOND)
    else:  # the next one has no such file
        put(tmp_path, SECOND)
        assert (tmp_path / name).read_text() == "mine"


def test_what_was_changed_meanwhile_is_the_users(tmp_path: Path) -> None:
    put(tmp_path, FIRST)
    place = ExportFolder(tmp_path, overwrite=True)
    (tmp_path / "model.safetensors").write_text("mine")
    with place.staging() as staging:
        (staging / "config.json").write_text("{}")
        place.publish(staging)
    assert (tmp_path / "model.safetensors").read_text() == "mine"


def test_what_is_in_the_place_of_a_file_or_a_folder_stays(tmp_path: Path) -> None:
    for taken, files in {"README.md": SECOND, "1_Pooling": FIRST, "README.md/chapter": SECOND}.items():
        folder = tmp_path / taken.replace("/", "-")
        (folder / taken).parent.mkdir(parents=True)
        (folder / taken).write_text("mine")
        before = contents(folder)
        with pytest.raises(CheckpointExistsError, match="no export has made"):
            put(folder, files)
        assert contents(folder) == before


def test_a_folder_in_the_place_of_a_file_is_found_before_anything_goes(tmp_path: Path) -> None:
    put(tmp_path, FIRST)
    (tmp_path / "tokenizer.json").mkdir()
    before = contents(tmp_path)
    with pytest.raises(CheckpointExistsError, match=r"no export has made tokenizer\.json"):
        put(tmp_path, {**SECOND, "tokenizer.json": "{}"})
    assert contents(tmp_path) == before


def test_a_link_that_leads_nowhere_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("not-there")
    with pytest.raises(CheckpointExistsError, match="is a link to not-there, which is not there"):
        put(tmp_path / "out", FIRST)


def test_links_are_not_followed(tmp_path: Path) -> None:
    put(tmp_path / "out", FIRST)
    (tmp_path / "out/1_Pooling").rename(tmp_path / "elsewhere")
    (tmp_path / "out/1_Pooling").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "out/README.md").rename(tmp_path / "README.md")
    (tmp_path / "out/README.md").symlink_to(tmp_path / "README.md")
    before = contents(tmp_path)
    for files in (FIRST, SECOND):
        with pytest.raises(CheckpointExistsError, match="no export has made"):
            put(tmp_path / "out", files)
        assert contents(tmp_path) == before
    put(tmp_path / "out", {"config.json": "{}"})
    assert (tmp_path / "elsewhere/config.json").read_text() == "[]"
    assert (tmp_path / "out/1_Pooling").is_symlink()


@pytest.mark.parametrize("after", range(6))
def test_an_export_that_is_killed_in_any_place_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after: int
) -> None:
    put(tmp_path, FIRST)
    (tmp_path / "notes.txt").write_text("mine")
    done = 0

    def dies(operation: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done > after:
                raise KeyboardInterrupt
            return operation(*args, **options)

        return call

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", dies(Path.replace))
        with pytest.raises(KeyboardInterrupt):
            put(tmp_path, {**SECOND, "a": "", "b": "", "c": ""})
    assert not {*MARKERS} & contents(tmp_path).keys(), "it looks whole"
    put(tmp_path, SECOND)
    assert contents(tmp_path).keys() == {*SECOND, RECORD, "notes.txt"}


def test_a_failed_export_leaves_what_came_meanwhile(export: Exporter, tmp_path: Path) -> None:
    def interrupt(nbytes: int) -> None:
        (tmp_path / "out/notes.txt").write_text("mine")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(tmp_path / "out", progress=interrupt)
    assert contents(tmp_path / "out") == {"notes.txt": b"mine"}


@pytest.mark.parametrize("content", [b"mine", b"", "another's"])
def test_a_gguf_file_that_no_export_has_made_stays(
    pico_llama: Callable[..., Any], tmp_path: Path, content: bytes | str
) -> None:
    gguf = pytest.importorskip("gguf")
    file, elsewhere = tmp_path / "model.gguf", tmp_path / "elsewhere"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        writer = gguf.GGUFWriter(file, "llama")
        for write in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_ti_data_to_file):
            write()
        writer.close()
    before = file.read_bytes()
    source = open_source(pico_llama().url)
    for overwrite in (False, True):
        with pytest.raises(CheckpointExistsError):
            export_gguf(source, str(file), overwrite=overwrite)
    assert file.read_bytes() == before
    file.unlink()
    elsewhere.write_text("mine")
    (tmp_path / f"{STAGING}model.gguf").symlink_to(elsewhere)
    export_gguf(source, str(file))
    export_gguf(source, str(file), overwrite=True)
    assert elsewhere.read_text() == "mine"
    assert sorted(os.listdir(tmp_path))[:1] != [f"{STAGING}model.gguf"]
