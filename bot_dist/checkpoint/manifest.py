"""The manifest: what a committed store holds, and the digests that prove it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from bot_dist.checkpoint.layout import StoredParameter
from bot_dist.checkpoint.storage import Storage
from bot_dist.errors import CheckpointError

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

    def to_bytes(self) -> bytes:
        body = {
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
        return json.dumps({**body, "digest": _digest(body)}, indent=1).encode()

    @staticmethod
    def load(storage: Storage) -> Manifest:
        """The manifest of a committed store. Raises CheckpointError if there is none or it was changed."""
        if not storage.exists():
            raise CheckpointError(f"{storage.url}: no such store; give the URL of a bot_dist checkpoint")
        if not storage.exists(MANIFEST):
            raise CheckpointError(
                f"{storage.url}: no {MANIFEST}, so this is no committed bot_dist checkpoint; "
                f"if its transfer was interrupted, run the same command again to resume it"
            )
        try:
            body = json.loads(storage.read(MANIFEST))
            found, version = body.pop("digest"), body["format_version"]
        except (ValueError, KeyError, AttributeError):
            raise CheckpointError(f"{storage.url}/{MANIFEST} is damaged: not the JSON of a manifest") from None
        if version != FORMAT_VERSION:
            raise CheckpointError(f"{storage.url}: format version {version}; this bot_dist reads {FORMAT_VERSION}")
        if found != _digest(body):
            raise CheckpointError(f"{storage.url}/{MANIFEST} was changed: digest {_digest(body)}, recorded {found}")
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
