"""Reading GGUF: names, shapes and configuration of ``transformers`` for a file of llama.cpp."""

from __future__ import annotations

import math
import re
from typing import Any

from bot_dist.errors import FamilyError, MissingPackageError, SourceError, nearest
from bot_dist.formats.gguf.header import Header, TensorInfo, read_gguf_header
from bot_dist.formats.indexed import DTYPES, FileSource, TensorEntry, decode
from bot_dist.model import FAMILIES, Family, Weight
from bot_dist.model.gguf import ROTARY, GgufArchitecture, gguf_name, module_of, rope_of_factors
from bot_dist.storage.files import read_range, version
from bot_dist.urls import label

TOKENS = "tokenizer.ggml.tokens"
ROPE_FACTORS = "rope_freqs.weight"
"""Tensor of the divisors of rotary frequencies: Llama 3.1's scaling, which has no metadata."""
_MOST_FREQUENCIES = 2**12
_TOKEN_IDS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}


def open_gguf(url: str) -> FileSource:
    """A ``.gguf`` file. Quantised tensors read as float32, a row at a time; plain ones keep their dtype.

    Raises SourceError on a damaged file or one that does more than its family expresses, FamilyError on an unknown
    architecture, MissingPackageError without the package ``gguf``.
    """
    sizes = _encodings()
    header = read_gguf_header(url)
    family, architecture = _family(header, url)
    weights = [w for w in (*family.weights, family.head) if w is not None]
    templates = {name: w for w in weights if (name := gguf_name(w)) is not None}
    entries: dict[str, TensorEntry] = {}
    for name, info in header.tensors.items():
        weight, layer = _weight(name, templates)
        hf = weight.hf.format(layer=layer) if weight else name
        permuted = architecture.rotary_permuted and weight is not None and module_of(weight.name) in ROTARY
        if hf in entries:
            raise SourceError(
                f"{label(url)}: tensor '{name}' is '{hf}', and so is another; the file is damaged, get it again"
            )
        entries[hf] = _entry(url, name, info, header, sizes, permuted)
    _check_layout(url, header, entries)
    factors = entries.pop(ROPE_FACTORS, None)
    return FileSource(
        url=url,
        format="gguf",
        config=_config(header, family, architecture, url, factors),
        entries=entries,
        files={url.rpartition("/")[2]: {"bytes": header.size, "header_sha256": header.sha256, "version": version(url)}},
    )


def _encodings() -> dict[int, tuple[str, int, int]]:
    """The name, elements per block and bytes per block of every type id."""
    try:
        from gguf.constants import GGML_QUANT_SIZES
    except ImportError as error:
        raise MissingPackageError("reading .gguf files needs the package 'gguf'; pip install gguf") from error
    return {kind.value: (kind.name, block, nbytes) for kind, (block, nbytes) in GGML_QUANT_SIZES.items()}


def _family(header: Header, url: str) -> tuple[Family, GgufArchitecture]:
    name = str(header.scalars.get("general.architecture"))
    known = {a.name: (family, a) for family in FAMILIES.values() for a in family.gguf.values() if a.config}
    if name not in known:
        raise FamilyError(f"{label(url)}: unknown general.architecture {name!r}; {nearest(name, known)}")
    return known[name]


class _Metadata(dict[str, Any]):
    """Metadata of the architecture, without its prefix; a key that is wanted and not there is an error."""

    def __init__(self, header: Header, architecture: str, url: str) -> None:
        prefix = f"{architecture}."
        super().__init__({k.removeprefix(prefix): v for k, v in header.scalars.items() if k.startswith(prefix)})
        self.url, self.prefix = url, prefix

    def __missing__(self, key: str) -> Any:
        raise SourceError(f"{label(self.url)}: metadata has no single value '{self.prefix}{key}', which is needed")


def _config(
    header: Header, family: Family, architecture: GgufArchitecture, url: str, factors: TensorEntry | None
) -> dict[str, Any]:
    if header.scalars.get("split.count", 1) not in (0, 1):
        raise SourceError(f"{label(url)}: is one of several parts; merge them with llama-gguf-split --merge first")
    metadata = _Metadata(header, architecture.name, url)
    if TOKENS in header.lengths:
        metadata.setdefault("vocab_size", header.lengths[TOKENS])
    assert architecture.config is not None
    try:
        config = architecture.config(metadata)
        rope = _rope(metadata, config, factors)
    except (TypeError, ZeroDivisionError, OverflowError) as error:
        raise SourceError(
            f"{label(url)}: metadata '{metadata.prefix}*' make no model: {error}; get it again"
        ) from error
    return {
        **config,
        **({"rope_parameters": rope} if rope else {}),
        **{key: header.scalars.get(field) for key, field in _TOKEN_IDS.items()},
        "tie_word_embeddings": family.head is not None and gguf_name(family.head) not in header.tensors,
    }


