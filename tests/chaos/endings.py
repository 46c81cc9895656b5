"""How a run may end: in the right bytes, or in one named error. What reads differently and is not named is silent."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

import bot_dist
from bot_dist.errors import BotDistError, CheckpointMissingError
from bot_dist.events import Event
from bot_dist.events.transfer import StepDone
from bot_dist.pipeline.export import export_store
from bot_dist.plan import DETAILS
from bot_dist.store import CheckpointReader
from bot_dist.tensors import whole
from tests.chaos.cases import Case, transfer

RIGHT = "right bytes"
AGAIN = "right bytes, after the same command again"
VERIFY = "named by verify"


@dataclass(frozen=True)
class Ending:
    """``RIGHT``, ``AGAIN`` or the name of an error, and what else there is to tell."""

    how: str
    detail: str = ""


class SilentDifference(AssertionError):  # noqa: N818
    """A store that reads as another than it should, and nobody says so."""


def same(found: torch.Tensor, wanted: torch.Tensor, what: str) -> None:
    """Raise SilentDifference unless two tensors are equal bit by bit."""
    if found.dtype != wanted.dtype or found.shape != wanted.shape:
        raise SilentDifference(f"{what}: {found.dtype} {tuple(found.shape)}, not {wanted.dtype} {tuple(wanted.shape)}")
    if not torch.equal(found.contiguous().view(torch.uint8), wanted.contiguous().view(torch.uint8)):
        raise SilentDifference(f"{what}: other bytes")


def is_right(case: Case, url: str) -> bool:
    """Whether the case's store is there, whole and clean; False when nothing is committed.

    Raises SilentDifference when it reads as something else, and what its readers raise.
    """
    try:
        reader = CheckpointReader(url)
    except CheckpointMissingError:
        return False
    if (found := reader.manifest.parameters.keys()) != case.tensors.keys():
        raise SilentDifference(f"parameters {found ^ case.tensors.keys()} are too many or missing")
    for name, tensor in reader.tensors(case.tensors):
        same(tensor, case.tensors[name], name)
    if {name: reader.file(name) for name in reader.manifest.files} != case.files:
        raise SilentDifference("other files")
    if damaged := [*bot_dist.verify(url).damaged, *bot_dist.verify(url, quick=True).damaged]:
        raise SilentDifference(f"the right bytes, but verify says {damaged[0]}")
    return True


def again(case: Case, url: str, *, at_least: frozenset[str] = frozenset(), **overrides: object) -> Ending:
    """The ending of a disturbed run that is over: of what it left, or else of the same command once more, which must
    take up the steps ``at_least``."""
    if is_right(case, url):
        return Ending(RIGHT)
    resumed: set[str] = set()

    def on_event(event: Event) -> None:
        if isinstance(event, StepDone) and event.resumed:
            resumed.add(event.step)

    report = case.transfer(url, on_event, **overrides)
    assert report.steps_resumed == len(resumed)
    assert at_least <= resumed, f"done again though recorded: {at_least - resumed}"
    assert is_right(case, url), "nothing committed"
    return Ending(AGAIN, f"{len(resumed)} of {report.steps} steps resumed")


def of_damaged(case: Case, url: str, draw: random.Random, *, forged: bool = False) -> Ending:
    """The ending of reading a damaged store, in every way there is: each gives what was written or raises, and if any
    raises, ``verify`` names it. Raises SilentDifference where one does neither.

    ``forged``: somebody made the digests right again; then it may be ``verify`` alone that tells.
    """
    raised: dict[str, str] = {}
    for way, read in WAYS.items():
        try:
            read(case, url, draw)
        except BotDistError as error:
            raised[way] = type(error).__name__
        except SilentDifference:
            if not forged:
                raise
            raised[way] = VERIFY
    try:
        named = [str(damage) for damage in bot_dist.verify(url).damaged]
    except BotDistError as error:
        named = [str(error)]
    if raised and not named:
        raise SilentDifference(f"verify says nothing of {raised}")
    if not named:
        return Ending(RIGHT) if is_right(case, url) else Ending("nothing committed")
    kinds = sorted({*raised.values()} - {VERIFY})
    return Ending("/".join(kinds) if VERIFY not in raised.values() and kinds else VERIFY, named[0])


def _whole(case: Case, url: str, draw: random.Random) -> None:
    reader = CheckpointReader(url)
    for name, wanted in case.tensors.items():
        parameter = reader.parameter(name)
        found = reader.read(parameter, whole(parameter.sizes))
        same(found, _unfused(wanted, parameter.sizes, name), f"read({name})")


def _boxes(case: Case, url: str, draw: random.Random) -> None:
    reader = CheckpointReader(url)
    for name, wanted in case.tensors.items():
        parameter = reader.parameter(name)
        box = tuple(tuple(sorted(draw.sample(range(n + 1), 2))) for n in parameter.sizes)
        unfused = _unfused(wanted, parameter.sizes, name)
        same(reader.read(parameter, box), unfused[tuple(slice(*r) for r in box)], f"read({name}, {box})")


def _flat(case: Case, url: str, draw: random.Random) -> None:
    reader = CheckpointReader(url)
    for name, wanted in case.tensors.items():
        start, stop = sorted(draw.sample(range(wanted.numel() + 1), 2))
        same(reader.read_flat(name, start, stop), wanted.reshape(-1)[start:stop], f"read_flat({name})")


def _slices(case: Case, url: str, draw: random.Random) -> None:
    reader = CheckpointReader(url)
    for name, wanted in case.tensors.items():
        parameter = reader.parameter(name)
        axis = draw.choice(parameter.axes)
        along = parameter.axes.index(axis)
        halves = [reader.read_slice(name, axis, rank, 2) for rank in range(2) if parameter.sizes[along] > 1]
        if halves:
            whole_again = torch.cat(halves, along)
            same(whole_again, _unfused(wanted, parameter.sizes, name), f"read_slice({name}, {axis})")


def _tensors(case: Case, url: str, draw: random.Random) -> None:
    for name, tensor in CheckpointReader(url).tensors(case.tensors):
        same(tensor, case.tensors[name], f"tensors: {name}")


def _files(case: Case, url: str, draw: random.Random) -> None:
    reader = CheckpointReader(url)
    for name, wanted in case.files.items():
        if reader.file(name) != wanted:
            raise SilentDifference(f"file {name}")


def _source(case: Case, url: str, draw: random.Random) -> None:
    """A transfer that changes nothing, with the store as its source."""
    with tempfile.TemporaryDirectory(dir=Path(url).parent) as folder:
        copy = f"{folder}/copy"
        transfer(url, copy, {}, {"cluster.executor": "local", "cluster.device": "cpu"})
        for name, tensor in CheckpointReader(copy).tensors():
            same(tensor, case.tensors[name], f"transfer of {name}")


def _export(case: Case, url: str, draw: random.Random) -> None:
    with tempfile.TemporaryDirectory(dir=Path(url).parent) as folder:
        export_store(url, f"{folder}/export")
        found = load_file(f"{folder}/export/model.safetensors")
        for name in [name for name in case.tensors if not name.startswith(DETAILS)]:
            same(found[name], case.tensors[name], f"export of {name}")


def _unfused(wanted: torch.Tensor, sizes: tuple[int, ...], name: str) -> torch.Tensor:
    try:
        return wanted.reshape(sizes)
    except RuntimeError:
        raise SilentDifference(f"{name} has the sizes {sizes}") from None


WAYS: dict[str, Callable[[Case, str, random.Random], None]] = {
    "read": _whole,
    "read of a box": _boxes,
    "read_flat": _flat,
    "read_slice": _slices,
    "tensors": _tensors,
    "file": _files,
    "transfer": _source,
    "export": _export,
}
"""Every way to read a store."""
