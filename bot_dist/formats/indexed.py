"""A source made of files that hold each tensor as one run of bytes: safetensors and GGUF."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch

from bot_dist.errors import SourceError
from bot_dist.storage.files import read_range, read_range_into
from bot_dist.storage.package_urls import near_names
from bot_dist.tensors import PIECE_BYTES, Box, box_shape, runs
from bot_dist.tensors.axes import Parameter
from bot_dist.urls import label

if TYPE_CHECKING:
    from bot_dist.model import Model

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Encodings that are a torch dtype."""

_STORED: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""How numpy sees them; it has no bfloat16, whose bits go through unchanged."""


@dataclass(frozen=True)
class TensorEntry:
    """The place of one tensor in a file, and the encoding of its elements."""

    url: str
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    """Shape of the tensor as ``transformers`` stores it, row-major."""
    encoding: str
    """Encoding of the elements: ``F32``, ``BF16``, …, or a quantisation of GGUF such as ``Q4_1``."""
    block: int = 1
    """Elements per quantisation block, along the last dimension; 1 for plain numbers."""
    rotary_permuted: bool = False
    """Whether rows of each head are stored as ``(head_dim/2, 2)`` where ``transformers`` has ``(2, head_dim/2)``."""

    @property
    def readable(self) -> bool:
        return self.block > 1 or self.encoding in DTYPES

    @property
    def integer(self) -> bool:
        return re.fullmatch(r"BOOL|[IU]\d+", self.encoding) is not None


@dataclass(kw_only=True)
class FileSource:
    """A ``Source`` over an index of tensors. It holds no open file and can be sent to another process."""

    url: str
    format: str
    config: dict[str, Any]
    entries: dict[str, TensorEntry]
    """Index of the tensors by name in ``transformers``; tensors that it has no name for keep the file's."""
    files: dict[str, dict[str, Any]]
    """Identity of each file: ``bytes``, ``header_sha256`` and ``version`` (which changes when it is written again)."""
    optional_prefix: str = ""
    """Prefix that names in the files may lack."""
    notes: tuple[str, ...] = ()
    """Sentences about the source that the user should know."""
    whole_rows: ClassVar[bool] = True

    def check(self, model: Model) -> None:
        """Raise SourceError unless every parameter of ``model`` is there, readable and of its shape, and no other.

        Integer tensors that are no parameters, the family's ``ignored`` ones, and a tied model's copy of its table
        under the head's name are passed over.
        """
        if model.sizes["layer"] > len(self.entries):
            raise SourceError(
                f"{label(self.url)}: {len(self.entries)} tensors can't be the {model.sizes['layer']} layers "
                f"of config.json"
            )
        expected = {self.stored_name(p.name): p for _, _, p in model.parameters()}
        absent = [p.name for name, p in expected.items() if name not in self.entries]
        if absent:
            raise SourceError(
                f"{label(self.url)}: tensor '{absent[0]}' is missing{_more(absent)}; wanted by config.json "
                f"({model.sizes['layer']} layers){near_names(absent[0], self.entries.keys() - expected.keys())}"
            )
        for parameter in expected.values():
            self._find(parameter)
        head = model.family.head
        passed = re.compile("|".join((*model.family.ignored, *([re.escape(head.hf)] if head else ()))))
        unexpected = [
            name
            for name, entry in self.entries.items()
            if name not in expected and not entry.integer and not passed.fullmatch(name)
        ]
        if unexpected:
            raise SourceError(
                f"{label(self.url)}: unexpected tensor '{unexpected[0]}' of shape "
                f"{self.entries[unexpected[0]].shape}{_more(unexpected)}; the model that config.json describes "
                f"(family '{model.family.name}') has no such weight, and leaving it out would change it"
            )

    def dtype(self, parameter: Parameter) -> torch.dtype:
        return DTYPES.get(self._find(parameter).encoding, torch.float32)

    def storage_bytes(self, parameter: Parameter) -> int:
        return self._find(parameter).nbytes

    def learning_rate_factor(self, parameter: Parameter) -> float:
        return 1.0

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        """The box (ranges over the unfused axes) as a contiguous CPU tensor of the box's shape."""
        result = torch.empty(box_shape(box), dtype=self.dtype(parameter))
        self.read_into(parameter, box, result)
        return result

    def read_into(self, parameter: Parameter, box: Box, into: torch.Tensor) -> None:
        """Fill a contiguous or strided ``into`` with the box.

        Reads the rows (first dimension) that the box meets and no other, in pieces of at most ``PIECE_BYTES`` or one
        row (one head where rows are permuted), and crops them. Raises SourceError when the file has fewer bytes.
        """
        if not into.is_contiguous():
            (start, stop), *inner = box
            rows = max(1, PIECE_BYTES * (stop - start) // max(1, into.nbytes))
            for first in range(start, stop, rows):
                last = min(first + rows, stop)
                into[first - start : last - start] = self.read(parameter, ((first, last), *inner))
            return
        entry = self._find(parameter)
        values = (into.view(torch.uint16) if into.dtype == torch.bfloat16 else into).numpy()
        if entry.rotary_permuted:
            axis = parameter.dims[0] - 1
            (start, stop), head_dim = box[axis], parameter.sizes[axis]
            heads = (*box[:axis], (0, head_dim), *box[axis + 1 :])
            whole = np.empty(box_shape(heads), dtype=values.dtype)
            self._read_rows(parameter, entry, heads, head_dim, whole)
            values[...] = whole[(*(slice(None),) * axis, slice(start, stop))]
        else:
            self._read_rows(parameter, entry, box, 1, values)

    def _read_rows(self, parameter: Parameter, entry: TensorEntry, box: Box, unit: int, into: npt.NDArray[Any]) -> None:
        """``read_into`` a contiguous array; rows come in multiples of ``unit`` (those of a head)."""
        split = parameter.dims[0] if len(parameter.dims) > 1 else 0
        columns = parameter.sizes[split:]
        crop = (slice(None), *(slice(start, stop) for start, stop in box[split:]))
        row_bytes = entry.nbytes * math.prod(columns) // parameter.size
        held_bytes = max(row_bytes, math.prod(columns) * self.dtype(parameter).itemsize)
        step = max(PIECE_BYTES // (held_bytes * unit), 1) * unit
        as_stored = entry.block == 1 and unit == 1 and box_shape(box[split:]) == columns
        rows_into = into.reshape(-1, *box_shape(box[split:]))
        done = 0
        for start, stop in runs(parameter.sizes[:split], box[:split]):
            for first in range(start, stop, step):
                last = min(first + step, stop)
                offset, what = entry.offset + first * row_bytes, f"tensor '{parameter.name}'"
                place = rows_into[done : done + last - first]
                done += last - first
                if as_stored:
                    read_range_into(entry.url, offset, place.reshape(-1).view(np.uint8).data, what)
                    continue
                data = read_range(entry.url, offset, offset + (last - first) * row_bytes, what)
                rows = decode(data, entry, last - first)
                if unit > 1:
                    rows = rows.reshape(-1, unit // 2, 2, rows.shape[1]).swapaxes(1, 2)
                place[...] = rows.reshape(last - first, *columns)[crop]

    def provenance(self) -> dict[str, Any]:
        notes = {"notes": list(self.notes)} if self.notes else {}
        return {"url": label(self.url), "format": self.format, "files": self.files, **notes}

    def stored_name(self, name: str) -> str:
        """The name that the files have for a parameter, if they have it."""
        return name if name in self.entries else name.removeprefix(self.optional_prefix)

    def _find(self, parameter: Parameter) -> TensorEntry:
        """The entry of a parameter. Raises SourceError when it is missing, unreadable or of another shape."""
        entry = self.entries.get(self.stored_name(parameter.name))
        where = f"{label(self.url)}: tensor '{parameter.name}'"
        if entry is None:
            raise SourceError(f"{where} is missing")
        if not entry.readable:
            raise SourceError(
                f"{where} has dtype {entry.encoding}, wanted one of {', '.join(DTYPES)}; if the model is quantised, "
                f"dequantise it first (in transformers: model.dequantize(), then save_pretrained)"
            )
        if entry.shape != parameter.shape:
            raise SourceError(f"{where} has shape {entry.shape}, wanted {parameter.shape} by config.json")
        return entry


def decode(data: bytes, entry: TensorEntry, n_rows: int) -> npt.NDArray[Any]:
    """Stored bytes of whole rows as ``(n_rows, columns)`` numbers; bfloat16 as its bits."""
    if entry.block == 1:
        plain: npt.NDArray[Any] = np.frombuffer(data, _STORED[entry.encoding])
        return plain.reshape(n_rows, -1)
    import gguf

    stored = np.frombuffer(data, np.uint8).reshape(n_rows, -1)
    rows: npt.NDArray[np.float32] = gguf.quants.dequantize(stored, gguf.GGMLQuantizationType[entry.encoding])
    return rows


def _more(names: Sequence[str]) -> str:
    return f" (and {len(names) - 1} more)" if len(names) > 1 else ""
