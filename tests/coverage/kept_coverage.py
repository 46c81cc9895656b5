"""A plugin of coverage.py that writes at once what a process has run: Ray's workers and killed ones end without a word.

Coverage's own saving at the exit stays; this one writes the same facts before.
"""

from __future__ import annotations

import threading
import time
from typing import Any

from coverage import Coverage

PERIOD_S = 0.1
"""What a process that is killed may have done without a trace."""
LINE, FROM, TO = (1 << 28) - 1, 1 << 56, 1 << 57
"""How coverage's tracer packs an arc: two line numbers of 28 bits, and the signs of both."""


def coverage_init(registry: Any, options: Any) -> None:
    """Called once in each process, and again in each fork."""
    threading.Thread(target=_keep, name="coverage", daemon=True).start()


def _keep() -> None:
    time.sleep(PERIOD_S)
    collector: Any = getattr(Coverage.current(), "_collector", None)
    written: dict[str, set[Any]] = {}
    while collector is not None:
        new = {}
        for file, arcs in collector.data.copy().items():
            if len(arcs) > len(written.setdefault(file, set())):
                new[file] = arcs.copy() - written[file]
                written[file] |= new[file]
        if new:
            arcs = {file: [_unpacked(arc) for arc in packed] for file, packed in new.items()}
            collector.covdata.add_arcs(collector.mapped_file_dict(arcs))
        time.sleep(PERIOD_S)


def _unpacked(arc: Any) -> tuple[int, int]:
    if isinstance(arc, tuple):
        return arc
    first, last = arc & LINE, arc >> 28 & LINE
    return -first if arc & FROM else first, -last if arc & TO else last
