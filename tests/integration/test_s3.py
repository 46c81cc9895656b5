"""Source and target on a real S3 server."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import bot_dist
from bot_dist.errors import BotDistError, CheckpointError, CheckpointExistsError, SourceError
from bot_dist.events import Event
from bot_dist.events.transfer import StepDone
from bot_dist.model import model_of
from bot_dist.pipeline.export import export_store
from bot_dist.plan import LANES
from bot_dist.storage.files import list_names, read_range, size_bytes, write_file
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointReader, CheckpointWriter, store_layout
from tests.chaos.seaweed import SECRET, S3Server
from tests.conftest import Pico
from tests.integration.test_transfer import tensors

TARGET = {"embed": 12, "mlp": 20, "layers": 2}
pytestmark = pytest.mark.usefixtures("s3_environment")


@pytest.fixture
def bucket() -> str:
    """The URL of a place of this test's own."""
    return f"s3://tests/{uuid.uuid4().hex}"


def uploaded(folder: Path, url: str) -> str:
    for path in folder.iterdir():
        write_file(f"{url}/{path.name}", path.read_bytes())
    return url


def transfer(source: str, target: str, output: Path, on_event: Any = None, **overrides: Any) -> CheckpointReader:
    recipe = {"source": source, "output": str(output), "target_url": target, "target": TARGET}
    options = {"cluster.executor": "local", "transfer.analysis": "wavelet", **overrides}
    bot_dist.transfer(bot_dist.make_recipe(recipe, options), *([on_event] if on_event else []))
    return CheckpointReader(target)


def same(a: CheckpointReader, b: CheckpointReader) -> bool:
    return a.manifest.digests == b.manifest.digests


def test_a_transfer_from_s3_to_s3_makes_the_bytes_of_a_local_one(
    pico_llama: Callable[..., Pico], bucket: str, tmp_path: Path
) -> None:
    pico = pico_llama(max_shard_size="20KB")
    source = uploaded(pico.folder, f"{bucket}/source")
    names = list_names(source) or []
    assert "model.safetensors.index.json" in names
    assert sorted(names) == sorted(path.name for path in pico.folder.iterdir())
    there = transfer(source, f"{bucket}/target", tmp_path / "run")
    here = transfer(pico.url, str(tmp_path / "target"), tmp_path / "run")
    assert same(there, here)
    assert not bot_dist.verify(f"{bucket}/target").damaged
    assert there.verify_sizes() == []
    for name, tensor in tensors(here).items():
        assert torch.equal(tensors(there)[name], tensor)
    export_store(f"{bucket}/target", str(tmp_path / "export"))
    exported = load_file(tmp_path / "export/model.safetensors")
    assert {n: t.tolist() for n, t in exported.items()} == {n: t.tolist() for n, t in tensors(here).items()}


@pytest.mark.ray
def test_ray_actors_make_the_same_bytes(
    own_ray: None, pico_llama: Callable[..., Pico], bucket: str, tmp_path: Path
) -> None:
    pico = pico_llama()
    source = uploaded(pico.folder, f"{bucket}/source")
    mesh = {"cluster.executor": "ray", "cluster.tensor": 2, "cluster.device": "cpu"}
    there = transfer(source, f"{bucket}/target", tmp_path / "run", **mesh)
    assert not bot_dist.verify(f"{bucket}/target").damaged
    here = tensors(transfer(pico.url, str(tmp_path / "target"), tmp_path / "run"))
    assert all(torch.equal(tensor, here[name]) for name, tensor in tensors(there).items())


def test_an_unfinished_transfer_is_resumed(pico_llama: Callable[..., Pico], bucket: str, tmp_path: Path) -> None:
    source = uploaded(pico_llama().folder, f"{bucket}/source")
    target = f"{bucket}/target"

    done = []

    def stop_late(event: Event) -> None:
        done.extend([event] if isinstance(event, StepDone) else [])
        if len(done) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        transfer(source, target, tmp_path / "run", stop_late)
    with pytest.raises(CheckpointError, match=r"no manifest\.json.*run the same command again"):
        CheckpointReader(target)
    attempt = Storage(target).names("data")
    events: list[Event] = []
    transfer(source, target, tmp_path / "run", events.append)
    resumed = [event for event in events if isinstance(event, StepDone) and event.resumed]
    assert 4 <= len(resumed) <= 4 + LANES  # those in progress then may have ended too
    assert Storage(target).names("data") == attempt
    assert not [name for name in Storage(target).sizes("") if "_steps" in name or "_layout" in name]
    assert not bot_dist.verify(target).damaged


def test_a_store_is_read_by_plain_http(
    s3_environment: S3Server, pico_llama: Callable[..., Pico], bucket: str, tmp_path: Path
) -> None:
    there = transfer(pico_llama().url, f"{bucket}/target", tmp_path / "run")
    by_http = f"http://{s3_environment.filer}/buckets/{bucket.removeprefix('s3://')}/target"
    assert same(CheckpointReader(by_http), there)
    assert not bot_dist.verify(by_http).damaged


