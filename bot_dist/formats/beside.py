"""The files beside a source's weights: those that go along with them, and those that do not.

Listed once, here: what a store is given and what an export is given are the same files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, get_args

from bot_dist.errors import SourceError
from bot_dist.formats.open import is_store
from bot_dist.parsing import parse_json
from bot_dist.storage.files import is_local, join, list_names, read_range, size_bytes
from bot_dist.storage.package_urls import resolve, safe_relative
from bot_dist.store import CheckpointReader
from bot_dist.urls import label

Kind = Literal["tokenizer", "processor", "source"]
"""Kind of a file, and the folder that holds it in a store: files of the tokenizer, of an image processor, and all
others."""

MODULES = "modules.json"
"""File by which sentence-transformers knows what comes after the model: a list of modules, most with a folder."""
GENERATION, CARD = "generation_config.json", "README.md"

MAX_FILE_BYTES, MAX_FILES = 128 * 2**20, 500
"""Largest file, and largest number of files, that go along; the largest tokenizers have 35 MB."""

_RUNS = r"(?!.*\.(py|pyc|so|sh|bin|pt|pth|ckpt|pkl|pickle|h5|msgpack|onnx|ipynb)$)"
"""Names of files that could run code when they are loaded, or hold weights, and so are never carried."""

_LEGAL = re.compile(
    r"(?i:(un)?licen[cs]es?/[^/]+|((un)?licen[cs]e|copying|copyright|notice|third.?party|use.?policy|citation|authors"
    r"|attribution|patents)[^/]*|[^/]+\.licen[cs]e)"
)
_NAMES: dict[Kind, str] = {
    "tokenizer": r"(tokenizer|vocab|merges|special_tokens|added_tokens|chat_template|encoder|normalizer|bpe)[\w.-]*"
    r"\.(json|txt|jinja|bpe|model|tiktoken|codes)|[\w.-]+\.(model|spm|tiktoken|jinja)|tekken\.json"
    r"|additional_chat_templates/[\w.-]+\.jinja",
    "processor": r"([\w-]*processor|[\w-]*preprocessor|feature_extractor)(_config)?\.json",
    "source": r"generation_config\.json|README\.md|modules\.json|sentence_\w+_config\.json"
    rf"|config_sentence_transformers\.json|{_LEGAL.pattern}",
}
_KINDS: dict[Kind, re.Pattern[str]] = {kind: re.compile(f"{_RUNS}({names})") for kind, names in _NAMES.items()}
_FOLDERS = re.compile(r"additional_chat_templates|(?i:licen[cs]es)")
"""Folders whose files are listed, too."""
_MODEL = re.compile(r"config\.json|[^/]+\.safetensors(\.index\.json)?|\..*")
"""The model itself, and hidden files."""
_WELL_KNOWN = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"),
    *("preprocessor_config.json", "processor_config.json", GENERATION, CARD, "LICENSE", "LICENSE.md", "LICENSE.txt"),
    *(
        "NOTICE",
        "NOTICE.txt",
        "CITATION.cff",
        MODULES,
        "sentence_bert_config.json",
        "config_sentence_transformers.json",
    ),
)
"""Names that are asked for where a folder can't be listed, as by plain HTTP."""


@dataclass(frozen=True)
class Beside:
    """The files beside the weights of a source. Nothing is read but names and sizes."""

    url: str
    places: dict[str, str]
    """Place of each file (a URL; in a store, the name of the file), by its path in a model folder."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Reason for each file that does not go along, by its path in a model folder."""

    def names(self, kind: Kind) -> list[str]:
        return [name for name in self.places if kind_of(name) == kind]

    def read(self, name: str) -> bytes:
        """A file, whole. Raises SourceError when it is gone, CheckpointError when it was changed in its store."""
        place = self.places[name]
        if self._reader is not None:
            return self._reader.file(place)
        return read_range(place, 0, size_bytes(place) or 0, name)

    @cached_property
    def _reader(self) -> CheckpointReader | None:
        return CheckpointReader(self.url) if is_store(self.url) else None


