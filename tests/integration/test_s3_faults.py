"""Storage that answers wrongly for a while, or for ever, and the right bytes or one error."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch

import bot_dist
from bot_dist.errors import CheckpointError, SourceError
from bot_dist.storage import retry
from bot_dist.storage.files import list_names, read_file, read_range, size_bytes
from bot_dist.storage.folder import Request, Storage
from bot_dist.store import CheckpointReader
from tests.chaos.proxy import TRANSIENT, Fault, FaultyProxy, Plan, first, seeded
from tests.chaos.seaweed import S3Server
from tests.conftest import Pico
from tests.integration.test_s3 import transfer, uploaded
from tests.integration.test_transfer import tensors

ANSWERED = [fault for fault in TRANSIENT if fault is not Fault.SILENCE]
DATA = bytes(range(256)) * 1024


@pytest.fixture
def proxy(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """In front of the server, with short waits; it passes everything on until it is given a plan."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.005)
    with FaultyProxy(s3_environment.address) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        yield proxy


@pytest.fixture
def storage(proxy: FaultyProxy) -> Storage:
    storage = Storage(f"s3://tests/{uuid.uuid4().hex}")
    storage.write("x", [DATA])
    storage.write("to-go", [b"1"])
    return storage


def read(storage: Storage) -> bytes:
    buffer = bytearray(1000)
    storage.read_into([Request("x", 256, [memoryview(buffer)])])
    return bytes(buffer)


OPERATIONS: dict[str, tuple[str, Callable[[Storage], object], object]] = {
    "write": ("PUT", lambda s: s.write("y", [DATA, b"."]), None),
    "create": ("PUT", lambda s: s.create("z", DATA), None),
    "read": ("GET", read, DATA[256:1256]),
    "read whole": ("GET", lambda s: s.read("x"), DATA),
    "exists": ("HEAD", lambda s: s.exists("x"), True),
    "names": ("GET", lambda s: s.names(""), ["to-go", "x"]),
    "sizes": ("GET", lambda s: s.sizes(""), {"x": len(DATA), "to-go": 1}),
    "remove": ("POST", lambda s: s.remove("to-go"), None),
}
"""Per operation: its request, itself, and what it should return."""


@pytest.mark.parametrize("fault", ANSWERED)
@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_goes_wrong_twice_is_asked_three_times(
    operation: str, fault: Fault, storage: Storage, proxy: FaultyProxy
) -> None:
    method, call, wanted = OPERATIONS[operation]
    begun = len(proxy.exchanges)
    proxy.plan = first(fault, 2, method)
    assert call(storage) == wanted
    assert [e.method for e, _ in proxy.exchanges[begun:]].count(method) == 3
    proxy.plan = lambda exchange: None
    held = {"write": ("y", DATA + b"."), "create": ("z", DATA)}.get(operation, ("x", DATA))
    assert storage.read(held[0]) == held[1]
    assert storage.exists("to-go") == (operation != "remove")


@pytest.mark.parametrize("operation", OPERATIONS)
def test_what_is_forbidden_is_asked_once(operation: str, storage: Storage, proxy: FaultyProxy) -> None:
    method, call, _ = OPERATIONS[operation]
    begun = len(proxy.exchanges)
    proxy.plan = first(Fault.FORBIDDEN, 100, method)
    with pytest.raises(CheckpointError, match=r"s3://tests/\w+: can't \w+ .*: 403 Forbidden"):
        call(storage)
    assert [fault for _, fault in proxy.exchanges[begun:]].count(Fault.FORBIDDEN) == 1


@pytest.mark.parametrize(
    ("fault", "answer"),
    [
        (Fault.SLOW_DOWN, r"503 Service Unavailable: SlowDown: injected \S+ \S+"),
        (Fault.ERROR_500, r"500 Internal Server Error: InternalError: injected \S+ \S+"),
        (Fault.RESET, r"GenericError: .*"),
    ],
)
def test_what_stays_wrong_is_one_error(fault: Fault, answer: str, storage: Storage, proxy: FaultyProxy) -> None:
    begun = len(proxy.exchanges)
    proxy.plan = first(fault, 1000)
    with pytest.raises(CheckpointError, match=rf"^{storage.label}: can't write y: {answer} after 8 tries; run the"):
        storage.write("y", [DATA])
    assert len(proxy.exchanges) - begun == retry.TRIES
    assert os.environ["AWS_ACCESS_KEY_ID"] not in str(proxy.exchanges)
    proxy.plan = lambda exchange: None
    assert not storage.exists("y")


