"""One share of the samples, streamed through the whole model step by step; its sums go to files.

Step 0 is what comes before the blocks, steps 1 to n are the blocks, step n + 1 is norm and head.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from bot_dist.data.calibration_samples import IGNORED
from bot_dist.errors import InputError
from bot_dist.fit.sites import Moment, Site, gathering
from bot_dist.fit.streamed_model import StreamedModel
from bot_dist.formats.source import Source
from bot_dist.model import Model
from bot_dist.storage.disk import writing
from bot_dist.urls import label

ROWS = 64
"""Tokens whose probabilities are computed together: all of a window's would take as much memory as its logits."""
SAMPLES = "samples.safetensors"
SIMILARITY, CHANGE, LOSS = "block/similarity", "block/change", "loss"
"""Names of sums, besides ``NAME/moment`` and ``NAME/mean``."""


@dataclass(frozen=True, kw_only=True)
class Scratch:
    """A folder in which shares put what they sum up."""

    scratch: str
    """A folder that all nodes see."""
    shares: int
    """Number of shares; share ``i`` has samples ``i``, ``i + shares`` and so on."""

    def part(self, step: int, share: int) -> Path:
        """The file with a share's sums of a step."""
        return Path(self.scratch) / f"part-{step}-{share}.safetensors"

    def put(self, step: int, share: int, sums: dict[str, torch.Tensor]) -> None:
        """A share's sums of a step: all of them or nothing."""
        write_whole(self.part(step, share), sums)

    def sums(self, step: int) -> Iterator[tuple[str, torch.Tensor]]:
        """Sums of all shares, added up in their order whichever was ready first: float64 tensors by name."""
        with ExitStack() as stack:
            parts = [stack.enter_context(safe_open(self.part(step, i), "pt")) for i in range(self.shares)]
            for name in sorted(parts[0].keys()):
                total = parts[0].get_tensor(name).clone()
                for part in parts[1:]:
                    total += part.get_tensor(name)
                yield name, total

    def discard(self, step: int) -> None:
        """Remove the sums of a step."""
        for share in range(self.shares):
            self.part(step, share).unlink(missing_ok=True)


@dataclass(frozen=True, kw_only=True)
class Work(Scratch):
    """Statistics that are to be gathered, as a small and picklable description: the samples are in the scratch folder,
    and so is what comes of them."""

    source: Source
    model: Model
    sites: tuple[Site, ...]
    positions: int
    """Positions of a sample."""
    ahead: ClassVar[Literal[0, 1]] = 1
    """Steps that a share may be ahead of what is put together."""

    @property
    def steps(self) -> int:
        return self.model.sizes["layer"] + 2

    def open(self, share: int) -> Share:
        """The share, to be run from step 0 on, by one process."""
        return Share(self, share)


