"""Resources that this process may use, and those that it has used."""

from __future__ import annotations

import os
import resource
from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
"""Files of Linux that tell the peak of resident memory, and begin it anew; other systems have neither."""
MOST_THREADS = 32


def usable_cpus() -> int:
    """CPUs that it may run on: what a scheduler or ``taskset`` leaves it."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def default_threads() -> int:
    """Threads that read and compute in turn: two per core, so that one reads while the other computes."""
    return min(MOST_THREADS, 2 * usable_cpus())


def reset_peak_rss() -> None:
    """Let the kernel's peak of resident memory begin anew, so that it does not show what was before."""
    if CLEAR.exists():
        CLEAR.write_text("5")


def peak_rss_bytes() -> int:
    """Peak resident memory since ``reset_peak_rss``; on systems that can't, since the process began."""
    for line in STATUS.read_text().splitlines() if STATUS.exists() else ():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