def kind_of(name: str) -> Kind:
    """The kind of what is carried under a name, a path in a model folder."""
    return next((kind for kind, names in _KINDS.items() if names.fullmatch(name)), "source")


def is_legal(name: str) -> bool:
    """Whether a file is a licence, a notice, or says how to cite."""
    return _LEGAL.fullmatch(name) is not None


def stored(name: str) -> str:
    """Name that a store gives to a file of this name in a model folder."""
    return f"{kind_of(name)}/{name}"


def folder_of(url: str) -> str:
    """The folder of a source: itself, or where its file of weights or its configuration lies."""
    return (url.rpartition("/")[0] or ".") if url.endswith((".safetensors", ".json")) else url


def beside(url: str) -> Beside:
    """Find the files beside the weights of a model folder, of a file in one, or of a store. A ``.gguf`` file has
    none."""
    if resolve(url).endswith(".gguf"):
        return Beside(url, {})
    if is_store(url):
        prefixes = tuple(f"{kind}/" for kind in get_args(Kind))
        held = CheckpointReader(url).manifest.files
        return Beside(url, {name.partition("/")[2]: name for name in held if name.startswith(prefixes)})
    folder = folder_of(url)
    top = list_names(folder) or []
    listed = is_local(folder) or "config.json" in top  # a web page about a folder may name other things
    names = _with_folders(folder, top) if listed else _well_known(folder)
    places: dict[str, str] = {}
    left_out: dict[str, str] = {}
    modules = _module_folders(folder) if MODULES in names else []
    for module in modules:
        names += [f"{module}/{name}" for name in list_names(join(folder, module)) or ()]
    wanted = [name for name in names if _carried(name, modules)]
    with ThreadPoolExecutor(max_workers=8) as pool:
        sizes = dict(zip(wanted, pool.map(lambda name: size_bytes(join(folder, name)), wanted), strict=True))
    for name in names:
        if name not in sizes:
            if not (_MODEL.fullmatch(name) or name in modules):
                left_out[name] = "code" if name.endswith(".py") else "" if re.match(_RUNS, name) else "pickle or code"
        elif (size := sizes[name]) is None:
            continue  # a folder, or gone
        elif size > MAX_FILE_BYTES or len(places) == MAX_FILES:
            left_out[name] = "too large" if size > MAX_FILE_BYTES else "too many files"
        else:
            places[name] = join(folder, name)
    return Beside(url, places, left_out)


def _carried(name: str, modules: Iterable[str]) -> bool:
    if not safe_relative(name):
        return False
    in_module = name.rpartition("/")[0] in modules and re.match(_RUNS, name) is not None
    return in_module or any(names.fullmatch(name) for names in _KINDS.values())


def _with_folders(folder: str, top: list[str]) -> list[str]:
    inner = [name for name in top if _FOLDERS.fullmatch(name)]
    return [n for n in top if n not in inner] + [f"{i}/{n}" for i in inner for n in list_names(join(folder, i)) or ()]


def _well_known(folder: str) -> list[str]:
    with ThreadPoolExecutor(max_workers=8) as pool:
        sizes = pool.map(lambda name: size_bytes(join(folder, name)), _WELL_KNOWN)
        return [name for name, size in zip(_WELL_KNOWN, sizes, strict=True) if size is not None]


def _module_folders(folder: str) -> list[str]:
    """The folders that ``modules.json`` names."""
    url = join(folder, MODULES)
    size = size_bytes(url)
    data = read_range(url, 0, min(size or 0, MAX_FILE_BYTES), MODULES)
    return [module["path"] for module in read_modules(data, url) if module["path"]]


def read_modules(data: bytes, where: str) -> list[dict[str, Any]]:
    """``modules.json``. Raises SourceError when it is not what sentence-transformers reads, or leads elsewhere."""
    modules = parse_json(data, f"{label(where)}: {MODULES}")
    for module in modules if isinstance(modules, list) else [None]:
        match module:
            case {"path": str(path), "type": str()} if not path or safe_relative(path):
                pass
            case _:
                raise SourceError(
                    f"{label(where)}: {MODULES} is no list of modules with a 'type' and a 'path' inside the folder; "
                    f"get it again, or remove it"
                )
    return list(modules)
