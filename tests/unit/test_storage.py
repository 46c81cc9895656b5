"""Files on local disks, and what is told of storage that can't do what it should."""

from __future__ import annotations

import ast
import errno
import multiprocessing
import os
import resource
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from obstore.exceptions import GenericError

import bot_dist
from bot_dist.errors import CheckpointError, CheckpointMissingError, InputError, SourceError
from bot_dist.formats.exports.safetensors import export_huggingface
from bot_dist.formats.open import open_source
from bot_dist.storage import localfile, retry
from bot_dist.storage.files import write_file
from bot_dist.storage.folder import Request, Storage
from bot_dist.store import CheckpointReader
from tests.conftest import Pico


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one MiB. Mounting one takes root."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_told_and_nothing_is_left(small_disk: Path) -> None:
    storage = Storage(str(small_disk / "store"))
    storage.write("a", [b"1" * 600_000])
    for write in (
        lambda: storage.write("b", [b"2" * 700_000], durable=True),
        lambda: storage.create("b", b"2" * 700_000),
    ):
        with pytest.raises(
            CheckpointError,
            match=r"/store/b: can't be written, the disk is full: 700,000 bytes wanted, \d{3},\d{3} free; make room",
        ):
            write()
    with pytest.raises(CheckpointError, match=r"/store/a: can't be written, the disk is full"):
        storage.write("a", [b"3" * 700_000])
    assert os.listdir(small_disk / "store") == ["a"]
    assert storage.read("a") == b"1" * 600_000
    write_file(str(small_disk / "store/c"), b"fits")


def test_a_transfer_to_a_full_disk_is_resumed_when_there_is_room(
    small_disk: Path, pico_llama: Callable[..., Pico], tmp_path: Path
) -> None:
    pico = pico_llama()
    target = str(small_disk / "store")
    recipe = {"source": pico.url, "output": str(tmp_path), "target_url": target, "target": {"embed": 48}}
    made = bot_dist.make_recipe(recipe, {"cluster.executor": "local"})
    filler = small_disk / "filler"
    filler.write_bytes(bytes(900_000))
    with pytest.raises(CheckpointError, match=r"/store/data/\S+: can't be written, the disk is full: "):
        bot_dist.transfer(made)
    with pytest.raises(CheckpointMissingError, match=r"no manifest\.json"):
        CheckpointReader(target)
    assert not [*small_disk.rglob(f"*{localfile.PARTIAL}")]
    filler.unlink()
    bot_dist.transfer(made)
    assert not bot_dist.verify(target).damaged


def test_an_export_to_a_full_disk_leaves_nothing(small_disk: Path, pico_llama: Callable[..., Pico]) -> None:
    source = open_source(pico_llama(hidden_size=192, intermediate_size=512).url)
    with pytest.raises(CheckpointError, match=r"/export: can't be written, the disk is full: [\d,]+ bytes wanted"):
        export_huggingface(source, str(small_disk / "export"))
    assert os.listdir(small_disk) == []


def _write_limited(folder: str, told: Any) -> None:
    """In a process whose files may have 100,000 bytes."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        Storage(folder).write("x", [b"1" * 60_000, b"2" * 60_000])
    except CheckpointError as error:
        told.put(str(error))


def test_a_file_over_a_limit_is_told_and_nothing_is_left(tmp_path: Path) -> None:
    """The system takes a part of the bytes first: a short write."""
    context = multiprocessing.get_context("spawn")
    told = context.Queue()
    process = context.Process(target=_write_limited, args=(str(tmp_path), told))
    process.start()
    assert "x: can't be written, no file may be so large: 120,000 bytes wanted" in told.get(timeout=120)
    process.join()
    assert os.listdir(tmp_path) == []


def test_a_short_write_never_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writev = os.writev

    def stops(descriptor: int, buffers: Sequence[Any]) -> int:
        """Takes three bytes at a time, and then none."""
        return 0 if os.lseek(descriptor, 0, os.SEEK_CUR) >= 6 else writev(descriptor, [memoryview(buffers[0])[:3]])

    monkeypatch.setattr(os, "writev", stops)
    Storage(str(tmp_path)).write("whole", [b"1234", b"56"])
    with pytest.raises(CheckpointError, match=r"can't write x: .*7 of 8 bytes were taken"):
        Storage(str(tmp_path)).write("x", [b"1234", b"5678"])
    assert os.listdir(tmp_path) == ["whole"]
    assert (tmp_path / "whole").read_bytes() == b"123456"


def test_more_buffers_than_the_system_takes_at_once(tmp_path: Path) -> None:
    parts = [b"%05d" % i for i in range(3000)]
    storage = Storage(str(tmp_path))
    storage.write("x", parts)
    assert storage.read("x") == b"".join(parts)
    buffers = [bytearray(5) for _ in parts]
    storage.read_into([Request("x", 0, [memoryview(b) for b in buffers])])
    assert buffers == parts


def test_what_is_missing_or_short_is_named(tmp_path: Path) -> None:
    storage = Storage(str(tmp_path))
    storage.write("a", [b"123"])
    with pytest.raises(CheckpointError, match=r"/b: no such file; restore it"):
        storage.read("b")
    for name in ("b", "a/b"):
        with pytest.raises(CheckpointError, match=rf"no such file: .*/{name}$"):
            storage.read_into([Request(name, 0, [memoryview(bytearray(1))])])
    with pytest.raises(CheckpointError, match=r"/a: found 2 bytes at offset 1, wanted 5"):
        storage.read_into([Request("a", 1, [memoryview(bytearray(5))])])
    assert not storage.exists("a/b")


@pytest.mark.parametrize("url", ["{tmp}", "memory://storage-test"])
def test_a_file_is_created_once(url: str, tmp_path: Path) -> None:
    storage = Storage(url.format(tmp=tmp_path))
    storage.create("m", b"first")
    with pytest.raises(FileExistsError):
        storage.create("m", b"second")
    assert storage.read("m") == b"first"
    storage.remove("m")
    assert storage.is_empty()


@pytest.mark.parametrize("url", ["hf://someone/model", "https://localhost/x", "http://localhost/x"])
def test_what_cannot_be_created_on_condition_holds_no_checkpoint(url: str) -> None:
    for write in (lambda: Storage(url).write("a", [b""]), lambda: Storage(url).create("a", b"")):
        with pytest.raises(InputError, match=r"holds no checkpoint.*give a local path, s3://, gs:// or az://"):
            write()


class Refusals:
    """Fails some times before it answers."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = [*errors]
        self.asked = 0

    def __call__(self) -> str:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        return "answer"


