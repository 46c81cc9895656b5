"""Whatever goes wrong, a run ends in the right bytes or in one named error, and no store reads differently.

The runs without the marker ``slow`` are the reduced form; ``python -m tests.chaos`` does all and prints a table.
CHAOS_SEED moves the seeds: what failed with the seed in a test's name is had again by ``-k`` and that name.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.arena import Arena
from tests.chaos.cases import Case
from tests.chaos.endings import RIGHT, SilentDifference, is_right, of_damaged
from tests.chaos.faults import KINDS
from tests.chaos.preparing import prepared, run_one, with_cases

SEED = int(os.environ.get("CHAOS_SEED", "0"))
FEW = {
    "the process dies at an operation of storage": 8,
    "the machine dies at one; what was not synced is lost": 8,
    "SIGKILL of a process at any time": 3,
    "two drivers, same command": 3,
    "two drivers, two plans, one may overwrite": 3,
    "SIGKILL of a shard actor in a phase": 3,
    "a shard actor hangs": 1,
    "a step that kills its actors": 1,
    "a node is lost, another joins": 1,
}
"""Runs of the reduced form. Of others that need nothing there is one; what S3 answers wrongly is in
``tests/integration/test_s3_faults.py`` too."""


def runs() -> Iterator[Any]:
    for name, kind in KINDS.items():
        few = FEW.get(name, 0 if kind.needs or "Ray" in name else 1)
        for i in range(kind.runs):
            marks = [pytest.mark.slow] * (i >= few) + [pytest.mark.ray] * ("ray" in kind.needs or kind.needs == "nodes")
            yield pytest.param(kind.needs, name, SEED + i, marks=marks, id=f"{name}-{SEED + i}")


@pytest.fixture(scope="module")
def made() -> Iterator[tuple[Path, list[Case]]]:
    with with_cases() as made:
        yield made


@pytest.fixture(scope="module")
def arena(request: pytest.FixtureRequest, made: tuple[Path, list[Case]]) -> Iterator[Arena]:
    if request.param == "ray":
        request.getfixturevalue("start_ray")()
    with prepared(made[0], request.param, made[1]) as arena:
        yield arena


@pytest.mark.parametrize(("arena", "kind", "seed"), [*runs()], indirect=["arena"], scope="module")
def test_a_run_ends_in_the_right_bytes_or_a_named_error(arena: Arena, kind: str, seed: int) -> None:
    assert run_one(kind, seed, arena).how


def test_what_is_different_is_noticed(made: tuple[Path, list[Case]], tmp_path: Path) -> None:
    """The judge itself: another store in the place of the one that is wanted."""
    case, url = made[1][0], str(tmp_path / "store")
    assert not is_right(case, url)
    case.transfer(url, **{"transfer.wavelet": "db3"})
    with pytest.raises(SilentDifference):
        is_right(case, url)
    with pytest.raises(SilentDifference):
        of_damaged(case, url, random.Random(0))
    case.transfer(url, overwrite=True)
    assert is_right(case, url)
    assert of_damaged(case, url, random.Random(0)).how == RIGHT
