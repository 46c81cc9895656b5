"""The formats that a checkpoint is written in for others, a file each: ``bot_dist export --to NAME``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from bot_dist.registry import Registry

if TYPE_CHECKING:
    from bot_dist.formats.export_result import ExportResult
    from bot_dist.formats.source import Source

DEFAULT = "safetensors"
"""The format of a target whose name asks for no other."""


class Write(Protocol):
    """Writes an export."""

    def __call__(
        self,
        source: Source,
        place: str,
        *,
        dtype: str | None,
        max_shard_bytes: int | None,
        overwrite: bool,
        progress: Callable[[int], None] | None,
    ) -> ExportResult:
        """Write ``source`` to ``place``, a local folder or file, with weights in ``dtype``, one of the format's.

        ``progress`` gets the bytes of each piece of a weight that is written. Raises InputError for a place that can't
        be written to or a value that ``dtype`` does not hold, CheckpointExistsError where something is there already
        that is not replaced, SourceError where the source is not the model that its configuration describes, and
        CheckpointError where the disk is full.
        """


@dataclass(frozen=True, kw_only=True)
class Export:
    """A format that a checkpoint is written in for others."""

    title: str
    """The format's name in messages."""
    write: Write
    """Writes a checkpoint in this format."""
    weight_bytes: Callable[[Source, str | None], int]
    """Counts the bytes of a source's weights in a dtype of this format, of which ``progress`` will tell."""
    dtypes: tuple[str, ...] = ()
    """The dtypes that a user may choose; empty where every weight keeps its own."""
    default_dtype: str | None = None
    """The dtype that is written where none is chosen; None: that of each weight in the source."""
    suffix: str = ""
    """The end of the name of the one file that is written; empty where it is a folder."""
    shards: bool = False
    """Whether the weights are cut into files of at most ``max_shard_bytes``."""
    hub: bool = True
    """Whether Hugging Face's hub takes this format."""


EXPORTS: Registry[Export] = Registry(Export, "EXPORT", __name__, __path__, what="export format")


def export_format(target: str | None) -> str:
    """The name of the format that a target's name asks for by its end."""
    suffixes = {export.suffix: name for name, export in EXPORTS.items() if export.suffix}
    return next((name for suffix, name in suffixes.items() if target is not None and target.endswith(suffix)), DEFAULT)
