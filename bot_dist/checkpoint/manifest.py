"""The manifest: what a committed store holds, and the digests that prove it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import xxhash

from bot_dist.checkpoint.layout import StoredParameter
from bot_dist.checkpoint.storage import Storage
from bot_dist.errors import CheckpointError, CheckpointMissingError

FORMAT_VERSION = 0
MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """Contents of a committed store."""

    config: dict[str, Any]
    """``transformers`` configuration of the model."""
    parameters: dict[str, StoredParameter]
    digests: dict[str, dict[str, str]]
    """Per parameter, xxh3-64 of each inner chunk's values by chunk key."""
    provenance: dict[str, Any]
    """Where it came from: source, plan, recipe, versions, energy kept."""

    @cached_property
    def digest(self) -> str:
        """xxh3-128 of everything above: identifies the contents of the store."""
        return _digest(self._body())

    def to_bytes(self) -> bytes:
        return json.dumps({**self._body(), "digest": self.digest}, indent=1).encode()

    def _body(self) -> dict[str, Any]:
        return {
            "format": "bot_dist",
            "format_version": FORMAT_VERSION,
            "config": self.config,
            "parameters": {
                name: {
                    **stored.to_json(),
                    "digests": [self.digests[name][stored.chunk_key(c)] for c in stored.chunks()],
                }
                for name, stored in self.parameters.items()
            },
            "provenance": self.provenance,
        }

    @staticmethod
    def load(storage: Storage) -> Manifest:
        """The manifest of a committed store. Raises CheckpointError if there is none or it was changed."""
        if not storage.exists():
            raise CheckpointMissingError(f"{storage.label}: no such store; give the URL of a bot_dist checkpoint")
        if not storage.exists(MANIFEST):
            raise CheckpointMissingError(
                f"{storage.label}: no {MANIFEST}, so this is no committed bot_dist checkpoint; "
                f"if its transfer was interrupted, run the same command again to resume it"
            )
        try:
            body = json.loads(storage.read(MANIFEST))
            found, version = body.pop("digest"), body["format_version"]
        except (ValueError, KeyError, AttributeError):
            raise CheckpointError(f"{storage.label}/{MANIFEST} is damaged: not the JSON of a manifest") from None
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{storage.label}: format version {version}; this bot_dist reads {FORMAT_VERSION}")
        if found != _digest(body):
            raise CheckpointError(f"{storage.label}/{MANIFEST} was changed: digest {_digest(body)}, recorded {found}")
        parameters = {name: StoredParameter.from_json(name, data) for name, data in body["parameters"].items()}
        return Manifest(
            config=body["config"],
            parameters=parameters,
            digests={
                name: dict(zip(map(p.chunk_key, p.chunks()), body["parameters"][name]["digests"], strict=True))
                for name, p in parameters.items()
            },
            provenance=body["provenance"],
        )


def _digest(body: Mapping[str, Any]) -> str:
    return xxhash.xxh3_128_hexdigest(json.dumps(body, sort_keys=True, separators=(",", ":")).encode())
