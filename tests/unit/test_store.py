"""A store gives what was committed, or one error."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
import torch
import zarr
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.errors import CheckpointError, CheckpointExistsError, SourceError
from bot_dist.pipeline import checks
from bot_dist.storage.folder import Storage
from bot_dist.store import CheckpointReader, CheckpointWriter, StoredParameter, arrays, store_layout
from bot_dist.store.manifest import digest as manifest_digest
from bot_dist.tensors.axes import Parameter
from tests.conftest import examples

HEADS = Parameter(name="model.q.weight", axes=("kv_heads", "head_dim", "embed"), sizes=(5, 8, 12), dims=(2, 1))
NORM = Parameter(name="model.norm.weight", axes=("embed",), sizes=(12,), dims=(1,))
STORED = [StoredParameter(parameter=HEADS, dtype="bfloat16", shard=(2, 8, 12), chunk=(1, 4, 12)), store_layout(NORM)]
VALUES = {
    HEADS.name: torch.arange(480).reshape(5, 8, 12).to(torch.bfloat16),
    NORM.name: torch.linspace(-1, 1, 12),
}


def create(url: str, plan: str = "plan", overwrite: bool = False) -> CheckpointWriter:
    return CheckpointWriter.create(url, STORED, config={}, attempt=plan, overwrite=overwrite)


def fill(writer: CheckpointWriter) -> dict[str, dict[str, bytes]]:
    digests: dict[str, dict[str, bytes]] = {}
    for name, values in VALUES.items():
        for shard in writer.shards(name):
            piece = values[tuple(slice(*r) for r in shard)]
            key = writer.stored[name].shard_key(shard)
            digests.setdefault(name, {})[key] = writer.write(name, shard, piece)
    return digests


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def committed(url: str) -> str:
    writer = create(url)
    writer.commit(fill(CheckpointWriter.open(url, "plan")), {"made": "by a test"})
    return url


def data(url: str) -> Path:
    """The folder of the plan's attempt."""
    return Path(url, "data", "plan")


def damage(reader: CheckpointReader, name: str) -> list[str]:
    return [str(d) for shard in reader.stored(name).shards() for d in reader.verify(name, shard)]


@pytest.mark.parametrize("where", ["{tmp}/store", "file://{tmp}/store", "memory://test-store"])
def test_reads_back_any_box(where: str, tmp_path: Path) -> None:
    url = where.format(tmp=tmp_path)
    create(url, overwrite=where.startswith("memory")).commit(
        fill(CheckpointWriter.open(url, "plan")), {}, overwrite=where.startswith("memory")
    )
    reader = CheckpointReader(url)
    assert torch.equal(reader.read(HEADS, ((1, 4), (3, 8), (5, 7))), VALUES[HEADS.name][1:4, 3:8, 5:7])
    assert torch.equal(reader.read(NORM, ((0, 12),)), VALUES[NORM.name])
    assert reader.dtype(HEADS) == torch.bfloat16
    assert not any(damage(reader, name) for name in VALUES)
    assert not reader.verify_sizes()
    assert torch.equal(reader.read_flat(HEADS.name, 17, 403), VALUES[HEADS.name].reshape(-1)[17:403])
    slices = [reader.read_slice(HEADS.name, "kv_heads", rank, 3) for rank in range(3)]
    assert [len(part) for part in slices] == [2, 2, 1]
    assert torch.equal(torch.cat(slices), VALUES[HEADS.name])
    whole = dict(reader.tensors())
    assert [*whole] == [*VALUES]
    assert torch.equal(whole[HEADS.name], VALUES[HEADS.name].reshape(40, 12))