@pytest.mark.parametrize("operation", ["write", "create", "read", "sizes"])
def test_a_server_that_is_silent_is_asked_again(
    operation: str, storage: Storage, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOT_DIST_STORAGE_TIMEOUT_S", "1")
    method, call, wanted = OPERATIONS[operation]
    proxy.plan = first(Fault.SILENCE, 1, method)
    assert call(Storage(storage.url)) == wanted
    assert proxy.faults() == [Fault.SILENCE]


def test_a_server_that_hangs_ends_the_run_in_bounded_time(
    storage: Storage, proxy: FaultyProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retry, "TRIES", 3)
    monkeypatch.setenv("BOT_DIST_STORAGE_TIMEOUT_S", "1")
    proxy.plan = first(Fault.SILENCE, 1000)
    begun = time.monotonic()
    with pytest.raises(CheckpointError, match=r"can't read from x: .* after 3 tries"):
        read(Storage(storage.url))
    assert proxy.faults() == [Fault.SILENCE] * 3
    assert time.monotonic() - begun < 60  # not a speed: it would be for ever


def test_only_the_ranges_that_failed_are_asked_again(storage: Storage, proxy: FaultyProxy) -> None:
    begun = len(proxy.exchanges)
    proxy.plan = first(Fault.TRUNCATED, 3, "GET")
    buffers = [bytearray(100) for _ in range(20)]
    storage.read_into([Request("x", 256 * i + i, [memoryview(b)]) for i, b in enumerate(buffers)])
    assert [bytes(b) for b in buffers] == [DATA[256 * i + i :][:100] for i in range(20)]
    assert len(proxy.exchanges) - begun == 23


def test_a_create_that_lost_the_race_is_told_though_its_answer_was_lost(storage: Storage, proxy: FaultyProxy) -> None:
    storage.create("m", b"of another writer")
    proxy.plan = first(Fault.LOST_ANSWER, 2, "PUT")
    with pytest.raises(FileExistsError):
        storage.create("m", b"of this one")
    assert storage.read("m") == b"of another writer"


@pytest.mark.parametrize(
    ("seed", "faults"),
    [(0, ANSWERED), *(pytest.param(seed, TRANSIENT, marks=pytest.mark.slow) for seed in range(1, 12))],
)
def test_a_transfer_through_faults_makes_the_same_bytes(
    seed: int,
    faults: Sequence[Fault],
    proxy: FaultyProxy,
    pico_llama: Callable[..., Pico],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BOT_DIST_STORAGE_TIMEOUT_S", "1" if Fault.SILENCE in faults else "30")
    through_faults(seeded(seed, 0.15, faults), proxy, pico_llama(), tmp_path)
    assert len({*proxy.faults()}) > 3, proxy.faults()


@pytest.mark.slow
@pytest.mark.ray
def test_ray_actors_make_the_same_bytes_through_faults(
    proxy: FaultyProxy,
    request: pytest.FixtureRequest,
    pico_llama: Callable[..., Pico],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("BOT_DIST_STORAGE_TIMEOUT_S", "5")
    request.getfixturevalue("own_ray")
    mesh = {"cluster.executor": "ray", "cluster.tensor": 2, "cluster.device": "cpu"}
    through_faults(seeded(100, 0.1), proxy, pico_llama(), tmp_path, **mesh)


def through_faults(plan: Plan, proxy: FaultyProxy, pico: Pico, folder: Path, **options: object) -> None:
    """A transfer from and to faulty storage beside a local one."""
    url = f"s3://tests/{uuid.uuid4().hex}"
    uploaded(pico.folder, f"{url}/source")
    proxy.plan = plan
    there = transfer(f"{url}/source", f"{url}/target", folder / "run", **options)
    assert not bot_dist.verify(f"{url}/target").damaged
    assert proxy.faults()
    proxy.plan = lambda exchange: None
    here = transfer(pico.url, str(folder / "target"), folder / "run")
    assert all(torch.equal(tensor, tensors(here)[name]) for name, tensor in tensors(there).items())


def test_a_transfer_that_storage_ends_leaves_nothing_that_looks_whole(
    proxy: FaultyProxy, pico_llama: Callable[..., Pico], tmp_path: Path
) -> None:
    url = f"s3://tests/{uuid.uuid4().hex}"
    source = uploaded(pico_llama().folder, f"{url}/source")
    proxy.plan = first(Fault.SLOW_DOWN, 1000, "PUT", "/c.0")
    with pytest.raises(CheckpointError, match=r"can't write data/\S+/c\.0\S*: 503 .*SlowDown.* after 8 tries"):
        transfer(source, f"{url}/target", tmp_path / "run")
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        CheckpointReader(f"{url}/target")
    proxy.plan = lambda exchange: None
    transfer(source, f"{url}/target", tmp_path / "run")
    assert not bot_dist.verify(f"{url}/target").damaged


@pytest.fixture
def http_url(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, FaultyProxy]]:
    """A file by plain HTTP, through a proxy."""
    monkeypatch.setattr(retry, "FIRST_WAIT_S", 0.005)
    name = uuid.uuid4().hex
    Storage(f"s3://tests/{name}").write("x", [DATA])
    with FaultyProxy(s3_environment.filer) as proxy:
        yield f"{proxy.url}/buckets/tests/{name}", proxy


@pytest.mark.parametrize("fault", ANSWERED)
def test_a_source_by_http_is_asked_again_too(fault: Fault, http_url: tuple[str, FaultyProxy]) -> None:
    url, proxy = http_url
    proxy.plan = first(fault, 2)
    assert read_range(f"{url}/x", 256, 1256, "t") == DATA[256:1256]
    proxy.plan = first(fault, 4)
    assert size_bytes(f"{url}/x") == len(DATA)
    proxy.plan = first(fault, 2)
    assert read_file(f"{url}/x") == DATA


def test_a_silent_source_by_http_is_asked_again(
    http_url: tuple[str, FaultyProxy], monkeypatch: pytest.MonkeyPatch
) -> None:
    url, proxy = http_url
    monkeypatch.setenv("BOT_DIST_STORAGE_TIMEOUT_S", "1")
    proxy.plan = first(Fault.SILENCE, 1)
    assert read_file(f"{url}/x") == DATA
    assert proxy.faults() == [Fault.SILENCE]


def test_what_http_can_not_answer_is_one_error(http_url: tuple[str, FaultyProxy]) -> None:
    url, proxy = http_url
    assert size_bytes(f"{url}/none") is None
    assert list_names(f"{url}/none") is None
    proxy.plan = first(Fault.SLOW_DOWN, 1000)
    for call in (lambda: size_bytes(f"{url}/x"), lambda: read_file(f"{url}/x")):
        with pytest.raises(SourceError, match=r"x: can't [a-z ]+ it: ClientResponseError: 503.* after 8 tries"):
            call()
