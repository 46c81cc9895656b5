"""The manifest: what a committed store holds, and the digests that prove it."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import xxhash

from bot_dist.errors import CheckpointError, CheckpointMissingError
from bot_dist.parsing import parse_object
from bot_dist.storage.folder import Storage
from bot_dist.store.layout import StoredParameter
from bot_dist.store.shards import DIGEST_BYTES
from bot_dist.tensors import Box

FORMAT_VERSION = 1
"""Version of the format that is written, and the only one that is read."""
MANIFEST = "manifest.json"
MOST_BYTES = 2**31
"""Largest manifest that is read, in bytes. It has 16 bytes for each chunk, and a chunk has at most 256 KiB."""
OPERATORS = "operators"
"""Folder of the stores with operators that were fitted to the source; they are written before what is made with
them."""
ATTEMPTS = "data"
"""Folder of the attempts to write a store, each of which has a folder of its own in it."""
_SECTIONS = ("source", "plan", "recipe", "versions", "transfer", "details", "moments", "training", "calibration")
"""The parts of a provenance that are objects."""

_ATTEMPT = re.compile(rf"{ATTEMPTS}/[A-Za-z0-9][A-Za-z0-9_-]*")
_NAME = re.compile(r"(?!\.)[^/\\\0:]+(/(?!\.)[^/\\\0:]+)*")


@dataclass(frozen=True, kw_only=True)
class StoredFile:
    """A file that is carried along beside the arrays."""

    nbytes: int
    xxh3_128: str


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a committed store."""

    data: str
    """The folder, within the store, of the attempt that was committed: a zarr group."""
    config: dict[str, Any]
    """``transformers`` configuration of the model."""
    parameters: dict[str, StoredParameter]
    digests: dict[str, bytes]
    """The xxh3-64 digests of the inner chunks of each parameter, in row-major order of their grid."""
    provenance: dict[str, Any]
    """Origin of the store: source, plan, recipe, versions, energy kept."""
    files: dict[str, StoredFile] = field(default_factory=dict)
    """Other files in the folder, which were carried along from the source, by path."""

    @property
    def operators(self) -> dict[str, str]:
        """The stores of the operators that this store was made with: the digest of each one's manifest, by its folder
        ``operators/NAME`` within the store."""
        return {f"{OPERATORS}/{name}": digest for name, digest in self.provenance.get(OPERATORS, {}).items()}

    def chunk_digest(self, name: str, chunk: Box) -> bytes:
        """The digest of an inner chunk that was committed."""
        stored, ordinal = self.parameters[name], 0
        for i, n in zip(stored.chunk_index(chunk), stored.grid_shape, strict=True):
            ordinal = ordinal * n + i
        return self.digests[name][ordinal * DIGEST_BYTES : (ordinal + 1) * DIGEST_BYTES]

    @cached_property
    def digest(self) -> str:
        """The xxh3-128 digest of everything above, which identifies the contents of the store."""
        return digest(self._body())

    def contents(self) -> dict[str, Any]:
        """Everything as plain data, but for the digests of the chunks."""
        return {**self._body(), "parameters": {name: s.to_json() for name, s in self.parameters.items()}}

    def to_bytes(self) -> bytes:
        return json.dumps({**self._body(), "digest": self.digest}, indent=1).encode()

    def _body(self) -> dict[str, Any]:
        return {
            "format": "bot_dist",
            "format_version": FORMAT_VERSION,
            "data": self.data,
            "config": self.config,
            "parameters": {
                name: {**stored.to_json(), "digests": self.digests[name].hex()}
                for name, stored in self.parameters.items()
            },
            "files": {name: vars(file) for name, file in self.files.items()},
            "provenance": self.provenance,
        }

    @staticmethod
    def load(storage: Storage) -> Manifest:
        """The manifest of a committed store. Raises CheckpointError if there is none or it was changed."""
        where = f"{storage.label}/{MANIFEST}"
        if not storage.exists(MANIFEST):
            if not storage.exists():
                raise CheckpointMissingError(
                    f"{storage.label}: no such store; make it first (bot_dist scale, bot_dist run) or give another URL"
                )
            raise CheckpointMissingError(
                f"{storage.label}: no {MANIFEST}, so this is no committed bot_dist checkpoint; "
                f"if its transfer was interrupted, run the same command again to resume it"
            )
        try:
            body = parse_object(storage.read(MANIFEST), where, ValueError, MOST_BYTES)
            recorded, version = body.pop("digest"), body["format_version"]
        except (ValueError, KeyError, AttributeError):
            raise CheckpointError(f"{where} is damaged: not the JSON of a manifest") from None
        if version != FORMAT_VERSION:
            raise CheckpointError(
                f"{storage.label}: format version {version}, this bot_dist reads {FORMAT_VERSION}; "
                f"make the store again with this version, or read it with the one that wrote it"
            )
        if recorded != (actual := digest(body)):
            raise CheckpointError(f"{where} was changed: digest {actual}, recorded {recorded}; restore it")
        try:
            return Manifest._from_body(body, where)
        except (KeyError, TypeError, ValueError, AttributeError) as error:  # what wrote it knew digests, and not more
            raise CheckpointError(f"{where} is malformed ({error!r}); make the store again") from None

    @staticmethod
    def _from_body(body: dict[str, Any], where: str) -> Manifest:
        parameters = {name: StoredParameter.from_json(name, data) for name, data in body["parameters"].items()}
        digests = {name: bytes.fromhex(data["digests"]) for name, data in body["parameters"].items()}
        if not _ATTEMPT.fullmatch(body["data"]):
            raise CheckpointError(f"{where}: data folder {body['data']!r}, wanted {ATTEMPTS}/NAME")
        if not isinstance(body["config"], dict):
            raise CheckpointError(f"{where}: its config is no object; make the store again")
        for section, value in body["provenance"].items():
            if section in _SECTIONS and not isinstance(value, dict):
                raise CheckpointError(f"{where}: its {section} is no object; make the store again")
        operators = body["provenance"].get(OPERATORS, {})
        if not isinstance(operators, dict):
            raise CheckpointError(
                f"{where}: it names operators without their digests, as bot_dist once did; make the store again"
            )
        for name in (*parameters, *body["files"], *(f"{OPERATORS}/{name}" for name in operators)):
            if not _NAME.fullmatch(name):
                raise CheckpointError(f"{where}: name {name!r} leads out of the store")
        for name, stored in parameters.items():
            if len(digests[name]) != DIGEST_BYTES * math.prod(stored.grid_shape):
                raise CheckpointError(f"{where}: {name} has {len(digests[name])} bytes of digests, wanted 8 per chunk")
        return Manifest(
            data=body["data"],
            config=body["config"],
            parameters=parameters,
            digests=digests,
            files={name: StoredFile(**file) for name, file in body["files"].items()},
            provenance=body["provenance"],
        )


def digest(body: Mapping[str, Any]) -> str:
    """The xxh3-128 digest of plain data."""
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
