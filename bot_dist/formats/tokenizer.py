"""Tokenizers: loading a source's, and carrying it along as files. No code out of a checkpoint is ever run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bot_dist.errors import SourceError, blamed
from bot_dist.formats.beside import beside, folder_of
from bot_dist.formats.gguf.header import read_gguf_header
from bot_dist.formats.gguf.read import TOKENS
from bot_dist.formats.gguf.tokenizer import begin, restore
from bot_dist.formats.open import is_store
from bot_dist.parsing import parse_object
from bot_dist.storage.files import is_local, join, list_names, read_file, read_range, write_file
from bot_dist.storage.package_urls import near_names, resolve
from bot_dist.urls import label

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "tokenizer.model", "spiece.model", "tekken.json")
"""Without one of these there is no tokenizer."""


LARGEST_ID = 2**24
"""Number in a ``tokenizer.json``: ``tokenizers`` takes memory for all ids up to the largest, whichever there are."""


def has_tokenizer(url: str) -> bool:
    """Whether ``load_tokenizer`` has something to load there."""
    return _gguf_has_tokens(url) if _is_gguf(url) else bool(_names(url))


def load_tokenizer(url: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder, a ``.gguf`` file or a bot_dist store.

    Raises SourceError when it has none, or one that ``transformers`` can't load.
    """
    if _is_gguf(url):
        if not has_tokenizer(url):
            raise SourceError(f"{label(url)}: no tokenizer: metadata has no '{TOKENS}'")
        with _gguf_header_file(url) as path:
            tokenizer = _from_pretrained(url, str(path.parent), gguf_file=path.name)
        header = read_gguf_header(url)
        restore(tokenizer, header.scalars, header.lengths[TOKENS])
        begin(tokenizer, header.scalars)
        return tokenizer
    names = _names(url)
    if not names:
        there = () if is_store(url) else list_names(folder_of(url)) or ()
        near = near_names("tokenizer.json", (name for name in there if "token" in name))
        raise SourceError(
            f"{label(url)}: no tokenizer: none of {', '.join(VOCABULARIES)}; put the model's own there{near}"
        )
    if is_local(url) and not is_store(url):
        return _from_pretrained(url, resolve(folder_of(url)))
    with tempfile.TemporaryDirectory() as copy:
        held = beside(url)
        files = {name: held.read(name) for name in names}
        if not is_store(url) and "config.json" in (list_names(folder_of(url)) or ()):
            files["config.json"] = read_file(join(folder_of(url), "config.json"))
        _write(files, copy)
        return _from_pretrained(url, copy)


def check_files(url: str) -> None:
    """Raise SourceError, which names the file where one alone is to blame, where a source has a tokenizer that can't be
    read. That of a GGUF file takes long, and is read when it is carried along."""
    if _is_gguf(url) or not (names := _names(url)):
        return
    held = beside(url)
    for name in {*SETTINGS} & {*names}:
        parse_object(held.read(name), f"{label(url)}: {name}")
    try:
        load_tokenizer(url)
    except SourceError:
        if "tokenizer.json" in names:
            from tokenizers import Tokenizer

            with blamed(lambda why: SourceError(f"{label(url)}: tokenizer.json is no tokenizer ({why}); get it again")):
                Tokenizer.from_buffer(held.read("tokenizer.json"))
        raise


def tokenizer_files(url: str) -> dict[str, bytes]:
    """The tokenizer of a source as files, by path in a model folder; none where it has no tokenizer.

    They are the source's own. Where there is no ``tokenizer.json``, whoever loads the others needs to know the model's
    configuration, so these (and GGUF's) are loaded, and what ``transformers`` saves of them is put beside them. Raises
    SourceError when that fails.
    """
    if not has_tokenizer(url):
        return {}
    held = beside(url)
    files = {name: held.read(name) for name in held.names("tokenizer")}
    if "tokenizer.json" not in files:
        with tempfile.TemporaryDirectory() as copy:
            load_tokenizer(url).save_pretrained(copy)
            saved = [path for path in Path(copy).rglob("*") if path.is_file()]
            files |= {path.relative_to(copy).as_posix(): path.read_bytes() for path in saved}
    return files


def save_tokenizer(source_url: str, target_folder_url: str) -> bool:
    """Put the ``tokenizer_files`` of a source into a folder (local or any fsspec URL).

    Returns False, and writes nothing, when the source has no tokenizer.
    """
    files = tokenizer_files(source_url)
    _write(files, target_folder_url)
    return bool(files)


def _from_pretrained(url: str, folder: str, **options: Any) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if (path := Path(folder) / "tokenizer.json").is_file():
        parse_object(path.read_bytes(), f"{label(url)}: tokenizer.json", largest=LARGEST_ID)
    with blamed(lambda why: SourceError(f"{label(url)}: transformers can't load the tokenizer: {why}")):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, **options
        )
    template: Any = tokenizer.chat_template
    named = template if isinstance(template, dict) else {"default": template or ""}
    if not all(isinstance(text, str) for text in named.values()):
        raise SourceError(f"{label(url)}: chat_template is {template!r}, wanted a text, or several by name; mend it")
    return tokenizer


def _is_gguf(url: str) -> bool:
    return resolve(url).endswith(".gguf")


def _gguf_has_tokens(url: str) -> bool:
    return TOKENS in read_gguf_header(url).lengths


def _names(url: str) -> list[str]:
    """The tokenizer's files of a folder or a store; none when there is no tokenizer."""
    names = beside(url).names("tokenizer")
    return names if {*VOCABULARIES} & {*names} else []


def _write(files: dict[str, bytes], folder: str) -> None:
    for name, data in files.items():
        write_file(join(folder, name), data)


@contextmanager
def _gguf_header_file(url: str) -> Iterator[Path]:
    """A local ``.gguf`` file with the header of ``url``; of a remote one the tensors are left a hole."""
    if is_local(url):
        yield Path(resolve(url))
        return
    header = read_gguf_header(url)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "header.gguf"
        with path.open("wb") as file:
            file.write(read_range(url, 0, header.end, "header"))
            file.truncate(header.size)
        yield path