def obstore_error(text: str) -> Exception:
    return GenericError(
        f"Generic S3 error: Error performing GET http://h/k?X-Amz-Signature=s in 1ms - {text}\n\nDebug source:\nsecret"
    )


def hub_client_error() -> Exception:
    """No connection, as the client says it that ``hf://`` is read by."""
    from huggingface_hub.utils import get_session

    with pytest.raises(Exception, match=r"[Cc]onnect") as caught:
        get_session().get("http://127.0.0.1:9", timeout=5)
    return caught.value


TRANSIENT = [
    ConnectionResetError(),
    TimeoutError(),
    hub_client_error(),
    obstore_error("HTTP error: error sending request"),
    obstore_error("Server returned non-2xx status code: 429 Too Many Requests: "),
    obstore_error("Server returned non-2xx status code: 409 Conflict: <Code>ConditionalRequestConflict</Code>"),
]
DEFINITE = [
    PermissionError(errno.EACCES, "denied"),
    OSError(errno.EIO, "broken disk"),
    obstore_error("Server returned non-2xx status code: 416 Range Not Satisfiable: "),
    obstore_error("HTTP error: builder error"),
    obstore_error("error sending request for url (http://169.254.169.254/latest/api/token)"),
]


@pytest.mark.parametrize("error", TRANSIENT, ids=repr)
def test_transient_answers_are_asked_again(
    error: Exception, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    assert retry.asked("s3://b", "read", refusals := Refusals(*[error] * 7), SourceError) == "answer"
    assert refusals.asked == 8
    assert [record.name for record in caplog.records] == ["bot_dist.storage.retry"] * 7
    assert caplog.messages[0].startswith("s3://b: can't read, try 1 of 8: ")
    assert all(0.5 * 0.2 * 2**i <= s <= 0.2 * 2**i for i, s in enumerate(slept[:5]))
    assert max(slept) <= 5
    with pytest.raises(SourceError, match=r"^s3://b: can't read: .* after 8 tries; run the same command again later$"):
        retry.asked("s3://b", "read", Refusals(*[error] * 8), SourceError)


@pytest.mark.parametrize("error", DEFINITE, ids=repr)
def test_definite_answers_are_not(error: Exception) -> None:
    with pytest.raises(SourceError, match=r"^s3://b: can't read: ") as caught:
        retry.asked("s3://me:password@b", "read", refusals := Refusals(error), SourceError)
    assert refusals.asked == 1
    assert "tries" not in str(caught.value)
    assert not {"X-Amz-Signature", "secret", "password"} & {*str(caught.value).replace("=", " ").split()}


@pytest.mark.parametrize("error", [FileNotFoundError("x"), FileExistsError("x"), ValueError("a bug")], ids=repr)
def test_answers_and_bugs_pass(error: Exception) -> None:
    with pytest.raises(type(error)):
        retry.asked("s3://b", "read", Refusals(error), SourceError)


def test_a_missing_role_is_told_as_missing_keys() -> None:
    with pytest.raises(SourceError, match="no credentials in the environment"):
        retry.asked("s3://b", "read", Refusals(DEFINITE[-1]), SourceError)


@pytest.mark.parametrize("text", ["soon", "0", "-1", "inf", "nan"])
def test_a_time_out_that_is_none_is_refused(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BOT_DIST_STORAGE_TIMEOUT_S", text)
    with pytest.raises(InputError, match=f"BOT_DIST_STORAGE_TIMEOUT_S is '{text}', wanted a number of seconds above 0"):
        Storage("s3://bucket")


def test_nothing_that_touches_storage_asks_for_the_time_of_day() -> None:
    """A clock that jumps changes nothing."""
    package = Path(bot_dist.__file__).parent
    for path in [*(package / "checkpoint").glob("*.py"), *(package / "convert").glob("*.py")]:
        names = {node.attr for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Attribute)}
        assert not names & {"time", "time_ns", "now", "utcnow", "today", "strftime", "getmtime", "st_mtime"}, path
