"""URLs and paths as text."""

from __future__ import annotations

import os
import re

KEYS_IN_URL = (
    "a bucket has no ':' in its name; keys are taken from the environment (AWS_ACCESS_KEY_ID and the like), never from "
    "a URL"
)
"""Why a URL such as ``s3://KEY:SECRET@BUCKET`` is refused."""

DATASETS = "hf-datasets://"
"""Protocol of data sets that Hugging Face's ``datasets`` loads by name. The query says which part, and holds no
secret."""

_SLIPPED = r"\b(?:https?|s3a?|gs|gcs|az|abfss?|hf|ray|file|s?ftp)//"
"""A scheme without its colon."""
_SECRETS = (
    (rf"([:;]//+|{_SLIPPED})[^/\s@:]*:\S*@", r"\1"),  # USER:PASSWORD@, whatever the password holds
    (r"(?<!\S)((?:[^\s:]|:(?=//))*?)[^\s:/@'\"=]*:(?!//)\S*@", r"\1"),  # behind a slip of the scheme, or without one
    (rf"({_SLIPPED}|:/+)[^/\s@]*@", r"\1"),  # USER@
    (rf"((?:(?<!hf-datasets):/|{_SLIPPED})[^\s?#]*)[?#]\S*", r"\1"),
)
"""Patterns of what may be secret in a URL, well formed or not, and what is left of each."""


def label(text: str) -> str:
    """A URL, or a text with URLs in it, without users, passwords and queries (but those of data sets): as it may
    appear in messages, logs and manifests. Nothing is left of what may be a password or a part of a path."""
    for secret, left in _SECRETS:
        text = re.sub(secret, left, text)
    return text


def absolute(url: str) -> str:
    """A local path made absolute, for processes with another working directory; a URL unchanged."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))