def _rope(metadata: _Metadata, config: dict[str, Any], factors: TensorEntry | None) -> dict[str, Any]:
    """``rope_parameters`` where frequencies are scaled; empty where they are not. Raises FamilyError for a scaling that
    is not read, and where a part of a head turns only."""
    url, kind, theta = label(metadata.url), metadata.get("rope.scaling.type", "none"), config["rope_theta"]
    if (turned := metadata.get("rope.dimension_count", config["head_dim"])) != config["head_dim"]:
        raise FamilyError(
            f"{url}: rope.dimension_count is {turned!r} of {config['head_dim']} in a head, which is not read from "
            f"GGUF; use the safetensors release of this model"
        )
    if kind not in ("none", "linear") or (kind == "linear" and factors is not None):
        raise FamilyError(
            f"{url}: rope.scaling.type is {kind!r}, which is not read from GGUF; use the safetensors release of this "
            f"model"
        )
    if kind == "linear":
        return {"rope_type": "linear", "rope_theta": theta, "factor": metadata["rope.scaling.factor"]}
    if factors is None:
        return {}
    values = _numbers(factors)
    if all(value == 1.0 for value in values):
        return {}
    rope = rope_of_factors(values, theta)
    if rope is None:
        raise FamilyError(
            f"{url}: {ROPE_FACTORS} are not those of a rule that transformers has (Llama 3.1's); use the safetensors "
            f"release of this model"
        )
    return rope


def _numbers(entry: TensorEntry) -> list[float]:
    """A small tensor of plain numbers. Raises SourceError for another."""
    if entry.encoding != "F32" or len(entry.shape) != 1 or not 2 <= entry.shape[0] <= _MOST_FREQUENCIES:
        raise SourceError(
            f"{label(entry.url)}: tensor '{ROPE_FACTORS}' is {entry.encoding} of shape {entry.shape}, wanted one F32 "
            f"per frequency; the file is damaged"
        )
    data = read_range(entry.url, entry.offset, entry.offset + entry.nbytes, f"tensor '{ROPE_FACTORS}'")
    values = [float(value) for value in decode(data, entry, 1)[0]]
    if not all(math.isfinite(value) and value > 0 for value in values):
        raise SourceError(f"{label(entry.url)}: tensor '{ROPE_FACTORS}' holds no positive numbers; the file is damaged")
    return values


def _weight(name: str, templates: dict[str, Weight]) -> tuple[Weight | None, int]:
    """The weight and layer that a tensor's name stands for."""
    match = re.search(r"(?<=\.)\d+(?=\.)", name)
    if match is None:
        return templates.get(name), 0
    return templates.get(f"{name[: match.start()]}{{layer}}{name[match.end() :]}"), int(match[0])


def _entry(
    url: str, name: str, info: TensorInfo, header: Header, encodings: dict[int, tuple[str, int, int]], permuted: bool
) -> TensorEntry:
    if info.type_id not in encodings:
        raise SourceError(
            f"{label(url)}: tensor '{name}' has type {info.type_id}, which the installed package 'gguf' doesn't know; "
            f"pip install --upgrade gguf"
        )
    encoding, block, block_bytes = encodings[info.type_id]
    if block > 1:
        _check_quantisation(url, name, encoding, block_bytes)
    elements = math.prod(info.shape)
    if (info.shape[-1] if info.shape else 1) % block:
        raise SourceError(f"{label(url)}: tensor '{name}' of shape {info.shape} has rows of no whole {encoding} blocks")
    return TensorEntry(
        url=url,
        offset=header.data_offset + info.offset,
        nbytes=elements // block * block_bytes,
        shape=info.shape,
        encoding=encoding,
        block=block if encoding not in DTYPES else 1,
        rotary_permuted=permuted,
    )


def _check_quantisation(url: str, name: str, encoding: str, block_bytes: int) -> None:
    """Dequantise one block of zeros: the package does not do every type."""
    import gguf
    import numpy as np

    try:
        gguf.quants.dequantize(np.zeros((1, block_bytes), np.uint8), gguf.GGMLQuantizationType[encoding])
    except NotImplementedError as error:
        raise SourceError(
            f"{label(url)}: tensor '{name}' is quantised as {encoding}, which the package 'gguf' can't dequantise; "
            f"use another quantisation of this model"
        ) from error


def _check_layout(url: str, header: Header, entries: dict[str, TensorEntry]) -> None:
    """Raise SourceError unless the tensors fill the file, one after the other, as llama.cpp wants them: of a damaged
    header something else would be read in their places."""
    end = header.data_offset
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].offset, item[1].nbytes)):
        if entry.offset != (wanted := header.aligned(end)):
            how = "overlaps the one before it" if entry.offset < end else "is not where the one before it ends"
            raise SourceError(
                f"{label(url)}: tensor '{name}' {how} (byte {entry.offset:,}, wanted {wanted:,}); the file is damaged"
            )
        end = entry.offset + entry.nbytes
    if end > header.size:
        raise SourceError(
            f"{label(url)}: is truncated: found {header.size} bytes, wanted at least {end}; download it again"
        )
    if header.size > header.aligned(end):
        raise SourceError(
            f"{label(url)}: has bytes that no tensor accounts for: found {header.size}, wanted {end}; the file is "
            f"damaged"
        )