def test_plain_zarr_opens_it(committed: str) -> None:
    array = zarr.open_group(data(committed), mode="r")[HEADS.name]
    assert isinstance(array, zarr.Array)
    assert array.metadata.dimension_names == ("kv_heads", "head_dim", "embed")
    assert array.attrs["shape"] == [40, 12]
    assert array.attrs["logical_dtype"] == "bfloat16"
    values = torch.from_numpy(array[:]).view(torch.bfloat16)
    assert torch.equal(values, VALUES[HEADS.name])
    assert array.shards == (2, 8, 12)
    assert array.chunks == (1, 4, 12)
    assert [codec["name"] for codec in array.metadata.codecs[0].to_dict()["configuration"]["codecs"]] == [
        "bytes",
        "crc32c",
    ]


@pytest.mark.parametrize(
    ("axes", "names"),
    [
        (("mlp", "embed"), ["mlp", "embed"]),
        (("embed", "embed"), ["embed", "embed_2"]),
        (("embed", "embed_2", "embed", "embed"), ["embed", "embed_2", "embed_3", "embed_4"]),
    ],
)
def test_no_two_dimensions_have_one_name(axes: tuple[str, ...], names: list[str]) -> None:
    assert arrays.dimension_names(axes) == names


def test_a_store_in_which_two_dimensions_have_one_name_is_whole(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As all were written once."""
    parameter = Parameter(name="pooler.weight", axes=("embed", "embed"), sizes=(4, 4), dims=(1, 1))
    writer = CheckpointWriter.create(url, [store_layout(parameter)], config={}, attempt="plan")
    values = torch.arange(16.0).reshape(4, 4)
    with monkeypatch.context() as once:
        once.setattr(arrays, "dimension_names", list)
        writer.commit({parameter.name: writer.write_array(parameter.name, values)}, {})
    path = data(url) / parameter.name / "zarr.json"
    assert json.loads(path.read_text())["dimension_names"] == ["embed", "embed"]
    assert torch.equal(CheckpointReader(url).read(parameter, ((0, 4), (0, 4))), values)
    assert not checks.verify(url).damaged
    path.write_text(path.read_text().replace('"embed"', '"mlp"'))
    assert [damage.name for damage in checks.verify(url).damaged] == [f"data/plan/{parameter.name}/zarr.json"]


SIDES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4), st.integers(1, 9)), min_size=1, max_size=3)


@examples(25)
@given(SIDES, st.sampled_from(["float32", "bfloat16", "float16", "float64"]), st.data())
def test_zarr_reads_every_layout_the_same(sides: list[tuple[int, int, int]], dtype: str, draw: st.DataObject) -> None:
    """zarr-python is the oracle of the bytes that are written, and of the boxes that are read."""
    chunk, per_shard, n = zip(*sides, strict=True)
    axes = tuple(f"a{i}" for i in range(len(sides)))
    parameter = Parameter(name="w", axes=axes, sizes=n, dims=(1,) * len(sides))
    shard = tuple(c * p for c, p in zip(chunk, per_shard, strict=True))
    stored = StoredParameter(parameter=parameter, dtype=dtype, shard=shard, chunk=chunk)
    values = torch.randn(n).to(getattr(torch, dtype))
    with TemporaryDirectory() as url:
        writer = CheckpointWriter.create(url, [stored], config={}, attempt="plan")
        digests = {
            stored.shard_key(box): writer.write("w", box, values[tuple(slice(*r) for r in box)])
            for box in stored.shards()
        }
        writer.commit({"w": digests}, {})
        by_zarr = zarr.open_group(data(url), mode="r")["w"][...]
        assert np.array_equal(by_zarr, (values.view(torch.uint16) if dtype == "bfloat16" else values).numpy())
        reader = CheckpointReader(url)
        box = tuple(
            (start, draw.draw(st.integers(start + 1, size)))
            for size in n
            for start in [draw.draw(st.integers(0, size - 1))]
        )
        assert torch.equal(reader.read(parameter, box), values[tuple(slice(*r) for r in box)])
        assert not damage(reader, "w")
        assert all(writer.digests_on_storage("w", box) == digests[stored.shard_key(box)] for box in stored.shards())


def test_uncommitted_is_refused(url: str) -> None:
    fill(create(url))
    with pytest.raises(CheckpointError, match=r"no manifest\.json.*run the same command again"):
        CheckpointReader(url)


def test_nothing_there(url: str) -> None:
    with pytest.raises(CheckpointError, match="no such store"):
        CheckpointReader(url)


def test_commit_refuses_what_was_not_written(url: str) -> None:
    writer = create(url)
    digests = fill(writer)
    held = digests[HEADS.name].pop("c.2.0.0")
    with pytest.raises(CheckpointError, match=r"shard c\.2\.0\.0 of model\.q\.weight was not written"):
        writer.commit(digests, {})
    digests[HEADS.name]["c.2.0.0"] = held
    shard = data(url) / HEADS.name / "c.1.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match=r"model\.q\.weight/c.1.0.0 has 467 bytes, wanted 468"):
        writer.commit(digests, {})
    shard.unlink()
    with pytest.raises(CheckpointError, match="has no file"):
        writer.commit(digests, {})
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        CheckpointReader(url)


@pytest.mark.parametrize("offset", range(0, 468, 31))
def test_a_flipped_bit_is_found(committed: str, offset: int) -> None:
    shard = data(committed) / HEADS.name / "c.1.0.0"
    content = bytearray(shard.read_bytes())
    content[offset] ^= 1
    shard.write_bytes(content)
    reader = CheckpointReader(committed)
    assert damage(reader, HEADS.name)
    inside_values = offset < 4 * 100 and offset % 100 < 96
    if inside_values:
        with pytest.raises(CheckpointError, match=r"model\.q\.weight, chunk .* is damaged"):
            reader.read(HEADS, ((0, 5), (0, 8), (0, 12)))
    else:  # of checksums and index, which only plain zarr needs
        assert torch.equal(reader.read(HEADS, ((0, 5), (0, 8), (0, 12))), VALUES[HEADS.name])


def test_a_missing_shard_is_found(committed: str) -> None:
    (data(committed) / HEADS.name / "c.2.0.0").unlink()
    reader = CheckpointReader(committed)
    found = damage(reader, HEADS.name)
    shard = f"data/plan/{HEADS.name}/c.2.0.0"
    assert found[:2] == [f"model.q.weight, chunk 4.{i}.0: shard {shard} is missing" for i in (0, 1)]
    assert [d.chunk for d in reader.verify_sizes()] == ["4.0.0", "4.1.0"]
    with pytest.raises(CheckpointError, match=r"chunks 4\.0\.0 to 4\.0\.0 some are missing or damaged"):
        reader.read(HEADS, ((4, 5), (0, 1), (0, 1)))
    assert torch.equal(reader.read(HEADS, ((0, 4), (0, 8), (0, 12))), VALUES[HEADS.name][:4])


def test_a_truncated_shard_is_found(committed: str) -> None:
    shard = data(committed) / HEADS.name / "c.0.0.0"
    shard.write_bytes(shard.read_bytes()[:250])
    reader = CheckpointReader(committed)
    assert [d.partition(":")[0].rpartition(" ")[2] for d in damage(reader, HEADS.name)] == ["1.0.0", "1.1.0"]
    assert len(reader.verify_sizes()) == 4
    with pytest.raises(CheckpointError, match="wanted"):
        reader.read(HEADS, ((1, 2), (0, 8), (0, 12)))


def test_swapped_shards_are_found(committed: str) -> None:
    a, b = (data(committed) / HEADS.name / f"c.{i}.0.0" for i in (0, 1))
    content = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(content)
    assert len(damage(CheckpointReader(committed), HEADS.name)) == 8


def test_an_edited_manifest_is_found(committed: str) -> None:
    path = Path(committed, "manifest.json")
    body = json.loads(path.read_text())
    body["provenance"]["made"] = "by someone else"
    path.write_text(json.dumps(body))
    with pytest.raises(CheckpointError, match="was changed"):
        CheckpointReader(committed)
    path.write_text(path.read_text()[:-40])
    with pytest.raises(CheckpointError, match="is damaged"):
        CheckpointReader(committed)


@pytest.mark.parametrize(
    ("key", "value", "problem"),
    [
        ("data", "../other", "data folder"),
        ("files", {"../../etc/passwd": {"nbytes": 1, "xxh3_128": ""}}, "leads out of the store"),
        ("format_version", 7, "format version 7"),
    ],
)
def test_a_manifest_can_not_lead_elsewhere(committed: str, key: str, value: Any, problem: str) -> None:
    """Even one whose digest is right."""
    path = Path(committed, "manifest.json")
    body = {**json.loads(path.read_text()), key: value}
    del body["digest"]
    path.write_text(json.dumps({**body, "digest": manifest_digest(body)}))
    with pytest.raises(CheckpointError, match=problem):
        CheckpointReader(committed)


MALFORMED: list[tuple[str, Any]] = [
    *(("parameters", value) for value in (None, [], 1, "x", {"w": {}}, {"w": []}, {"w": None})),
    *((f"parameters.{NORM.name}.{key}", value) for key in ("axes", "sizes", "dims", "shard", "chunk")
      for value in (None, [], "12", 12, [0], [-12], [1.5], [True], [[12]], [10**30], [12, 12], {})),
    *((f"parameters.{NORM.name}.dtype", value) for value in (None, "int4", [], 1)),
    *((f"parameters.{NORM.name}.learning_rate_factor", value) for value in (None, "1", 0, -1, True, [])),
    *((f"parameters.{NORM.name}.digests", value) for value in (None, "xy", "00", 1, [], "0" * 10_000)),
    *(("config", value) for value in (None, [], 1, "x")),
    *(("files", value) for value in (None, [1], 1, {"a": 1}, {"a": {}}, {"a": {"nbytes": 1}}, {"../a": {}})),
    *(("provenance", value) for value in (None, [], 1, {"operators": 1}, {"operators": {"../a": "0"}})),
    *(("data", value) for value in (None, 1, [], "data", "data/../x", "/etc")),
    *(("format_version", value) for value in (None, 2, "1", [])),
]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), MALFORMED)
def test_a_manifest_that_is_malformed_is_one_error(committed: str, key: str, value: Any) -> None:
    """Even one whose digest is right."""
    path = Path(committed, "manifest.json")
    body = json.loads(path.read_text())
    del body["digest"]
    names = [*key.rpartition(".")] if key.startswith("parameters.") else ["", "", key]
    inner = body["parameters"][NORM.name] if names[0] else body
    inner[names[2]] = value
    path.write_text(json.dumps({**body, "digest": manifest_digest(body)}))
    with pytest.raises(CheckpointError, match=r"manifest|format version"):
        CheckpointReader(committed)


DEEP = [b"[" * 100_000, b'{"a":' * 100_000]
NO_JSON = [b"", b"[]", b"null", b"5", b'"x"', b"\xff", b"{", *DEEP, b"{}", b'{"a": 1, "a": 1}']


@pytest.mark.parametrize("content", NO_JSON, ids=lambda content: repr(content[:6]))
def test_no_file_of_a_store_that_is_no_such_thing_is_more_than_damage(committed: str, content: bytes) -> None:
    held = {path: path.read_bytes() for path in Path(committed).rglob("*.json")}
    assert len(held) == 3 + len(STORED)
    for path, before in held.items():
        path.write_bytes(content)
        try:
            problems = [str(damage) for damage in checks.verify(committed).damaged]
        except CheckpointError as error:
            problems = [str(error)]
        assert [str(path.relative_to(committed)) in problem for problem in problems] == [True]
        path.write_bytes(before)


@pytest.mark.parametrize("content", NO_JSON, ids=lambda content: repr(content[:6]))
def test_what_an_unfinished_attempt_has_left_may_be_no_such_thing(url: str, content: bytes) -> None:
    writer = create(url)
    writer.record("step-1", {})
    layout, step = data(url) / "_layout.json", data(url) / "_steps/step-1.json"
    step.write_bytes(content)
    assert writer.record_of("step-1") is None
    layout.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"_layout\.json"):
        CheckpointWriter.open(url, "plan")
    assert create(url).recorded() == {"step-1"}
    Path(url, "zarr.json").write_bytes(content)
    with pytest.raises(CheckpointExistsError, match="no bot_dist store"):
        create(url, overwrite=True)


def test_a_committed_store_stays_until_it_is_replaced(committed: str) -> None:
    with pytest.raises(CheckpointExistsError, match="--overwrite"):
        create(committed)
    writer = create(committed, plan="another", overwrite=True)
    digests = fill(writer)
    assert not damage(CheckpointReader(committed), NORM.name)
    writer.commit(digests, {"made": "again"}, overwrite=True)
    assert CheckpointReader(committed).manifest.provenance == {"made": "again"}
    assert [p.name for p in Path(committed, "data").iterdir()] == ["another"]
    assert not damage(CheckpointReader(committed), NORM.name)


def test_an_unfinished_store_of_the_same_plan_is_taken_up(url: str) -> None:
    writer = create(url)
    writer.record("step-1", {"a": 1})
    again = create(url)
    assert again.recorded() == {"step-1"}
    assert again.record_of("step-1") == {"a": 1}
    with pytest.raises(CheckpointExistsError, match=r"unfinished transfer of another plan \(plan\)"):
        create(url, plan="another")
    assert create(url, plan="another", overwrite=True).recorded() == set()
    assert create(url, plan="plan-2", overwrite=True).recorded() == set()


def test_an_interrupted_creation_starts_over(url: str) -> None:
    create(url)
    (data(url) / "_layout.json").unlink()
    assert create(url).shards(NORM.name) == [((0, 12),)]


def test_a_foreign_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    for overwrite in (False, True):
        with pytest.raises(CheckpointExistsError):
            create(str(tmp_path), overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_two_committers_one_wins(url: str) -> None:
    first, second = create(url, plan="plan-1"), create(url, plan="plan-2")
    ours, theirs = fill(first), fill(second)
    first.commit(ours, {"made": "first"})
    with pytest.raises(CheckpointExistsError, match="another writer"):
        second.commit(theirs, {})
    assert CheckpointReader(url).manifest.provenance == {"made": "first"}
    assert [p.name for p in Path(url, "data").iterdir()] == ["plan-1"]


@pytest.mark.parametrize("step", ["sizes", "read", "write", "sync_folders", "create"])
def test_whatever_is_lost_to_another_commit_is_told_as_that(
    step: str, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = create(url, plan="plan-1"), create(url, plan="plan-2")
    ours, theirs = fill(first), fill(second)
    second.storage.write("data/plan-2/tokenizer/tokenizer.json", [b"{}"])
    work = getattr(Storage, step)

    def overtaken(storage: Storage, *args: Any, **options: Any) -> Any:
        if storage is second.storage and not Path(url, "manifest.json").exists():
            first.commit(ours, {"made": "first"})
        return work(storage, *args, **options)

    monkeypatch.setattr(Storage, step, overtaken)
    with pytest.raises(CheckpointExistsError, match="another writer"):
        second.commit(theirs, {})
    assert CheckpointReader(url).manifest.provenance == {"made": "first"}
    assert not any(damage(CheckpointReader(url), name) for name in VALUES)


def test_the_loser_takes_its_attempt_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = create(url, plan="plan-1"), create(url, plan="plan-2")
    ours, theirs = fill(first), fill(second)
    monkeypatch.setattr(CheckpointWriter, "_collect", lambda self, **_: None)
    first.commit(ours, {})
    with pytest.raises(CheckpointExistsError, match="another writer"):
        second.commit(theirs, {})
    assert [p.name for p in Path(url, "data").iterdir()] == ["plan-1"]


def test_the_loser_may_find_its_attempt_taken_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = create(url, plan="plan-1"), create(url, plan="plan-2")
    ours, theirs = fill(first), fill(second)
    monkeypatch.setattr(CheckpointWriter, "_collect", lambda self, **_: None)
    first.commit(ours, {})
    read = Storage.read

    def emptied(storage: Storage, name: str) -> bytes:
        if name.startswith("data/plan-2/"):
            shutil.rmtree(Path(url, "data", "plan-2"), ignore_errors=True)
        return read(storage, name)

    monkeypatch.setattr(Storage, "read", emptied)
    with pytest.raises(CheckpointExistsError, match="another writer"):
        second.commit(theirs, {})


def test_two_drivers_of_one_plan_share_what_they_write(url: str) -> None:
    first, second = create(url), create(url)
    digests = fill(first)
    first.commit(digests, {})
    fill(second)
    with pytest.raises(CheckpointExistsError, match="another writer"):
        second.commit(digests, {})
    assert not any(damage(CheckpointReader(url), name) for name in VALUES)


def test_digests_on_storage_tell_what_reads_back(url: str) -> None:
    writer = create(url)
    digests = fill(writer)
    shard = writer.shards(HEADS.name)[0]
    assert writer.digests_on_storage(HEADS.name, shard) == digests[HEADS.name]["c.0.0.0"]
    path = data(url) / HEADS.name / "c.0.0.0"
    path.write_bytes(b"\1" + path.read_bytes()[1:])
    assert writer.digests_on_storage(HEADS.name, shard) != digests[HEADS.name]["c.0.0.0"]
    path.write_bytes(b"short")
    assert writer.digests_on_storage(HEADS.name, shard) == b""


def test_files_are_carried_along_and_checked(url: str) -> None:
    writer = create(url)
    (data(url) / "tokenizer").mkdir()
    (data(url) / "tokenizer/tokenizer.json.0.partial").write_bytes(b"{")  # of a writer that was killed
    writer.storage.write(f"{writer.folder}/tokenizer/tokenizer.json", [b"{}"])
    writer.commit(fill(writer), {})
    reader = CheckpointReader(url)
    assert reader.file("tokenizer/tokenizer.json") == b"{}"
    (data(url) / "tokenizer/tokenizer.json").write_text("[]")
    with pytest.raises(CheckpointError, match=r"tokenizer\.json was changed"):
        reader.file("tokenizer/tokenizer.json")


def test_an_unknown_parameter(committed: str) -> None:
    other = Parameter(name="model.k.weight", axes=("embed",), sizes=(12,), dims=(1,))
    with pytest.raises(SourceError, match=r"no parameter model\.k\.weight"):
        CheckpointReader(committed).read(other, ((0, 12),))
    with pytest.raises(SourceError, match="no axis 'mlp', only embed"):
        CheckpointReader(committed).read_slice(NORM.name, "mlp", 0, 2)


@pytest.mark.parametrize("torn", [b"", b'{"step": "step-1", "res', b"\0" * 40, b"[]", b'{"digest": 1}'])
def test_a_torn_record_is_none(url: str, torn: bytes) -> None:
    writer = create(url)
    writer.record("step-1", {"energy": 0.1})
    writer.record("step-2", {"energy": 0.2})
    assert writer.record_of("step-1") == {"energy": 0.1}
    first, second = (data(url) / "_steps" / f"step-{i}.json" for i in (1, 2))
    second.write_bytes(first.read_bytes())
    assert writer.record_of("step-2") is None
    first.write_text(first.read_text().replace("0.1", "0.3"))
    assert writer.record_of("step-1") is None
    first.write_bytes(torn)
    assert writer.record_of("step-1") is None


def test_a_torn_layout_is_written_again(url: str) -> None:
    create(url)
    path = data(url) / "_layout.json"
    whole = path.read_bytes()
    path.write_bytes(whole[:50])
    create(url)
    assert path.read_bytes() == whole


def test_what_a_killed_writer_left_on_its_way_does_not_take_the_target(url: str) -> None:
    Path(url).mkdir()
    Path(url, "zarr.json.0.partial").write_bytes(b"{")
    create(url)


def test_plain_zarr_finds_nothing_before_the_commit(url: str) -> None:
    writer = create(url)
    digests = fill(writer)
    assert [*Path(url).rglob("zarr.json")] == [Path(url, "zarr.json")]
    writer.commit(digests, {})
    assert len([*Path(url).rglob("zarr.json")]) == 2 + len(STORED)


def test_a_commit_removes_another_plans_work_only_if_it_may_replace_it(url: str) -> None:
    first, second = create(url), create(url, plan="another", overwrite=True)
    digests = fill(second)
    first.commit(fill(first), {})
    second.commit(digests, {}, overwrite=True)
    assert CheckpointReader(url).manifest.data == "data/another"
    assert not any(damage(CheckpointReader(url), name) for name in VALUES)
    assert [p.name for p in Path(url, "data").iterdir()] == ["another"]


def test_a_commit_whose_files_another_has_removed_is_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    create(url, plan="another").commit(fill(create(url, plan="another")), {})
    writer = create(url, overwrite=True)
    digests = fill(writer)
    monkeypatch.setattr(CheckpointWriter, "_write_metadata", lambda self: shutil.rmtree(data(url)))
    with pytest.raises(CheckpointError, match="its folder was removed meanwhile"):
        writer.commit(digests, {}, overwrite=True)


def test_a_folder_that_vanishes_under_a_writer_is_an_error(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = create(url)
    replace = os.replace

    def late(a: str, b: str) -> None:
        shutil.rmtree(data(url))
        replace(a, b)

    monkeypatch.setattr(os, "replace", late)
    with pytest.raises(CheckpointError, match="its folder was removed meanwhile"):
        writer.record("step-1", {})


@given(
    shard=st.tuples(st.sampled_from([2, 4]), st.sampled_from([2, 6]), st.sampled_from([2, 10])),
    chunk=st.tuples(st.sampled_from([1, 2]), st.sampled_from([1, 2]), st.sampled_from([1, 2])),
    ends=st.tuples(st.integers(0, 240), st.integers(0, 240)).filter(lambda ends: ends[0] != ends[1]),
)
@examples(25)
def test_a_flat_range_reads_the_chunks_that_it_meets_once(
    shard: tuple[int, int, int], chunk: tuple[int, int, int], ends: tuple[int, int]
) -> None:
    parameter = Parameter(name="w", axes=("kv_heads", "head_dim", "embed"), sizes=(4, 6, 10), dims=(2, 1))
    stored = StoredParameter(parameter=parameter, dtype="float32", shard=shard, chunk=chunk)
    start, stop = sorted(ends)
    values = torch.arange(240.0).reshape(4, 6, 10)
    with TemporaryDirectory() as folder:
        writer = CheckpointWriter.create(f"{folder}/s", [stored], config={}, attempt="a")
        pieces = {stored.shard_key(box): (box, values[tuple(slice(*r) for r in box)]) for box in writer.shards("w")}
        writer.commit({"w": {key: writer.write("w", box, piece) for key, (box, piece) in pieces.items()}}, {})
        reader = CheckpointReader(f"{folder}/s")
        read, original = [0], reader.storage.read_into

        def counted(requests: Any) -> None:
            read[0] += sum(request.nbytes for request in requests)
            original(requests)

        reader.storage.read_into = counted  # type: ignore[method-assign]
        assert torch.equal(reader.read_flat("w", start, stop), values.reshape(-1)[start:stop])
    met = torch.zeros(4, 6, 10, dtype=torch.bool)
    met.view(-1)[start:stop] = True
    needed = sum(bool(met[tuple(slice(*r) for r in box)].any()) for box in stored.chunks())
    assert read[0] == needed * (stored.chunk_bytes + 4)
