"""URLs and paths as text."""

from __future__ import annotations

import os
import re

DATASETS = "hf-datasets://"
"""Of what Hugging Face's ``datasets`` loads by name; its query says which part, and holds no secret."""


def label(text: str) -> str:
    """A URL, or a text with URLs in it, without users, passwords and queries (but those of data sets): as it may
    appear in messages, logs and manifests."""
    text = re.sub(r"://[^/\s@]*@", "://", text)
    return re.sub(r"((?<!hf-datasets)://[^\s?#]*)[?#]\S*", r"\1", text)


def absolute(url: str) -> str:
    """A local path made absolute, for processes with another working directory; a URL unchanged."""
    return url if "://" in url else os.path.abspath(os.path.expanduser(url))
