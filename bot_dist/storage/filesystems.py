"""The fsspec file system of a URL."""

from __future__ import annotations

from typing import Any

import fsspec

from bot_dist.errors import InputError, MissingPackageError
from bot_dist.storage.retry import time_outs
from bot_dist.urls import KEYS_IN_URL, label

OBJECT_STORES = ("s3", "s3a", "gs", "az", "abfs", "abfss")
WRITABLE = ("", "file", "local", "memory", *OBJECT_STORES)
"""Protocols whose writes are atomic and can be made conditional: a file is there whole or not at all, and is created
only where there is none."""


def protocol(url: str) -> str:
    """``s3`` of ``s3://bucket/key``; empty for a plain path."""
    return url.partition("://")[0] if "://" in url else ""


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    Raises MissingPackageError when the protocol needs a package, InputError when there is no such protocol.
    """
    if protocol(url) in OBJECT_STORES:
        from bot_dist.storage.objectstore import ObjectStore

        path = url.partition("://")[2].rstrip("/")
        if ":" in path.partition("/")[0]:
            raise InputError(f"{label(url)}: {KEYS_IN_URL}")
        return ObjectStore.of(protocol(url)), path
    try:
        fs, path = fsspec.core.url_to_fs(url, **(_by_http() if protocol(url) in ("http", "https") else {}))
    except ImportError as error:
        raise MissingPackageError(
            f"{label(url)}: protocol '{protocol(url)}' needs a package that is not installed ({error})"
        ) from error
    except ValueError as error:
        raise InputError(f"{label(url)}: {error}") from error
    return fs, path


def _by_http() -> dict[str, Any]:
    """Options of fsspec's HTTP client."""
    import aiohttp

    connect, silence = time_outs()
    return {"client_kwargs": {"timeout": aiohttp.ClientTimeout(sock_connect=connect, sock_read=silence)}}


def check_writable(url: str) -> None:
    """Raise InputError unless checkpoints can be written there."""
    if protocol(url) not in WRITABLE:
        raise InputError(
            f"{label(url)}: {protocol(url)}:// can be read from but holds no checkpoint, "
            f"because nothing there can be created on condition; give a local path, s3://, gs:// or az://"
        )
