"""The result of an export, whatever its format."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bot_dist.formats.check_export import LogitsCheck
from bot_dist.results import Result, Row
from bot_dist.units import size


@dataclass(frozen=True, kw_only=True, repr=False)
class ExportResult(Result):
    """The result of an export."""

    folder: str
    """The folder that was written, or the file, where it is one; on the hub its URL."""
    files: tuple[str, ...]
    """Names of the files in the folder, sorted."""
    n_parameters: int
    """Parameters of the model."""
    weight_bytes: int
    """Bytes of the tensors, without headers."""
    tokenizer: bool
    """Whether a tokenizer is among the files, or in the file."""
    notes: tuple[str, ...] = ()
    """Sentences that the user should know."""
    source: str = ""
    """URL of what was exported, without secrets."""
    seconds: float = 0.0
    """Seconds that the export took."""
    logits: LogitsCheck | None = None
    """How the export compares with the trained model; None where that was not asked for."""

    def rows(self) -> Iterator[Row]:
        yield "source", self.source
        yield "written", f"{self.folder}: {', '.join(self.files)}"
        yield "parameters", f"{self.n_parameters:,} in {size(self.weight_bytes)}"
        yield "tokenizer", "with it" if self.tokenizer else "none"
        yield "seconds", f"{self.seconds:.1f}"
        if self.logits is not None:
            yield "logits", str(self.logits)
        for note in self.notes:
            yield "note", note
