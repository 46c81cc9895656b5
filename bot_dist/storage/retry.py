"""Repeated requests to storage: which answers are worth one, how often, how long to wait, and the error after that.

Waits are slept and time-outs are the clients' own; all of these follow the monotonic clock, never the time of day.
"""

from __future__ import annotations

import logging
import os
import random
import re
import time
from collections.abc import Callable
from typing import TypeVar

from bot_dist.errors import BotDistError, InputError
from bot_dist.urls import label

logger = logging.getLogger(__name__)

TRIES = 8
"""Number of times that one operation is tried at most, with waits of about 15 s together."""
FIRST_WAIT_S = 0.2
"""Wait before the second try, in seconds; each wait is about twice the one before."""
LONGEST_WAIT_S = 5.0
"""Longest wait between two tries, in seconds."""
CONNECT_S = 10.0
"""Longest wait for a connection, in seconds."""
SILENCE_S = 60.0
"""Longest wait for an answer or for its next bytes, in seconds, unless the environment's BOT_DIST_STORAGE_TIMEOUT_S
says another."""

_CLIENTS = ("obstore", "aiohttp", "huggingface_hub", "requests", "httpx", "httpcore", "httpx2", "httpcore2")
"""Client libraries whose errors are not all OSErrors."""
_LATER = {408, 409, 425, 429}
"""HTTP statuses below 500 that mean "not now". S3 answers 409 to two conditional writes at once."""
_METADATA_SERVICE = "169.254.169.254"
"""Address that obstore asks for a machine's role when the environment has no credentials."""

_jitter = random.Random()

T = TypeVar("T")


def asked(url: str, operation: str, call: Callable[[], T], as_error: type[BotDistError]) -> T:
    """Return what ``call`` returns, calling it again while storage answers that it can't just now.

    Raises an ``as_error`` that names the URL, the operation, how often it was tried, and the last answer.
    FileNotFoundError, NotADirectoryError and FileExistsError pass: they are answers.
    """
    for tries in range(1, TRIES + 1):
        try:
            return call()
        except (NotADirectoryError, FileExistsError):
            raise
        except Exception as caught:
            error = _behind(caught)
            if isinstance(error, FileNotFoundError) or not (isinstance(error, OSError) or _client(error)):
                raise
            again = transient(error)
            if not again or tries == TRIES:
                often = f" after {tries} tries; run the same command again later" if again else ""
                raise as_error(f"{label(url)}: can't {operation}: {reason(error)}{often}") from None
            logger.warning("%s: can't %s, try %d of %d: %s", label(url), operation, tries, TRIES, reason(error))
        time.sleep(min(LONGEST_WAIT_S, FIRST_WAIT_S * 2 ** (tries - 1)) * _jitter.uniform(0.5, 1))
    raise AssertionError("unreachable")


def time_outs() -> tuple[float, float]:
    """Seconds to wait for a connection, and for an answer or its next bytes. Raises InputError for no number."""
    text = os.environ.get("BOT_DIST_STORAGE_TIMEOUT_S", str(SILENCE_S))
    try:
        silence = float(text)
    except ValueError:
        silence = 0.0
    if not 0 < silence < float("inf"):
        raise InputError(f"environment: BOT_DIST_STORAGE_TIMEOUT_S is '{text}', wanted a number of seconds above 0")
    return min(CONNECT_S, silence), silence


def transient(error: Exception) -> bool:
    """Whether the same request may well succeed a little later."""
    if (status := _status(error)) is not None:
        return status in _LATER or (status >= 500 and status != 501)
    if _client(error) == "obstore":
        settings = any(sign in str(error) for sign in (_METADATA_SERVICE, "builder error"))  # no keys, no such address
        return type(error).__name__ == "GenericError" and not settings
    return isinstance(error, ConnectionError | TimeoutError) or _client(error) is not None


def reason(error: Exception) -> str:
    """The last answer on one line, without what it quotes of the request."""
    text = str(error)
    if _METADATA_SERVICE in text:
        return (
            "no credentials in the environment (of S3: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY), and this machine "
            "has no role that gives some"
        )
    if match := re.search(r"status code: (\d{3}[^:<\n]*)", text):
        detail = [*re.findall(r"<Code>([^<]*)</Code>", text)[:1], *re.findall(r"<Message>([^<]*)</Message>", text)[:1]]
        return ": ".join([match[1].strip(), *detail])
    line = " ".join(text.partition("Debug source")[0].split())
    return label(f"{type(error).__name__}: {line}" if line else type(error).__name__)


def _behind(error: Exception) -> Exception:
    """The error, or the transient one that fsspec took for a missing file."""
    cause = error.__cause__
    behind = isinstance(error, FileNotFoundError) and isinstance(cause, Exception) and transient(cause)
    return cause if behind and isinstance(cause, Exception) else error


def _client(error: Exception) -> str | None:
    """The client library that has raised an error; None for an error of something else."""
    package = type(error).__module__.partition(".")[0]
    return package if package in _CLIENTS else None


def _status(error: Exception) -> int | None:
    """The HTTP status that an error reports; None where it reports none."""
    response = getattr(error, "response", None)
    for status in (getattr(error, "status", None), getattr(response, "status_code", None)):
        if isinstance(status, int):
            return status
    match = re.search(r"status code: (\d{3})", str(error)) if _client(error) == "obstore" else None
    return int(match[1]) if match else None
