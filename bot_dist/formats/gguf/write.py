"""Writing GGUF as a stream: metadata and positions first (by the package ``gguf``), then each tensor piece by piece."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from bot_dist.errors import FamilyError, InputError, MissingPackageError
from bot_dist.formats.source import Source
from bot_dist.model import FAMILIES, Model, Weight
from bot_dist.model.gguf import ROTARY, GgufArchitecture, gguf_name, module_of, rope_factors
from bot_dist.tensors import PIECE_BYTES
from bot_dist.tensors.axes import Parameter

if TYPE_CHECKING:
    from gguf import GGUFWriter

Encoding = Literal["f32", "f16", "bf16", "q8_0"]
"""Encoding of matrices. Norms, biases and tables of positions are always float32, as llama.cpp wants them."""

_FILE_TYPES = {"f32": 0, "f16": 1, "q8_0": 7, "bf16": 32}
"""Value of ``general.file_type`` for each encoding of matrices."""

_LARGEST = {"F16": 65504.0, "Q8_0": 127 * 65504.0}
"""Largest value that has a finite encoding."""


@dataclass(frozen=True, kw_only=True)
class GgufTensor:
    """A parameter as it goes into the file."""

    name: str
    parameter: Parameter
    order: tuple[int, ...]
    """The parameter's axes as they come in the file, the outermost first."""
    shape: tuple[int, ...]
    """Shape in the file, row-major, of one or two dimensions."""
    encoding: str
    """Encoding by the name that ``gguf`` has for it: ``F32``, ``F16``, ``BF16`` or ``Q8_0``."""
    rotary: int | None
    """Place in ``order`` of a head's coordinates, where they are stored in pairs; None where they are not."""
    offset: float
    """Number that is added to every value."""

    @property
    def nbytes(self) -> int:
        from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

        block, nbytes = GGML_QUANT_SIZES[GGMLQuantizationType[self.encoding]]
        return math.prod(self.shape) // block * nbytes


@dataclass(frozen=True, kw_only=True)
class GgufFile:
    """All that a file will say: decided, and refused if need be, before anything is written."""

    architecture: str
    metadata: dict[str, Any]
    """Metadata of the architecture, by keys without its prefix."""
    tensors: tuple[GgufTensor, ...]
    factors: tuple[float, ...]
    """Values of the tensor ``rope_freqs.weight``; empty where there is none."""
    notes: tuple[str, ...]
    """Sentences that the user should know."""


def plan_gguf(model: Model, config: Mapping[str, Any], encoding: Encoding) -> GgufFile:
    """How ``model``, of this configuration with all its defaults, is written. Reads nothing.

    A matrix whose rows are no whole blocks of ``q8_0`` is written as ``f16``, as llama.cpp's converter does it. Raises
    FamilyError where GGUF has no architecture for the model, or one that does not compute it; MissingPackageError
    without the package ``gguf``.
    """
    try:
        import gguf  # noqa: F401
    except ImportError as error:
        raise MissingPackageError("writing .gguf files needs the package 'gguf'; pip install gguf") from error
    architecture = _architecture(model)
    metadata = architecture.metadata(config, model.sizes)
    tensors = tuple(
        _tensor(w, model.parameter(w, layer), layer, architecture, encoding)
        for w in model.weights
        for layer in range(model.weight_layers(w))
    )
    notes = []
    fallen_back = [t for t in tensors if encoding == "q8_0" and t.encoding == "F16"]
    if fallen_back:
        notes.append(
            f"{len(fallen_back)} of {len(tensors)} tensors are f16: their rows are no multiple of 32, the first is "
            f"'{fallen_back[0].name}' with {fallen_back[0].shape[1]}"
        )
    context = config.get("max_position_embeddings", metadata["context_length"])
    if metadata["context_length"] < context:
        notes.append(
            f"the context length is {metadata['context_length']}, not {context}: attention looks at a window of so "
            f"many tokens, which llama.cpp does not do in the architecture '{architecture.name}'"
        )
    factors = rope_factors(config.get("rope_parameters") or {}, model.sizes["head_dim"])
    return GgufFile(
        architecture=architecture.name,
        metadata=metadata,
        tensors=tensors,
        factors=tuple(factors or ()),
        notes=tuple(notes),
    )


