"""A store gives what was committed, or one error."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
import zarr

from bot_dist.axes import Parameter
from bot_dist.checkpoint import CheckpointReader, CheckpointWriter, StoredParameter, store_layout
from bot_dist.errors import CheckpointError, CheckpointExistsError, SourceError

HEADS = Parameter(name="model.q.weight", axes=("kv_heads", "head_dim", "embed"), sizes=(5, 8, 12), dims=(2, 1))
NORM = Parameter(name="model.norm.weight", axes=("embed",), sizes=(12,), dims=(1,))
STORED = [StoredParameter(parameter=HEADS, dtype="bfloat16", shard=(2, 8, 12), chunk=(1, 4, 12)), store_layout(NORM)]
VALUES = {
    HEADS.name: torch.arange(480).reshape(5, 8, 12).to(torch.bfloat16),
    NORM.name: torch.linspace(-1, 1, 12),
}


def create(url: str, plan: str = "plan", overwrite: bool = False) -> CheckpointWriter:
    return CheckpointWriter.create(url, STORED, config={}, plan_digest=plan, overwrite=overwrite)


def fill(writer: CheckpointWriter) -> dict[str, dict[str, str]]:
    digests: dict[str, dict[str, str]] = {}
    for name, values in VALUES.items():
        for shard in writer.shards(name):
            piece = values[tuple(slice(*r) for r in shard)]
            digests.setdefault(name, {}).update(writer.write(name, shard, piece))
    return digests


@pytest.fixture
def url(tmp_path: Path) -> str:
    return str(tmp_path / "store")


@pytest.fixture
def committed(url: str) -> str:
    writer = create(url)
    writer.commit(fill(CheckpointWriter.open(url)), {"made": "by a test"})
    return url


@pytest.mark.parametrize("where", ["{tmp}/store", "file://{tmp}/store", "memory://test-store"])
def test_reads_back_any_box(where: str, tmp_path: Path) -> None:
    url = where.format(tmp=tmp_path)
    create(url, overwrite=where.startswith("memory")).commit(fill(CheckpointWriter.open(url)), {})
    reader = CheckpointReader(url)
    assert torch.equal(reader.read(HEADS, ((1, 4), (3, 8), (5, 7))), VALUES[HEADS.name][1:4, 3:8, 5:7])
    assert torch.equal(reader.read(NORM, ((0, 12),)), VALUES[NORM.name])
    assert reader.dtype(HEADS) == torch.bfloat16
    assert not any(any(reader.verify(name)) for name in VALUES)


def test_plain_zarr_opens_it(committed: str) -> None:
    array = zarr.open_group(committed, mode="r")[HEADS.name]
    assert isinstance(array, zarr.Array)
    assert array.metadata.dimension_names == ("kv_heads", "head_dim", "embed")
    assert array.attrs["shape"] == [40, 12]
    assert array.attrs["logical_dtype"] == "bfloat16"
    values = torch.from_numpy(array[:]).view(torch.bfloat16)
    assert torch.equal(values, VALUES[HEADS.name])


def test_uncommitted_is_refused(url: str) -> None:
    fill(create(url))
    with pytest.raises(CheckpointError, match=r"no manifest\.json.*run the same command again"):
        CheckpointReader(url)


def test_nothing_there(url: str) -> None:
    with pytest.raises(CheckpointError, match="no such store"):
        CheckpointReader(url)


def test_commit_refuses_missing_chunks(url: str) -> None:
    writer = create(url)
    digests = fill(writer)
    del digests[HEADS.name]["4.1.0"]
    with pytest.raises(CheckpointError, match=r"1 chunks of model\.q\.weight were not written .*4\.1\.0"):
        writer.commit(digests, {})
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        CheckpointReader(url)


@pytest.mark.parametrize("offset", range(0, 700, 97))
def test_a_flipped_bit_is_found(committed: str, offset: int) -> None:
    shard = Path(committed, HEADS.name, "c/1/0/0")
    data = bytearray(shard.read_bytes())
    data[offset % len(data)] ^= 1
    shard.write_bytes(data)
    reader = CheckpointReader(committed)
    assert [d for d in reader.verify(HEADS.name) if d]
    with pytest.raises(CheckpointError, match=r"model\.q\.weight"):
        reader.read(HEADS, ((0, 5), (0, 8), (0, 12)))


def test_a_missing_shard_is_found(committed: str) -> None:
    Path(committed, HEADS.name, "c/2/0/0").unlink()
    reader = CheckpointReader(committed)
    found = [str(d) for d in reader.verify(HEADS.name) if d]
    assert found == [f"model.q.weight, chunk 4.{i}.0: shard c/2/0/0 is missing" for i in (0, 1)]
    with pytest.raises(CheckpointError, match=r"chunk 4\.0\.0 is missing or damaged"):
        reader.read(HEADS, ((4, 5), (0, 1), (0, 1)))
    assert torch.equal(reader.read(HEADS, ((0, 4), (0, 8), (0, 12))), VALUES[HEADS.name][:4])


def test_swapped_shards_are_found(committed: str) -> None:
    a, b = (Path(committed, HEADS.name, f"c/{i}/0/0") for i in (0, 1))
    data = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(data)
    assert len([d for d in CheckpointReader(committed).verify(HEADS.name) if d]) == 8


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


def test_a_committed_store_is_not_overwritten_unasked(committed: str) -> None:
    with pytest.raises(CheckpointExistsError, match="--overwrite"):
        create(committed)
    create(committed, overwrite=True)
    with pytest.raises(CheckpointError, match=r"no manifest\.json"):
        CheckpointReader(committed)


def test_an_unfinished_store_of_the_same_plan_is_taken_up(url: str) -> None:
    writer = create(url)
    writer.record("step-1", {"a": 1})
    again = create(url)
    assert again.recorded() == {"step-1"}
    assert again.record_of("step-1") == {"a": 1}
    with pytest.raises(CheckpointExistsError, match="no unfinished transfer of this plan"):
        create(url, plan="another")
    assert create(url, plan="another", overwrite=True).recorded() == set()


def test_an_interrupted_creation_starts_over(url: str) -> None:
    create(url)
    Path(url, "_layout.json").unlink()
    assert create(url).shards(NORM.name) == [((0, 12),)]


def test_a_foreign_folder_is_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("three years")
    for overwrite in (False, True):
        with pytest.raises(CheckpointExistsError):
            create(str(tmp_path), overwrite=overwrite)
    assert (tmp_path / "thesis.txt").read_text() == "three years"


def test_two_committers_one_wins(url: str) -> None:
    first, second = create(url), create(url)
    digests = fill(first)
    first.commit(digests, {})
    with pytest.raises(CheckpointExistsError, match="another writer"):
        second.commit(digests, {})


def test_digests_on_storage_tell_what_reads_back(url: str) -> None:
    writer = create(url)
    digests = fill(writer)
    shard = writer.shards(HEADS.name)[0]
    mine = {key: digests[HEADS.name][key] for key in ("0.0.0", "0.1.0", "1.0.0", "1.1.0")}
    assert writer.digests_on_storage(HEADS.name, shard) == mine
    Path(url, HEADS.name, "c/0/0/0").write_bytes(b"short")
    assert writer.digests_on_storage(HEADS.name, shard) != mine


def test_an_unknown_parameter(committed: str) -> None:
    other = Parameter(name="model.k.weight", axes=("embed",), sizes=(12,), dims=(1,))
    with pytest.raises(SourceError, match=r"no parameter model\.k\.weight"):
        CheckpointReader(committed).read(other, ((0, 12),))
