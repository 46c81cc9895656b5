"""The storage boundary of this process: operations that are slow, or at which the process or the machine dies."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest

from bot_dist.storage.folder import Storage
from bot_dist.storage.localfile import PARTIAL

OPERATIONS = ("exists", "read", "read_into", "names", "sizes", "write", "create", "sync_folders", "remove")
Call = Callable[[], Any]
Hook = Callable[[Storage, str, tuple[Any, ...], dict[str, Any], Call], Any]


class Crashed(BaseException):
    """The process is dead. No ``except Exception`` sees it."""


@contextlib.contextmanager
def hooked(hook: Hook) -> Iterator[None]:
    """Every operation of every ``Storage`` goes through ``hook``, which calls its last argument to do it."""
    with pytest.MonkeyPatch.context() as patch:
        for operation in OPERATIONS:
            patch.setattr(Storage, operation, _through(hook, operation, getattr(Storage, operation)))
        yield


def _through(hook: Hook, operation: str, original: Callable[..., Any]) -> Callable[..., Any]:
    def call(self: Storage, *args: Any, **options: Any) -> Any:
        return hook(self, operation, args, options, lambda: original(self, *args, **options))

    return call


class Count:
    """How many operations there are."""

    def __init__(self) -> None:
        self.operations = 0
        self._lock = threading.Lock()

    def __call__(self, storage: Storage, operation: str, args: Any, options: Any, call: Call) -> Any:
        with self._lock:
            self.operations += 1
        return call()


class Crash(Count):
    """The process dies at one operation, of which nothing happens (``before``), all (``after``), or, of a write, the
    first bytes of a file on its way (``torn``). Whatever a thread then asks for, it is dead."""

    def __init__(self, at: int, when: Literal["before", "after", "torn"], draw: random.Random) -> None:
        super().__init__()
        self.at, self.when, self.draw = at, when, draw
        self.dead = False

    def __call__(self, storage: Storage, operation: str, args: Any, options: Any, call: Call) -> Any:
        with self._lock:
            if self.dead:
                raise Crashed
            self.operations += 1
            here = self.operations == self.at
            self.dead = here
        if not here:
            return call()
        if self.when == "after":
            call()
        if self.when == "torn" and operation in ("write", "create"):
            data = b"".join(args[1]) if operation == "write" else args[1]
            path = Path(f"{storage.path(args[0])}.{'0' * 32}{PARTIAL}")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data[: self.draw.randrange(len(data) + 1)])
        raise Crashed


class PowerCut(Crash):
    """The machine dies. ``lose`` then takes away what no sync had made durable: of files written without, some are
    gone, empty, cut short or full of zeros; of the names of all others that no folder's sync covers, some are gone."""

    def __init__(self, at: int, when: Literal["before", "after", "torn"], draw: random.Random) -> None:
        super().__init__(at, when, draw)
        self.soft: set[Path] = set()
        """Files whose bytes may not be on the disk."""
        self.unnamed: set[Path] = set()
        """Files that may not be in their folder."""

    def __call__(self, storage: Storage, operation: str, args: Any, options: Any, call: Call) -> Any:
        path = Path(storage.path(args[0] if args and isinstance(args[0], str) else ""))

        def noted() -> Any:
            new = not path.exists()
            result = call()
            with self._lock:
                if operation == "write":
                    self.unnamed |= {path} if new else set()
                    (self.soft.discard if options.get("durable") else self.soft.add)(path)
                elif operation == "sync_folders":
                    above = path.parents
                    self.unnamed = {p for p in self.unnamed if not p.is_relative_to(path) and p.parent not in above}
            return result

        return super().__call__(storage, operation, args, options, noted)

    def lose(self) -> None:
        for path in sorted(p for p in self.unnamed if p.exists() and self.draw.random() < 0.3):
            path.unlink()
        for path in sorted(p for p in self.soft if p.exists() and self.draw.random() < 0.5):
            data = path.read_bytes()
            n = self.draw.randrange(len(data))
            path.write_bytes(self.draw.choice([b"", data[:n], bytes(len(data))]))


class Jitter(Count):
    """Operations take some thousandths of a second, so that two drivers meet in every order."""

    def __init__(self, draw: random.Random) -> None:
        super().__init__()
        self.waits_s = [draw.expovariate(1000) for _ in range(997)]
        self.sleep = threading.Event().wait

    def __call__(self, storage: Storage, operation: str, args: Any, options: Any, call: Call) -> Any:
        self.sleep(self.waits_s[self.operations % len(self.waits_s)])
        return super().__call__(storage, operation, args, options, call)