def write_gguf(
    path: Path,
    source: Source,
    file: GgufFile,
    encoding: Encoding,
    describe: Callable[[GGUFWriter], None],
    progress: Callable[[int], None],
) -> None:
    """Write the file, durably. ``describe`` adds metadata of other kinds (of the model, and the tokenizer's).

    ``progress`` gets the bytes of each piece of a tensor. Holds pieces of ``PIECE_BYTES`` in float32, or
    of one index along a tensor's outermost axis (a head) where that is more. Raises InputError on a value that has no
    such encoding.
    """
    import gguf

    writer = gguf.GGUFWriter(path, file.architecture)
    writer.add_type("model")
    writer.add_file_type(_FILE_TYPES[encoding])
    if encoding == "q8_0":
        writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add: dict[type, Callable[[str, Any], None]] = {
        bool: writer.add_bool,
        int: writer.add_uint32,
        float: writer.add_float32,
        str: writer.add_string,
    }
    for key, value in file.metadata.items():
        add[type(value)](f"{file.architecture}.{key}", value)
    describe(writer)
    for tensor in file.tensors:
        kind = gguf.GGMLQuantizationType[tensor.encoding]
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.nbytes, raw_dtype=kind)
    factors = np.asarray(file.factors, np.float32)
    if factors.size:
        writer.add_tensor_info("rope_freqs.weight", factors.shape, factors.dtype, factors.nbytes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    with path.open("ab") as out:
        for tensor in file.tensors:
            _pad(out)
            for rows in _pieces(source, tensor):
                encoded = _encoded(rows, tensor)
                out.write(encoded.data)
                progress(encoded.nbytes)
        _pad(out)
        out.write(factors.data)
        _pad(out)
        out.flush()
        os.fsync(out.fileno())


def _architecture(model: Model) -> GgufArchitecture:
    model_type = model.config["model_type"]
    known = sorted({t for family in FAMILIES.values() for t in family.gguf})
    if model_type not in model.family.gguf:
        raise FamilyError(
            f"architecture {model_type!r} is not exported to GGUF (these are: {', '.join(known)}); export safetensors"
        )
    architecture = model.family.gguf[model_type]
    if architecture.head == "tied" and not model.tied:
        raise FamilyError(
            f"llama.cpp's architecture '{architecture.name}' has no output head of its own, and this model's is untied "
            f"(by a rotation of the residual width?); shrink with transfer.basis=permutation, or export safetensors"
        )
    if architecture.head == "own" and model.tied:
        raise FamilyError(
            f"llama.cpp's architecture '{architecture.name}' wants an output head of its own, and this model's is its "
            f"embedding; export safetensors"
        )
    return architecture


def _tensor(
    weight: Weight, parameter: Parameter, layer: int, architecture: GgufArchitecture, encoding: Encoding
) -> GgufTensor:
    name = gguf_name(weight)
    assert name is not None, weight
    axes = list(range(len(parameter.axes)))
    out = axes[: parameter.dims[0]]
    if len(parameter.dims) > 1 and weight.kind == "matrix" and weight.uses[0].role == "read":
        out = axes[parameter.dims[0] :]  # Conv1D: (in, out)
    out.sort(key=lambda i: parameter.axes[i] != "qkv")
    columns = [i for i in axes if i not in out]
    sizes = parameter.sizes
    shape = tuple(math.prod(sizes[i] for i in dim) for dim in (out, columns) if dim)
    rotary = architecture.rotary_permuted and module_of(weight.name) in ROTARY
    return GgufTensor(
        name=name.format(layer=layer),
        parameter=parameter,
        order=(*out, *columns),
        shape=shape,
        encoding=_encoding(weight, shape, encoding),
        rotary=out.index(parameter.axes.index("head_dim")) if rotary else None,
        offset=weight.offset,
    )


def _encoding(weight: Weight, shape: tuple[int, ...], encoding: Encoding) -> str:
    """The encoding of a tensor by llama.cpp's own rule (``conversion/base.py``: ``prepare_tensors``)."""
    if len(shape) == 1 or weight.name == "position":
        return "F32"
    return "F16" if encoding == "q8_0" and shape[1] % 32 else encoding.upper()


def _pieces(source: Source, tensor: GgufTensor) -> Iterator[npt.NDArray[np.float32]]:
    """The tensor's rows in order, as float32."""
    sizes, outermost = tensor.parameter.sizes, tensor.order[0]
    step = max(1, PIECE_BYTES * sizes[outermost] // (4 * tensor.parameter.size))
    rows = (-1, *tensor.shape[1:])
    for start in range(0, sizes[outermost], step):
        box = [(0, size) for size in sizes]
        box[outermost] = start, min(start + step, sizes[outermost])
        values = source.read(tensor.parameter, tuple(box)).float().permute(tensor.order)
        if tensor.rotary is not None:
            axis, half = tensor.rotary, values.shape[tensor.rotary] // 2
            values = values.unflatten(axis, (2, half)).transpose(axis, axis + 1)
        piece: npt.NDArray[np.float32] = values.reshape(rows).numpy()
        yield piece + np.float32(tensor.offset) if tensor.offset else piece


def _encoded(rows: npt.NDArray[np.float32], tensor: GgufTensor) -> npt.NDArray[Any]:
    """Raises InputError where a value is not finite, or would not be."""
    import gguf

    peak = float(np.maximum(rows.max(), -rows.min()))
    largest = _LARGEST.get(tensor.encoding, float(np.finfo(np.float32).max))
    if not peak <= largest:
        limit = f"{tensor.encoding.lower()} holds up to {largest:g}; use --dtype bf16"
        raise InputError(
            f"tensor '{tensor.parameter.name}': the largest value is {peak:g}, and "
            + (limit if math.isfinite(peak) else "a runtime needs finite ones; mend the model first")
        )
    encoded: npt.NDArray[Any] = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[tensor.encoding])
    return np.ascontiguousarray(encoded)


def _pad(out: BinaryIO) -> None:
    from gguf import GGUF_DEFAULT_ALIGNMENT

    out.write(bytes(-out.tell() % GGUF_DEFAULT_ALIGNMENT))
