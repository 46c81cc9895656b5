"""Registries: every module of a folder is an entry, named as its file; to add an entry is to add a file.

An entry is imported when it is first asked for, so the names of all cost nothing. A module whose name begins with an
underscore is none: it is what several entries share.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Iterator, Mapping
from typing import TypeVar

from bot_dist.errors import InputError, nearest

Entry = TypeVar("Entry")


class Registry(Mapping[str, Entry]):
    """The entries of a folder by their names, sorted: ``REGISTRY: Registry[Kind] = Registry(Kind, "KIND", __name__,
    __path__, what="…")`` in the folder's ``__init__.py``.

    Every module holds its entry, of type ``kind``, under the name ``constant``. With ``hyphens``, names have them where
    files have underscores.
    """

    def __init__(
        self,
        kind: type[Entry],
        constant: str,
        package: str,
        path: Iterable[str],
        *,
        what: str,
        hyphens: bool = False,
    ) -> None:
        modules = sorted(module.name for module in pkgutil.iter_modules(path) if not module.name.startswith("_"))
        self._modules = {name.replace("_", "-") if hyphens else name: f"{package}.{name}" for name in modules}
        self._kind, self._constant, self._what = kind, constant, what

    def __getitem__(self, name: str) -> Entry:
        module = self._modules[name]
        entry = getattr(importlib.import_module(module), self._constant, None)
        if not isinstance(entry, self._kind):
            raise TypeError(f"{module} is in a registry: its {self._constant} has to be a {self._kind.__name__}")
        return entry

    def __contains__(self, name: object) -> bool:
        return name in self._modules

    def __iter__(self) -> Iterator[str]:
        return iter(self._modules)

    def __len__(self) -> int:
        return len(self._modules)

    def choose(self, name: str, error: type[InputError] = InputError) -> Entry:
        """The entry of a name that a user has given. Raises ``error``, which names the nearest, where there is none."""
        if name not in self:
            raise error(f"unknown {self._what} {name!r}; {nearest(name, self)}")
        return self[name]
