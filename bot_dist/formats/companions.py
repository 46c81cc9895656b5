"""The files that go along with a source's weights: into a store unchanged, into an export as its model needs them."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from bot_dist.formats.beside import CARD, GENERATION, MODULES, beside, kind_of, read_modules, stored
from bot_dist.formats.gguf.about import ABOUT, read_about
from bot_dist.formats.processor import PROCESSOR, image_processor
from bot_dist.formats.tokenizer import tokenizer_files
from bot_dist.model import Model
from bot_dist.parsing import parse_object
from bot_dist.storage.files import join, write_file
from bot_dist.storage.package_urls import resolve
from bot_dist.urls import label

TOKENIZER_CONFIG = "tokenizer_config.json"
_ONLY_5 = ("backend", "is_local", "local_files_only")
"""Fields by which transformers 5 records how a tokenizer was loaded."""

_WITHOUT_WEIGHTS = ("Transformer", "Pooling", "Normalize", "Dropout")
"""Modules of sentence-transformers that are their configuration."""
_WIDTHS = ("word_embedding_dimension", "embedding_dimension", "in_features")
_MOST_NAMED = 8


@dataclass(frozen=True)
class Companions:
    """The files that go along with a source's weights."""

    url: str
    files: Mapping[str, bytes] = field(repr=False)
    """Content of each file, by its path in a model folder."""
    left_out: Mapping[str, str] = field(default_factory=dict)
    """Reason for each file that does not go along, by its path in a model folder."""

    @property
    def tokenizer(self) -> bool:
        return any(kind_of(name) == "tokenizer" for name in self.files)

    @property
    def notes(self) -> tuple[str, ...]:
        """One note that names the files that do not go along; none where all do."""
        if not self.left_out:
            return ()
        named = [f"{name} ({why})" if why else name for name, why in self.left_out.items()]
        more = f" and {len(named) - _MOST_NAMED} more" if len(named) > _MOST_NAMED else ""
        return (f"not carried along from {label(self.url)}: {', '.join(named[:_MOST_NAMED])}{more}",)

    def json(self, name: str) -> dict[str, Any] | None:
        """The content of a JSON file among the files; None where there is no such file."""
        return _object(self.files[name], self.url, name) if name in self.files else None

    def with_tokenizer(self, url: str) -> Companions:
        """The same with the tokenizer of another place."""
        files = {name: data for name, data in self.files.items() if kind_of(name) != "tokenizer"}
        return dataclasses.replace(self, files=files | tokenizer_files(url))

    def save(self, attempt_url: str) -> None:
        """Put the files into what an attempt at a store writes."""
        for name, data in self.files.items():
            write_file(join(attempt_url, stored(name)), data)


def read_companions(url: str) -> Companions:
    """Read the companions of a model folder, of a file in one, of a ``.gguf`` file or of a store. Raises SourceError as
    ``check_companions`` does."""
    check_companions(url)
    held = beside(url)
    files = {name: held.read(name) for name in held.places if kind_of(name) != "tokenizer"}
    if resolve(url).endswith(".gguf"):
        files = read_about(url)
    return Companions(url, files | tokenizer_files(url), held.left_out)


def check_companions(url: str) -> None:
    """Raise SourceError where how to generate, or what comes after the model, is said in a way that nobody reads."""
    held = beside(url)  # which reads the modules
    if GENERATION in held.places:
        _object(held.read(GENERATION), url, GENERATION)


def export_files(companions: Companions, model: Model) -> tuple[dict[str, bytes], list[str]]:
    """The files that an export of ``model`` has beside weights and configuration, and notes for the user.

    A tokenizer is named so that transformers 4 and 5 load it; modules of sentence-transformers get the model's width,
    and those with weights for another are left out; an image model has a processor always.
    """
    files = {name: data for name, data in companions.files.items() if name not in (CARD, ABOUT)}
    if TOKENIZER_CONFIG in files:
        config = _object(files[TOKENIZER_CONFIG], companions.url, TOKENIZER_CONFIG)
        files[TOKENIZER_CONFIG] = _changed(files[TOKENIZER_CONFIG], config, _for_both(config))
    if model.family.objective == "image":
        files[PROCESSOR] = _json(image_processor(companions.url, model.config))
    if GENERATION not in files and model.family.objective == "causal" and (made := generation_config(model.config)):
        files[GENERATION] = _json(made)
    notes: list[str] = []
    if MODULES in files:
        notes = _fit_modules(files, companions.url, model)
    return files, notes


def generation_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of generation that ``transformers`` takes from a model's configuration; empty where it has none."""
    from transformers import GenerationConfig

    said: dict[str, Any] = GenerationConfig.from_model_config(dict(config)).to_diff_dict()
    return said if said.keys() - {"transformers_version", "_from_model_config"} else {}


def _for_both(config: Mapping[str, Any]) -> dict[str, Any]:
    """A tokenizer's configuration that transformers 4 knows, too."""
    made = {key: value for key, value in config.items() if key not in _ONLY_5}
    if made.get("tokenizer_class") == "TokenizersBackend":
        made["tokenizer_class"] = "PreTrainedTokenizerFast"
    if isinstance(made.get("extra_special_tokens"), list):  # a mapping of names in transformers 4
        made["additional_special_tokens"] = made.pop("extra_special_tokens")
    return made


def _fit_modules(files: dict[str, bytes], url: str, model: Model) -> list[str]:
    """Let what comes after the model take its width."""
    width, notes, kept = model.sizes["embed"], [], []
    modules = read_modules(files[MODULES], url)
    for module in modules:
        path, kind = module["path"], module["type"]
        own = [name for name in files if path and name.startswith(f"{path}/")]
        config = _object(files[f"{path}/config.json"], url, f"{path}/config.json") if own else {}
        weighs = any(name.endswith(".safetensors") for name in own)
        takes = {key: config[key] for key in _WIDTHS if config.get(key, width) != width}
        if not kind.startswith("sentence_transformers."):
            why = f"its class {kind} is code"
        elif not weighs and kind.rpartition(".")[2] not in _WITHOUT_WEIGHTS:
            why = "its weights are not carried along"
        elif weighs and takes:
            why = f"its weights take a width of {next(iter(takes.values()))}, and the model's is {width}"
        else:
            if takes:
                name = f"{path}/config.json"
                files[name] = _json({**config, **dict.fromkeys(takes, width)})
            kept.append(module)
            continue
        notes.append(f"sentence-transformers' module {path or kind} is left out: {why}")
        for name in own:
            del files[name]
    if notes:
        files[MODULES] = _json(kept)
    positions = model.sizes.get("position")
    for name in [name for name in files if name.startswith("sentence_") and name.endswith("_config.json")]:
        config = _object(files[name], url, name)
        if positions and isinstance(length := config.get("max_seq_length"), int) and length > positions:
            files[name] = _json({**config, "max_seq_length": positions})
    return notes


def _object(data: bytes, url: str, name: str) -> dict[str, Any]:
    return parse_object(data, f"{label(url)}: {name}")


def _changed(data: bytes, was: Mapping[str, Any], now: Mapping[str, Any]) -> bytes:
    """A file as it is, unless what it says is changed."""
    return data if was == now else _json(now)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
