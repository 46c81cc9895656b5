"""Versions of the code that results were made with."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path

from bot_dist.version import __version__

PACKAGES = ("torch", "deepspeed", "ray", "zarr", "PyWavelets", "transformers")


def versions() -> dict[str, str]:
    """Versions of the packages that results depend on, and the commit of this one, where it is in a clone."""
    own = __version__
    if (commit := _commit()) is not None:
        own += f" at {commit}"
    packages = {name: importlib.metadata.version(name) for name in PACKAGES}
    return {"bot_dist": own, "python": platform.python_version()} | packages


@functools.cache
def _commit() -> str | None:
    """The commit that this package is at, with ``-dirty`` where files differ from it; None where it is in no clone."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None
    git = ("git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*")
    try:
        return subprocess.run(git, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
