"""Numbers for people."""

from __future__ import annotations


def size(n: float) -> str:
    """Bytes, in powers of 1000: ``1.5 GB``."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(n) < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


def count(n: float, of: str = "") -> str:
    """How many, in powers of 1000: ``134.5 M``; ``of`` is joined to the prefix, as in ``139.0 GFLOP``."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(n) < 999.95:
            return f"{n:,.0f} {of}".rstrip() if not prefix else f"{n:.1f} {prefix}{of}"
        n /= 1000
    return f"{n:,.1f} E{of}"


def duration(seconds: float) -> str:
    """A stretch of time: ``5.2 s``, ``6 min 3 s``, ``2 h 5 min``."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    if (whole := round(seconds)) < 3600:
        return f"{whole // 60} min {whole % 60} s"
    minutes = round(seconds / 60)
    return f"{minutes // 60} h {minutes % 60} min"
