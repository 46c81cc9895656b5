"""What can happen to a store, or to an unfinished one, on its storage."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import xxhash

Damage = Callable[[Path, random.Random], None]


def shards(store: Path) -> list[Path]:
    return sorted(path for path in store.glob("data/**/c.*") if path.is_file())


def flip(store: Path, draw: random.Random) -> None:
    """One bit of one shard: of a chunk, its crc, or the index."""
    flip_bit(draw.choice(shards(store)), draw)


def truncate(store: Path, draw: random.Random) -> None:
    path = draw.choice(shards(store))
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def delete(store: Path, draw: random.Random) -> None:
    draw.choice(shards(store)).unlink()


def swap(store: Path, draw: random.Random) -> None:
    """Two shards, of the same parameter or of two, that hold different bytes."""
    one = draw.choice(shards(store))
    others = [path for path in shards(store) if path.read_bytes() != one.read_bytes()]
    alike = [path for path in others if path.stat().st_size == one.stat().st_size]
    other = draw.choice(alike if alike and draw.random() < 0.7 else others)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def flip_manifest(store: Path, draw: random.Random) -> None:
    flip_bit(store / "manifest.json", draw)


def truncate_manifest(store: Path, draw: random.Random) -> None:
    path = store / "manifest.json"
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def edit_manifest(store: Path, draw: random.Random) -> None:
    """A value of it, without its digest."""
    body = json.loads((store / "manifest.json").read_text())
    _forge(body, draw)
    (store / "manifest.json").write_text(json.dumps(body))


def forge_manifest(store: Path, draw: random.Random) -> None:
    """A chunk's digest or a layout, and the manifest's digest made right again."""
    body = json.loads((store / "manifest.json").read_text())
    _forge(body, draw)
    del body["digest"]
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    body["digest"] = xxhash.xxh3_128_hexdigest(canonical)
    (store / "manifest.json").write_text(json.dumps(body))


def _forge(body: dict[str, Any], draw: random.Random) -> None:
    entry = body["parameters"][draw.choice(sorted(body["parameters"]))]
    before = json.dumps(body)
    while json.dumps(body) == before:
        match draw.choice(["digest", "dtype", "shard", "sizes", "axes", "other", "factor"]):
            case "digest":
                digits = [*entry["digests"]]
                i = draw.randrange(len(digits))
                digits[i] = draw.choice("0123456789abcdef")
                entry["digests"] = "".join(digits)
            case "dtype":
                entry["dtype"] = draw.choice(["float32", "bfloat16", "float16", "float64", "int8"])
            case "shard":
                i = draw.randrange(len(entry["shard"]))
                entry[draw.choice(["shard", "chunk"])][i] *= 2
            case "sizes":
                entry["sizes"][draw.randrange(len(entry["sizes"]))] += draw.choice([-1, 1])
            case "axes":
                for key in ("axes", "sizes", "shard", "chunk"):
                    entry[key].reverse()
            case "other":
                other = draw.choice(sorted(body["parameters"]))
                entry.update(body["parameters"][other])
            case "factor":
                entry["learning_rate_factor"] *= 2


def metadata(store: Path, draw: random.Random) -> None:
    """What plain zarr goes by: a bit of a ``zarr.json``."""
    flip_bit(draw.choice(sorted(store.glob("data/**/zarr.json"))), draw)


def carried(store: Path, draw: random.Random) -> None:
    """A file that is carried along."""
    flip_bit(draw.choice(sorted(store.glob("data/*/tokenizer/*"))), draw)


def lose_attempt(store: Path, draw: random.Random) -> None:
    """The folder that the manifest names."""
    shutil.rmtree(next(iter(store.glob("data/*"))))


def lose_manifest(store: Path, draw: random.Random) -> None:
    (store / "manifest.json").unlink()


FORGED = "an edited manifest, its digest made right"

COMMITTED: dict[str, Damage] = {
    "a flipped bit in a shard": flip,
    "a truncated shard": truncate,
    "a deleted shard": delete,
    "two shards swapped": swap,
    "a flipped bit in the manifest": flip_manifest,
    "a truncated manifest": truncate_manifest,
    "an edited manifest": edit_manifest,
    FORGED: forge_manifest,
    "a flipped bit in zarr's metadata": metadata,
    "a flipped bit in a tokenizer's file": carried,
    "the data folder deleted": lose_attempt,
    "the manifest deleted": lose_manifest,
}


def flip_record(store: Path, draw: random.Random) -> None:
    flip_bit(draw.choice(_records(store)), draw)


def truncate_record(store: Path, draw: random.Random) -> None:
    path = draw.choice(_records(store))
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


def swap_records(store: Path, draw: random.Random) -> None:
    one, other = draw.sample(_records(store), 2)
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


def layout(store: Path, draw: random.Random) -> None:
    (path,) = store.glob("data/*/_layout.json")
    path.write_bytes(path.read_bytes()[: draw.randrange(path.stat().st_size)])


UNFINISHED: dict[str, Damage] = {
    "a flipped bit in a shard": flip,
    "a truncated shard": truncate,
    "a deleted shard": delete,
    "two shards swapped": swap,
    "a flipped bit in a record": flip_record,
    "a truncated record": truncate_record,
    "two records swapped": swap_records,
    "a truncated layout": layout,
}


def _records(store: Path) -> list[Path]:
    return sorted(store.glob("data/*/_steps/*.json"))


def flip_bit(path: Path, draw: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    path.write_bytes(data)
