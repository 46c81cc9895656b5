"""The metadata of a GGUF file about its model, beside how it computes: name, licence, languages, how to generate.

Keys: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from bot_dist.formats.beside import GENERATION
from bot_dist.formats.gguf.header import read_gguf_header
from bot_dist.formats.gguf.read import TOKENS
from bot_dist.formats.gguf.tokenizer import PRE

if TYPE_CHECKING:
    from gguf import GGUFWriter

ABOUT = "gguf.json"
"""Name of the file, among those that a store carries along, that holds this metadata."""

_OF_THE_FILE = re.compile(
    r"general\.(architecture|type|alignment|file_type|quantization_version|quantized_by|size_label|uuid|parameter_count)"
)
"""Keys that describe the file and not its model; another file has others."""

_STOPS = tuple(f"tokenizer.ggml.{kind}_token_id" for kind in ("eos", "eot", "eom"))
_SAMPLING = {
    "general.sampling.temp": "temperature",
    "general.sampling.top_k": "top_k",
    "general.sampling.top_p": "top_p",
    "general.sampling.min_p": "min_p",
    "general.sampling.penalty_repeat": "repetition_penalty",
}
"""Keys of settings of generation, with the names that transformers has for them."""


_CARD = {
    "general.name": "model_name",
    "general.author": "author",
    "general.organization": "organization",
    "general.license": "license",
    "general.license.name": "license_name",
    "general.license.link": "license_link",
    "general.languages": "language",
    "general.tags": "tags",
}
"""Keys about a model, with the names that a model card has for them."""
_HUB = "https://huggingface.co/"
MOST_BASES = 16


def read_about(url: str) -> dict[str, bytes]:
    """The files that go along with a ``.gguf`` file: its metadata about the model, and how to generate."""
    header = read_gguf_header(url)
    said = {**header.scalars, **header.lists}
    about = {key: value for key, value in said.items() if key.startswith("general.") and not _OF_THE_FILE.match(key)}
    if isinstance(said.get(PRE), str):
        about[PRE] = said[PRE]
    n_tokens = header.lengths.get(TOKENS, 2**31)
    about |= {key: i for key in _STOPS if type(i := said.get(key)) is int and 0 <= i < n_tokens}
    files = {ABOUT: json.dumps(about, indent=1).encode()}
    if generation := _generation({**said, **dict.fromkeys(_STOPS), **about}):
        files[GENERATION] = (json.dumps(generation, indent=2) + "\n").encode()
    return files


def _generation(said: Mapping[str, Any]) -> dict[str, Any]:
    ids = {
        "bos_token_id": said.get("tokenizer.ggml.bos_token_id"),
        "pad_token_id": said.get("tokenizer.ggml.padding_token_id"),
    }
    stops = list(dict.fromkeys(said[key] for key in _STOPS if said[key] is not None))
    sampling = {name: said[key] for key, name in _SAMPLING.items() if key in said}
    made = {key: value for key, value in ids.items() if value is not None} | sampling
    if stops:
        made["eos_token_id"] = stops if len(stops) > 1 else stops[0]
    return {**made, "do_sample": True} if sampling else made


def card_fields(about: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata about a model as the front matter of a model card."""
    said = {name: about[key] for key, name in _CARD.items() if key in about}
    urls = [about.get(f"general.base_model.{i}.repo_url") for i in range(MOST_BASES)]
    bases = [url.removeprefix(_HUB) for url in urls if isinstance(url, str) and url.startswith(_HUB)]
    return {**said, "base_model": bases} if bases else said


def add_model(
    writer: GGUFWriter,
    *,
    about: Mapping[str, Any] | None,
    fields: Mapping[str, Any],
    generation: Mapping[str, Any],
    name: str,
    n_parameters: int,
) -> None:
    """Say what the model is: as the GGUF file that it comes from did (``about``); of another source, what its model
    card says (``fields``) and how it generates. ``name``: of a model that has none."""
    import gguf

    label = gguf.size_label(n_parameters, n_parameters, 0, 0)
    if about is not None:
        said = {"general.name": name, **about}
        for key, value in said.items():
            _add(writer, key, value)
        writer.add_size_label(label)
        return
    metadata = gguf.Metadata.apply_metadata_heuristic(gguf.Metadata(), dict(fields))
    metadata.name, metadata.size_label = metadata.name or name, label
    metadata.set_gguf_meta_model(writer)
    for key, setting in _SAMPLING.items():
        if isinstance(value := generation.get(setting), int | float):
            _add(writer, key, int(value) if key == "general.sampling.top_k" else float(value))


def _add(writer: GGUFWriter, key: str, value: Any) -> None:
    if not key.startswith("general."):
        return
    match value:
        case bool():
            writer.add_bool(key, value)
        case int() if 0 <= value < 2**32:
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case [str(), *_]:
            writer.add_array(key, value)


def add_stops(
    writer: GGUFWriter, about: Mapping[str, Any], generation: Mapping[str, Any], eos: int | None, vocab_size: int
) -> list[int]:
    """Name the tokens besides ``eos`` that end a text; those for which GGUF has no key."""
    if said := {key: about[key] for key in _STOPS[1:] if key in about}:
        for key, value in said.items():
            writer.add_uint32(key, value)
        return []
    stops = generation.get("eos_token_id")
    ids = [i for i in (stops if isinstance(stops, list) else [stops]) if type(i) is int and 0 <= i < vocab_size]
    others = [i for i in dict.fromkeys(ids) if i != eos]
    for key, value in zip(_STOPS[1:], others, strict=False):
        writer.add_uint32(key, value)
    return others[len(_STOPS) - 1 :]
