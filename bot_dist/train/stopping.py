"""Whether a worker is to stop: a signal has come to its process, or the driver asks for it."""

from __future__ import annotations

import faulthandler
import os
import signal
import tempfile
from collections.abc import Callable
from typing import Any


class Stopping:
    """Within the block SIGTERM does not end this process, but is remembered.

    Ray Train calls a worker's function in a thread, where Python installs no signal handlers. ``faulthandler`` does:
    its handler, in C, writes where the thread is to a file, and that this is not empty says that the signal has come.
    """

    def __init__(self, stopped: Callable[[], Any] | None = None) -> None:
        """Take ``stopped``, which asks, as a Ray task, whether the driver wants to stop, where there is one."""
        self._ask = stopped
        self._asked: Any = None
        self._stopped = False

    def __enter__(self) -> Stopping:
        self._file = tempfile.TemporaryFile()  # open as long as the handler may write
        faulthandler.register(signal.SIGTERM, file=self._file, all_threads=False)
        return self

    def __exit__(self, *exception: object) -> None:
        faulthandler.unregister(signal.SIGTERM)
        self._file.close()

    def asked(self) -> bool:
        """Does not wait: what the driver wants is known in the call after."""
        import ray

        if self._ask is not None:
            if self._asked is None:
                self._asked = self._ask()
            elif ray.wait([self._asked], timeout=0)[0]:
                self._stopped |= ray.get(self._asked)
                self._asked = self._ask()
        return self._stopped or os.fstat(self._file.fileno()).st_size > 0
