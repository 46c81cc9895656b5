"""The folder of a store: what makes it known for one, what in it is the store's, and removing that and nothing else.

A folder is a store's by the attribute ``bot_dist`` of its ``zarr.json``. In the folder of an attempt the arrays are the
store's that ``_layout.json`` names, or whose own ``zarr.json`` says what was written into it: their shards, beside them
what ``commit`` takes along, the records of steps, and what killed writers have left of any of these on the way.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor

from bot_dist.errors import CheckpointError, CheckpointExistsError
from bot_dist.parsing import parse_object
from bot_dist.storage.folder import Storage
from bot_dist.storage.localfile import PARTIAL
from bot_dist.store import arrays
from bot_dist.store.manifest import ATTEMPTS, FORMAT_VERSION, MANIFEST, OPERATORS

STEPS = "_steps"
LAYOUT = "_layout.json"
GROUP = "zarr.json"
FILES = ("tokenizer/", "processor/", "source/")
"""Prefixes of what may lie beside the arrays."""
THREADS = 8
"""Small files that are read or written at a time."""
_FITTED = re.compile(r"[a-z_-]+-[0-9a-f]{16}")
_SHARD = re.compile(r"c(\.\d+)+")
_REMOVALS = 5
"""How often an attempt is emptied that a forgotten writer goes on filling."""


def root_metadata() -> bytes:
    """The ``zarr.json`` of a store: by it a folder is known for one."""
    return arrays.group_metadata({"bot_dist": {"format_version": FORMAT_VERSION}})


def is_store(storage: Storage, folder: str = "") -> bool:
    """Whether the folder, or one in it, is a store's, finished or not."""
    path = _join(folder, GROUP)
    return storage.exists(path) and "bot_dist" in _attributes(storage.read(path))


def claim(url: str) -> Storage:
    """The folder at ``url``, made known for a store's if it is none's. Raises as ``is_vacant`` does."""
    storage = Storage(url)
    if is_vacant(storage):
        storage.write(GROUP, [root_metadata()], durable=True)
        storage.sync_folders("")  # whatever a crash leaves of the rest, it is known for ours
    return storage


def is_vacant(storage: Storage) -> bool:
    """Whether a folder is not a store's yet: nothing is in it, but operators that were fitted for one.

    Raises CheckpointExistsError when something else is there, CheckpointError when a link is in it.
    """
    if storage.local and os.path.islink(storage.root) and not os.path.exists(storage.root):
        raise CheckpointExistsError(
            f"{storage.label} is a link to {os.readlink(storage.root)}, which is not there; make that folder, or give "
            f"another target"
        )
    if is_store(storage):
        storage.refuse_links()
        return False
    others = () if storage.is_empty() else {*storage.names("")} - {OPERATORS}
    if not others:
        fitted = tuple(f"{store}/" for store in fitted_stores(storage))
        # besides, at most, what killed writers have left on the way
        others = {name for name in storage.sizes("") if partial_of(name) == name and not name.startswith(fitted)}
    if others:
        raise CheckpointExistsError(f"{storage.label} is not empty and no bot_dist store; it is not overwritten")
    return True


def remove_store(storage: Storage, folder: str, *, within: str = "") -> None:
    """Remove the store in a folder, its manifest first, and the folders below ``within`` that are empty then. What is
    no part of it stays; so does everything where there is no store."""
    if not is_store(storage, folder):
        return
    on_storage = storage.sizes(folder)
    storage.remove(*(_join(folder, name) for name in on_storage if partial_of(name) == MANIFEST))
    for store in fitted_stores(storage, folder):
        remove_store(storage, store, within=within)
    for name in storage.names(_join(folder, ATTEMPTS)):
        remove_attempt(storage, _join(folder, ATTEMPTS, name), within=within)
    storage.remove(*(_join(folder, name) for name in on_storage if partial_of(name) == GROUP), within=within)


def fitted_stores(storage: Storage, folder: str = "") -> list[str]:
    """The stores of operators that were fitted for the store in a folder, finished or not."""
    names = [name for name in storage.names(_join(folder, OPERATORS)) if _FITTED.fullmatch(name)]
    return [store for name in names if is_store(storage, store := _join(folder, OPERATORS, name))]


def remove_attempt(storage: Storage, folder: str, *, within: str = ATTEMPTS) -> None:
    """Remove what is an attempt's in its folder, last what tells so; and the folders below ``within`` that are empty
    then. Raises CheckpointError where somebody goes on writing there."""
    for _ in range(_REMOVALS):
        if not (own := own_files(storage, folder, storage.sizes(folder))):
            return
        telling = {name for name in own if name.rpartition("/")[2] in (LAYOUT, GROUP)}
        for names in ({*own} - telling, telling):
            storage.remove(*(_join(folder, name) for name in names), within=within)
    raise CheckpointError(f"{storage.label}/{folder}: can't be removed: another writes there")


def partial_of(name: str) -> str:
    """The file that a killed writer was writing when it left ``NAME.….partial``; of any other name, itself."""
    return name.removesuffix(PARTIAL).rpartition(".")[0] if name.endswith(PARTIAL) else name


def own_files(storage: Storage, folder: str, on_storage: Mapping[str, int]) -> list[str]:
    """The files that an attempt has written, among all that is in its folder; none where no attempt has been there."""
    group = _attributes(storage.read(_join(folder, GROUP))) if GROUP in on_storage else {}
    if LAYOUT not in on_storage and "config" not in group:
        return []
    laid_out, own = {*_laid_out(storage, folder, on_storage)}, []
    for name in on_storage:
        parent, _, last = (of := partial_of(name)).rpartition("/")
        if (
            of in (GROUP, LAYOUT)
            or of.startswith(FILES)
            or (parent == STEPS and last.endswith(".json"))
            or (parent in laid_out and (last == GROUP or _SHARD.fullmatch(last)))
        ):
            own.append(name)
    return own


def _laid_out(storage: Storage, folder: str, on_storage: Mapping[str, int]) -> Iterator[str]:
    """Names of an attempt's arrays."""
    named: set[str] = set()
    if LAYOUT in on_storage:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # torn by a crash of the machine
            named.update(parse_object(storage.read(_join(folder, LAYOUT)), LAYOUT, ValueError)["parameters"])
    yield from named
    folders = [name.removesuffix(f"/{GROUP}") for name in on_storage if name.endswith(f"/{GROUP}")]
    others = [name for name in folders if name not in named]
    with ThreadPoolExecutor(THREADS, thread_name_prefix="bot_dist-metadata") as pool:
        of_each = pool.map(lambda name: _attributes(storage.read(_join(folder, name, GROUP))), others)
        yield from (name for name, attributes in zip(others, of_each, strict=True) if "logical_dtype" in attributes)


def _attributes(data: bytes) -> Mapping[str, object]:
    """The attributes of a ``zarr.json``; none where the data is no such file."""
    try:
        attributes = parse_object(data, GROUP, ValueError)["attributes"]
    except (ValueError, KeyError):
        return {}
    return attributes if isinstance(attributes, dict) else {}


def _join(*parts: str) -> str:
    return "/".join(filter(None, parts))
