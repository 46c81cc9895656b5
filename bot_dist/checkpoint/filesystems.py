"""fsspec file systems by URL, with errors that a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from bot_dist.errors import BotDistError, InputError, MissingPackageError
from bot_dist.urls import label

_CLIENTS = ("botocore", "aiohttp", "aiobotocore", "google", "gcsfs", "azure")
"""Client libraries whose errors are not all OSErrors."""

_INSTALL = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path in it.

    Raises MissingPackageError when the protocol needs a package, InputError when there is no such protocol.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except ImportError as error:
        protocol = url.partition("://")[0]
        raise MissingPackageError(
            f"{label(url)}: protocol '{protocol}' needs a package that is not installed; "
            f"pip install {_INSTALL.get(protocol, protocol)}"
        ) from error
    except ValueError as error:
        raise InputError(f"{label(url)}: {error}") from error
    return fs, path


@contextmanager
def storage_errors(url: str, as_error: type[BotDistError]) -> Iterator[None]:
    """Storage's own errors as an ``as_error`` that names the URL. FileExistsError passes: it is an answer."""
    try:
        yield
    except FileExistsError:
        raise
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.partition(".")[0] in _CLIENTS:
            raise as_error(f"{label(url)}: can't be read or written: {type(error).__name__}: {error}") from error
        raise
