"""Reading safetensors: the index of a file, or of a folder of shards, from headers alone.

Format: https://github.com/huggingface/safetensors#format. Files come from strangers, so every length, offset and name
in them is checked here before anything is read by it.
"""

from __future__ import annotations

import hashlib
import math
import re
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from bot_dist.errors import SourceError
from bot_dist.formats.indexed import FileSource, TensorEntry
from bot_dist.formats.sources import SourceFormat
from bot_dist.formats.ties import resolve_ties
from bot_dist.model import Family, family_of
from bot_dist.parsing import parse_object
from bot_dist.storage.files import (
    broken_link,
    existing_bytes,
    join,
    list_names,
    missing,
    read_file,
    read_range,
    size_bytes,
    version,
)
from bot_dist.storage.package_urls import near_names, safe_relative
from bot_dist.urls import label

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
ADAPTER = "adapter_config.json"
_SHARD = re.compile(r"model-(\d{5})-of-(\d{5})\.safetensors")
_MOST_SHARDS = 10_000
MAX_HEADER_BYTES = 100_000_000
"""The reference implementation's limit."""
MOST_DIMENSIONS = 8
PICKLES = (".bin", ".pt", ".pth", ".ckpt")

_ITEM_BYTES = {
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0"), 1),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 2),
    **dict.fromkeys(("U32", "I32", "F32"), 4),
    **dict.fromkeys(("U64", "I64", "F64"), 8),
}


def open_safetensors(url: str) -> FileSource:
    """A folder with ``config.json`` and ``model.safetensors`` or indexed shards; or one file beside ``config.json``.

    Raises SourceError when something is missing, damaged or pickle; FamilyError on an unknown architecture.
    """
    single = url.endswith(".safetensors")
    folder = (url.rpartition("/")[0] or ".") if single else url
    config = read_config(folder, url)
    family = family_of(config)
    if not single:
        _refuse_adapter(folder)
    weight_map: dict[str, str] = {}
    if single:
        names = [url.rpartition("/")[2]]
    elif size_bytes(join(folder, SINGLE)) is not None:
        names = [SINGLE]
    elif size_bytes(join(folder, INDEX)) is not None:
        weight_map = _read_index(join(folder, INDEX))
        names = sorted(set(weight_map.values()))
    else:
        names = _shards_without_index(folder)
    with ThreadPoolExecutor(max_workers=8) as pool:
        headers = dict(zip(names, pool.map(read_header, (join(folder, name) for name in names)), strict=True))
    for tensor, name in weight_map.items():
        if tensor not in headers[name][0]:
            raise SourceError(f"{label(join(folder, INDEX))}: tensor '{tensor}' is not in '{name}', where it should be")
    opened = FileSource(
        url=url,
        format="safetensors",
        config=config,
        entries={_renamed(name, family): entry for name, entry in _merge(folder, headers).items()},
        files={name: identity for name, (_, identity) in headers.items()},
        optional_prefix=family.optional_prefix,
    )
    return resolve_ties(opened)


def read_header(url: str) -> tuple[dict[str, TensorEntry], dict[str, Any]]:
    """Index of one file, and its identity (``bytes``, ``header_sha256``, ``version``).

    Raises SourceError unless header and tensors fill the file exactly, without overlap.
    """
    size = existing_bytes(url)
    if size < 8:
        raise SourceError(f"{label(url)}: found {size} bytes, wanted at least 8; this is no safetensors file")
    head = read_range(url, 0, min(size, 2**20), "header")
    length = int.from_bytes(head[:8], "little")
    if not 2 <= length <= MAX_HEADER_BYTES:
        raise SourceError(
            f"{label(url)}: header length is {length}, wanted 2 to {MAX_HEADER_BYTES}; this is no safetensors file"
        )
    if 8 + length > size:
        raise _wrong_size(url, size, 8 + length)
    if 8 + length > len(head):
        head += read_range(url, len(head), 8 + length, "header")
    header = head[8 : 8 + length]
    entries = _entries(url, parse_object(header, f"{label(url)}: safetensors header"), 8 + length)
    _check_layout(url, entries, 8 + length, size)
    return entries, {"bytes": size, "header_sha256": hashlib.sha256(header).hexdigest(), "version": version(url)}


def _entries(url: str, header: dict[str, Any], data_offset: int) -> dict[str, TensorEntry]:
    entries = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        match info:
            case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [int(start), int(stop)]} if (
                all(type(n) is int and 0 <= n < 2**63 for n in (*shape, start, stop)) and len(shape) <= MOST_DIMENSIONS
            ):
                pass
            case _:
                raise SourceError(
                    f"{label(url)}: header entry of tensor '{name}' is {info}, wanted dtype, shape, data_offsets"
                )
        if dtype not in _ITEM_BYTES:
            raise SourceError(
                f"{label(url)}: tensor '{name}' has unknown dtype {dtype}; known: {', '.join(_ITEM_BYTES)}"
            )
        wanted = math.prod(shape) * _ITEM_BYTES[dtype]
        if stop - start != wanted:
            raise SourceError(
                f"{label(url)}: tensor '{name}' has data_offsets [{start}, {stop}] ({stop - start} bytes), "
                f"wanted {wanted} bytes for shape {tuple(shape)} of {dtype}; the file is damaged, get it again"
            )
        entries[name] = TensorEntry(url, data_offset + start, wanted, tuple(shape), dtype)
    return entries


