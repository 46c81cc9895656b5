"""Whatever is written to local disks: where they are read-only, full or no folders, one error says so."""

from __future__ import annotations

import errno
import os
import pickle
import resource
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import bot_dist
from bot_dist.cli import main
from bot_dist.data.byte_tokenizer import save_byte_tokenizer
from bot_dist.errors import CheckpointError, SourceError
from bot_dist.events.transfer import Planned
from bot_dist.fit.statistics_share import HiddenStates, write_whole
from bot_dist.formats.exports.dcp import export_dcp
from bot_dist.formats.exports.gguf import export_gguf
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.pipeline.records import Records, recorded_in
from bot_dist.pipeline.transfer import transfer
from bot_dist.storage.disk import write_whole as write_small
from bot_dist.storage.disk import writing
from bot_dist.storage.folder import Storage

Writer = Callable[[Any, Path], object]
LOCAL = {"output": ".", "cluster": {"executor": "local"}}
TENSORS = {"values": torch.zeros(10_000)}


def events(source: Any, path: Path) -> None:
    log = recorded_in(path / "events.jsonl", lambda event: None)
    for _ in range(30):
        log(Planned(digest="x" * 1000))


def records(source: Any, path: Path) -> None:
    recipe = bot_dist.make_recipe({"source": source.url, "output": str(path)})
    Records(path, recipe).save("facts", {"long": "x" * 30_000})


WRITERS: dict[str, Writer] = {
    "safetensors": lambda source, path: export_huggingface(source, str(path)),
    "dcp": lambda source, path: export_dcp(source, str(path)),
    "gguf": lambda source, path: export_gguf(source, str(path / "model.gguf")),
    "events": events,
    "records": records,
    "reports": lambda source, path: write_small(path / "report.html", "x" * 30_000),
    "statistics": lambda source, path: write_whole(path / "part.safetensors", TENSORS),
    "hidden states": lambda source, path: HiddenStates(path / "hidden", 100, 100).__setitem__(0, torch.ones(100, 100)),
    "stores": lambda source, path: Storage(str(path)).write("x", [b"1" * 30_000]),
}
NEED_THEIR_FOLDER = {"statistics", "hidden states"}


@pytest.fixture
def source(pico_llama: Callable[..., Any]) -> Any:
    return open_source(pico_llama().url)


@pytest.fixture
def read_only_disk(tmp_path: Path) -> Iterator[Path]:
    """Mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def refused(writer: Writer, source: Any, path: Path) -> str:
    with pytest.raises(CheckpointError) as found:
        writer(source, path)
    assert "can't" in str(found.value)
    assert str(path) in str(found.value)
    return str(pickle.loads(pickle.dumps(found.value)))


@pytest.mark.parametrize("kind", WRITERS)
def test_a_read_only_disk_is_told(source: Any, read_only_disk: Path, kind: str) -> None:
    folder = read_only_disk if kind in NEED_THEIR_FOLDER else read_only_disk / "out"
    assert "ead-only file system" in refused(WRITERS[kind], source, folder)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_in_the_place_of_a_folder_is_told(source: Any, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_text("mine")
    message = refused(WRITERS[kind], source, tmp_path / "file" / ("" if kind in NEED_THEIR_FOLDER else "out"))
    assert "Not a directory" in message or "a part of the path is a file" in message
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("kind", WRITERS)
def test_no_room_is_told_and_nothing_looks_whole(source: Any, tmp_path: Path, kind: str) -> None:
    """Files may have 4 kB. A full disk differs in nothing but its number."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    out = tmp_path / "out"
    if kind in NEED_THEIR_FOLDER:
        out.mkdir()
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000, limits[1]))
    try:
        message = refused(WRITERS[kind], source, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert "can't be written, no file may be so large: " in message
    left = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert left <= {"events.jsonl", "stages/recipe.json", "hidden", "part.partial-" + str(os.getpid())}


def test_what_is_no_answer_of_the_disk_passes(tmp_path: Path) -> None:
    for error in (ValueError("no"), KeyError("os error"), SourceError("damaged (os error 5)"), KeyboardInterrupt()):
        with pytest.raises(type(error)), writing(tmp_path):
            raise error


@pytest.mark.parametrize("code", [errno.EROFS, errno.ENOSPC, errno.EACCES, errno.EIO])
def test_what_is_written_elsewhere_is_told_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], code: int
) -> None:
    """By a library, into a folder for temporary files or a cache of its own."""

    def fails(*args: Any, **options: Any) -> None:
        raise OSError(code, os.strerror(code), "/cache/of/a/library")

    monkeypatch.setattr("bot_dist.pipeline.export.export_store", fails)
    with pytest.raises(SystemExit) as left:
        main(["export", "store", str(tmp_path / "out")])
    assert left.value.code == 1
    told = " ".join(capsys.readouterr().err.split())
    assert told.startswith("error: /cache/of/a/library: can't be")
    assert "Traceback" not in told


@pytest.mark.parametrize("place", ["x" * 300, "a/" * 3_000])
def test_a_path_that_no_disk_takes_is_told(
    place: str, pico_llama: Callable[..., Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_byte_tokenizer(source := pico_llama(vocab_size=300, eos_token_id=256).folder)
    (tmp_path / "text.txt").write_text("rain on the roof " * 1_500)
    recipe = tmp_path / "recipe.yaml"
    train = f"{{steps: 0, context: 32, text: [{tmp_path / 'text.txt'}]}}"
    recipe.write_text(f"source: {source}\noutput: {tmp_path / place}\ncluster: {{executor: local}}\ntrain: {train}\n")
    for argv in (["run", str(recipe)], ["scale", str(recipe)], ["export", str(source), str(tmp_path / place)]):
        with pytest.raises(SystemExit) as stopped:
            main(argv)
        assert stopped.value.code == 1
        assert "Traceback" not in (err := capsys.readouterr().err)
        assert err.count("error: ") == 1


def test_without_a_temporary_folder_the_way_out_is_told(
    pico_llama: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store = str(tmp_path / "store")
    save_byte_tokenizer(folder := pico_llama(vocab_size=300, eos_token_id=256).folder)
    transfer(bot_dist.make_recipe({"source": str(folder), "target_url": store, **LOCAL}))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setattr(tempfile, "_candidate_tempdir_list", lambda: [str(tmp_path / "not-there")])
    for argv in (["plan", store, "--mlp", "20"], ["export", store, str(tmp_path / "made.gguf")]):
        with pytest.raises(SystemExit):
            main(argv)
        assert "set TMPDIR to a folder that can be written" in capsys.readouterr().err