def committers(url: str, config: dict[str, Any], n: int) -> list[Callable[[], str]]:
    """``n`` writers of the same store, each of an attempt of its own, that have written everything but the commit."""
    model = model_of(config)

    def prepared(i: int) -> Callable[[], str]:
        stored = [store_layout(p) for _, _, p in model.parameters()]
        writer = CheckpointWriter.create(url, stored, config=config, attempt=f"same-{i}")
        digests = {
            s.parameter.name: {
                s.shard_key(shard): writer.write(s.parameter.name, shard, torch.full(s.parameter.sizes, float(i)))
                for shard in s.shards()
            }
            for s in stored
        }

        def commit() -> str:
            writer.commit(digests, {"writer": i})
            return f"same-{i}"

        return commit

    return [prepared(i) for i in range(n)]


def test_of_two_committers_one_wins(pico_llama: Callable[..., Pico], bucket: str) -> None:
    config = json.loads((pico_llama(num_hidden_layers=1).folder / "config.json").read_text())
    for race in range(3):
        url = f"{bucket}/{race}"
        commits = committers(url, config, 2)
        with ThreadPoolExecutor(2) as pool:
            outcomes = [future.exception() or future.result() for future in [pool.submit(c) for c in commits]]
        losers = [outcome for outcome in outcomes if isinstance(outcome, CheckpointExistsError)]
        winners = [outcome for outcome in outcomes if isinstance(outcome, str)]
        assert (len(losers), len(winners)) == (1, 1), outcomes
        assert CheckpointReader(url).manifest.data == f"data/{winners[0]}"
        assert not bot_dist.verify(url).damaged


def test_the_manifest_is_created_only_where_there_is_none(bucket: str) -> None:
    storage = Storage(bucket)
    storage.create("m", b"first")
    with pytest.raises(FileExistsError):
        storage.create("m", b"second")
    assert storage.read("m") == b"first"
    storage.create("m", b"first")  # the own one, whose first answer was lost


def test_reads_tell_what_is_missing_or_short(bucket: str) -> None:
    storage = Storage(bucket)
    assert storage.is_empty()
    storage.write("a/x", [b"123", b"45"])
    assert not storage.is_empty()
    assert (storage.names("a"), storage.sizes("a"), storage.exists("a")) == (["x"], {"x": 5}, True)
    assert (size_bytes(f"{bucket}/a/x"), size_bytes(f"{bucket}/a"), list_names(f"{bucket}/b")) == (5, None, None)
    with pytest.raises(CheckpointError, match=r"s3://tests/\w+/b: no such file; restore it"):
        storage.read("b")
    with pytest.raises(SourceError, match=r"x: tensor 't': found 3 bytes at offset 2, wanted 8"):
        read_range(f"{bucket}/a/x", 2, 10, "tensor 't'")
    with pytest.raises(SourceError, match="no such file or folder"):
        read_range(f"{bucket}/a/y", 2, 10, "tensor 't'")
    storage.remove("a/x")
    storage.remove("a/x")
    assert storage.is_empty()


def test_a_missing_bucket_is_named() -> None:
    with pytest.raises(CheckpointError, match=r"s3://nowhere-at-all/x: .*404 Not Found: NoSuchBucket"):
        CheckpointReader("s3://nowhere-at-all/x")


@pytest.fixture
def wrong_key(s3_environment: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    """A secret that the server does not know, in the environment."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong-secret")
    endpoint = os.environ["AWS_ENDPOINT_URL"]
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint.replace("127.0.0.1", "localhost"))  # a client of its own
    return "wrong-secret"


def test_wrong_keys_are_refused_at_once_and_not_shown(wrong_key: str, bucket: str) -> None:
    for call in (Storage(bucket).exists, lambda: Storage(bucket).write("x", [b""]), lambda: list_names(bucket)):
        with pytest.raises(BotDistError, match="403 Forbidden") as caught:
            call()
        assert wrong_key not in str(caught.value)
        assert os.environ["AWS_ACCESS_KEY_ID"] not in str(caught.value)
        assert "tries" not in str(caught.value)


def test_keys_are_nowhere_in_what_a_transfer_leaves(
    pico_llama: Callable[..., Pico], bucket: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = uploaded(pico_llama().folder, f"{bucket}/source")
    events: list[dict[str, Any]] = []
    transfer(source, f"{bucket}/target", tmp_path / "run", events.append)
    storage = Storage(f"{bucket}/target")
    left = b"".join(storage.read(name) for name in storage.sizes("") if name.endswith(".json"))
    left += b"".join(path.read_bytes() for path in tmp_path.rglob("*.json*"))
    printed = capfd.readouterr()
    left += f"{printed.out}{printed.err}{events}".encode()
    assert SECRET.encode() not in left
    assert os.environ["AWS_ACCESS_KEY_ID"].encode() not in left
    assert b"s3://tests" in left