def _check_layout(url: str, entries: dict[str, TensorEntry], data_offset: int, size: int) -> None:
    at = data_offset
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != at:
            raise SourceError(
                f"{label(url)}: tensor '{name}' begins at byte {entry.offset}, wanted {at}, where the one before ends; "
                f"the file is damaged, get it again"
            )
        at += entry.nbytes
    if at != size:
        raise _wrong_size(url, size, at)


def _wrong_size(url: str, nbytes: int, wanted: int) -> SourceError:
    how = "is truncated" if nbytes < wanted else "has bytes that no tensor accounts for"
    return SourceError(f"{label(url)}: {how}: found {nbytes} bytes, wanted {wanted}; download it again")


def _merge(folder: str, headers: dict[str, tuple[dict[str, TensorEntry], dict[str, Any]]]) -> dict[str, TensorEntry]:
    merged: dict[str, TensorEntry] = {}
    for name, (entries, _) in headers.items():
        twice = merged.keys() & entries.keys()
        if twice:
            other = merged[min(twice)].url.rpartition("/")[2]
            raise SourceError(f"{label(folder)}: tensor '{min(twice)}' is in both '{other}' and '{name}'")
        merged |= entries
    return merged


def _renamed(name: str, family: Family) -> str:
    for old, new in family.renamed.items():
        name = re.sub(old, new, name)
    return name


def _read_index(url: str) -> dict[str, str]:
    weight_map = parse_object(read_file(url), f"{label(url)}: index").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{label(url)}: no 'weight_map' of tensors to files")
    for tensor, name in weight_map.items():
        if not isinstance(name, str) or not safe_relative(name) or not name.endswith(".safetensors"):
            raise SourceError(
                f"{label(url)}: tensor '{tensor}' is said to be in {name!r}, "
                f"wanted a .safetensors file inside the folder"
            )
    return weight_map


def read_config(folder: str, url: str) -> dict[str, Any]:
    """``config.json`` of the folder; without one, an error that says what is at ``url`` instead."""
    path = join(folder, "config.json")
    if size_bytes(path) is not None:
        return parse_object(read_file(path), f"{label(path)}: configuration")
    if size_bytes(url) is None and list_names(url) is None:
        raise missing(url)
    near = near_names("config.json", list_names(folder) or ())
    raise SourceError(
        f"{label(folder)}: no config.json{near}; wanted a folder that has one beside safetensors, a .gguf file, or a "
        f"bot_dist store"
    )


def _shards_without_index(folder: str) -> list[str]:
    """All shards of a checkpoint, by their names alone. Raises SourceError where there are none, or not all."""
    names = list_names(folder) or []
    shards = [match for name in names if (match := _SHARD.fullmatch(name))]
    if not shards:
        raise _no_weights(folder, names)
    n = int(shards[0][2])
    wanted = {f"model-{i:05}-of-{n:05}.safetensors" for i in range(1, min(n, _MOST_SHARDS) + 1)}
    if absent := sorted(wanted.symmetric_difference(match[0] for match in shards)):
        raise SourceError(
            f"{label(folder)}: no {INDEX}, and its shards are not those of one checkpoint: {absent[0]} is "
            f"{'missing' if absent[0] in wanted else 'of another'}; download it again, the index too"
        )
    return sorted(wanted)


def _refuse_adapter(folder: str) -> None:
    """Raise SourceError where a folder holds an adapter, without which the base weights are another model."""
    if size_bytes(join(folder, ADAPTER)) is None:
        return
    raise SourceError(
        f"{label(folder)}: {ADAPTER} says that this is an adapter, which changes what base weights compute; merge it "
        f"first (in peft: AutoPeftModelForCausalLM.from_pretrained(folder).merge_and_unload().save_pretrained(new)), "
        f"or give the path of the base weights' own file"
    )


def _no_weights(folder: str, names: list[str]) -> SourceError:
    if (target := broken_link(join(folder, SINGLE))) is not None:
        return SourceError(
            f"{label(folder)}: {SINGLE} is a link to {target}, which is not there; download the model again, "
            f"or copy it with the files that its links name"
        )
    others = [name for name in names if name.endswith(".safetensors")]
    if others:
        return SourceError(
            f"{label(folder)}: neither {SINGLE} nor {INDEX}, but {', '.join(others[:5])}; if one of them is the whole "
            f"model, give its path"
        )
    pickles = [name for name in names if name.endswith(PICKLES)]
    if pickles:
        return SourceError(
            f"{label(folder)}: only {', '.join(pickles[:3])}, which is pickle and could run code, so it is not read; "
            f"if you trust it, convert it: AutoModelForCausalLM.from_pretrained(folder).save_pretrained(new_folder)"
        )
    return SourceError(f"{label(folder)}: neither {SINGLE} nor {INDEX}{near_names(SINGLE, names)}")


SOURCE = SourceFormat(open=open_safetensors, ends=(".safetensors",))