def write_whole(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A safetensors file, all of it or nothing."""
    partial = path.with_suffix(f".partial-{os.getpid()}")
    with writing(path, sum(tensor.nbytes for tensor in tensors.values())):
        save_file(tensors, partial)
        partial.replace(path)


class Share:
    """Holds one block, one sample's activations and one block's moments at a time; hidden states are in a file."""

    def __init__(self, work: Work, share: int) -> None:
        self._work, self._share = work, share
        samples = load_file(Path(work.scratch) / SAMPLES)
        self._inputs, self._labels = samples["inputs"][share :: work.shares], samples["labels"][share :: work.shares]
        self._model = StreamedModel(work.source, work.model)
        self._hidden = HiddenStates(
            Path(work.scratch) / f"hidden-{share}-{os.getpid()}", work.positions, work.model.sizes["embed"]
        )
        self._left = [site for site in work.sites if not site.layered]
        """Sites around the blocks that have not been reached."""

    def close(self) -> None:
        self._hidden.close()

    def run(self, step: int, keep: bool = True) -> None:
        """Do a step, the one after the last; unless ``keep``, its sums are known and not gathered again.

        Raises InputError when hidden states or the loss are not finite.
        """
        try:
            if step == 0:
                sums, moments = self._before_blocks()
            elif step <= len(self._model.blocks):
                sums, moments = self._block(step - 1, keep)
            else:
                sums, moments = self._after_blocks()
        finally:
            self._model.free()
        self._left = [site for site in self._left if site.name not in moments]
        if not keep:
            return
        for name, moment in moments.items():
            sums |= {f"{name}/moment": moment.products(), f"{name}/mean": moment.total}
        self._work.put(step, self._share, sums)

    def _before_blocks(self) -> tuple[dict[str, torch.Tensor], dict[str, Moment]]:
        with gathering(self._model.module, self._left) as moments:
            for i, sample in enumerate(self._inputs):
                hidden = self._model.before_blocks(sample)
                check_finite(hidden, self._work.source, "before block 0")
                self._hidden[i] = hidden
        return {}, moments

    def _block(self, layer: int, keep: bool) -> tuple[dict[str, torch.Tensor], dict[str, Moment]]:
        self._model.load_block(layer)
        similarity, change = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        chosen = [site for site in self._work.sites if site.layered] if keep else []
        with gathering(self._model.module, chosen, layer) as moments:
            for i in range(len(self._inputs)):
                before = self._hidden[i]
                after = self._model.block(layer, before)
                check_finite(after, self._work.source, f"block {layer}")
                self._hidden[i] = after
                similarity += F.cosine_similarity(before.double(), after.double(), dim=-1).sum()
                change += relative_change(before.double(), after.double()).sum()
        return {SIMILARITY: similarity, CHANGE: change}, moments

    def _after_blocks(self) -> tuple[dict[str, torch.Tensor], dict[str, Moment]]:
        loss, count = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        if not self._left and not bool((self._labels != IGNORED).any()):
            return {LOSS: loss, f"{LOSS}/tokens": count}, {}
        with gathering(self._model.module, self._left) as moments:
            for i, labels in enumerate(self._labels):
                logits = self._model.after_blocks(self._hidden[i])
                if logits is None:
                    continue
                for rows, wanted in zip(logits.split(ROWS), labels.split(ROWS), strict=True):
                    loss += F.cross_entropy(rows, wanted, ignore_index=IGNORED, reduction="sum")
                count += (labels != IGNORED).sum()
        check_finite(loss, self._work.source, "loss")
        return {LOSS: loss, f"{LOSS}/tokens": count}, moments


def check_finite(values: torch.Tensor, source: Source, where: str) -> None:
    """Raises InputError where hidden states, or the loss, are not finite."""
    if not bool(values.isfinite().all()):
        what = "it is NaN or infinity" if where == "loss" else "activations hold NaN or infinity"
        raise InputError(
            f"{label(source.url)}: {where}: {what}; the weights are damaged or of another model: make or download them "
            f"again, or shrink by analysis wavelet, which runs nothing through them"
        )


class HiddenStates:
    """Hidden states of every sample, ``(positions, width)`` in float32, in a file: those asked for are in memory."""

    def __init__(self, path: Path, positions: int, width: int) -> None:
        self._shape = positions, width
        with writing(path):
            self._path, self._file = path, path.open("w+b", buffering=0)

    def __getitem__(self, sample: int) -> torch.Tensor:
        values = torch.empty(self._shape)
        self._seek(sample)
        read = self._file.readinto(_bytes(values))
        assert read == values.nbytes, (sample, read)
        return values

    def __setitem__(self, sample: int, values: torch.Tensor) -> None:
        assert tuple(values.shape) == self._shape, values.shape
        self._seek(sample)
        rest = _bytes(values.contiguous())
        with writing(self._path, values.nbytes):
            while rest:
                rest = rest[self._file.write(rest) :]

    def _seek(self, sample: int) -> None:
        self._file.seek(sample * 4 * self._shape[0] * self._shape[1])

    def close(self) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)


def _bytes(values: torch.Tensor) -> memoryview:
    return memoryview(values.view(torch.uint8).numpy().data).cast("B")


def relative_change(before: torch.Tensor, after: torch.Tensor) -> torch.Tensor:
    """The ratio ``‖after − before‖² / ‖before‖²`` of each row of ``(tokens, width)``; 1 where there was nothing."""
    size, moved = before.square().sum(-1), (after - before).square().sum(-1)
    return torch.where(size > 0, moved / size, 1.0)
