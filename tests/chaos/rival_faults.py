"""Two drivers on the same target, and one that was given up for dead."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import bot_dist
from bot_dist.errors import CheckpointExistsError
from bot_dist.store import CheckpointReader, CheckpointWriter
from bot_dist.store.arrays import torch_dtype
from tests.chaos import boundary
from tests.chaos.arena import Arena, Seen, attempt
from tests.chaos.endings import RIGHT, Ending, SilentDifference, again, is_right


def two_drivers(arena: Arena, draw: random.Random) -> Ending:
    """Two drivers with the same command: one store, whole."""
    case, url = draw.choice(arena.cases), arena.url
    errors = _both(draw, lambda: attempt(case, url), lambda: attempt(case, url))
    assert None in errors, errors
    ending = again(case, url)
    return Ending(ending.how, str([error for error in errors if error]))


def two_plans(arena: Arena, draw: random.Random) -> Ending:
    """Two drivers with different plans: one's store, whole, and an error for the other."""
    return _two_plans(arena, draw, overwrite=False)


def two_plans_overwrite(arena: Arena, draw: random.Random) -> Ending:
    """The same, where one may replace what the other has done."""
    return _two_plans(arena, draw, overwrite=True)


def _two_plans(arena: Arena, draw: random.Random, *, overwrite: bool) -> Ending:
    case, url, other = draw.choice(arena.cases), arena.url, {"transfer.wavelet": "db3"}
    expected = str(arena.folder / "other")
    case.transfer(expected, **other)
    errors = _both(draw, lambda: attempt(case, url, overwrite=overwrite), lambda: attempt(case, url, **other))
    found = CheckpointReader(url).manifest if Path(url, "manifest.json").exists() else None
    theirs = CheckpointReader(expected).manifest
    if found is not None and found.data == theirs.data:
        assert found.digests == theirs.digests
        if damaged := bot_dist.verify(url).damaged:
            raise SilentDifference(f"the committed store is not whole: {damaged[0]}")
        case.transfer(url, overwrite=True)
    elif found is None:
        case.transfer(url, overwrite=True)
    assert is_right(case, url)
    assert overwrite or errors.count(None) == 1, errors
    return Ending(RIGHT, str(errors))


def zombie(arena: Arena, draw: random.Random) -> Ending:
    """A writer that was given up for dead goes on after another attempt's commit, and tries to commit."""
    case, url = draw.choice(arena.cases), arena.url
    stop = draw.randrange(1, 20)

    class Stopped(BaseException):
        pass

    def then(done: int) -> None:
        if done == stop:
            raise Stopped

    with contextlib.suppress(Stopped):
        case.transfer(url, Seen(then), **{"transfer.wavelet": "db3"})
    (name,) = os.listdir(f"{url}/data")
    old = CheckpointWriter.open(url, name)
    case.transfer(url, overwrite=True)
    digests: dict[str, dict[str, bytes]] = {}
    for name, stored in old.stored.items():
        dtype = torch_dtype(stored.dtype)
        for shard in stored.shards():
            zeros = torch.zeros([b - a for a, b in shard], dtype=dtype)
            digests.setdefault(name, {})[stored.shard_key(shard)] = old.write(name, shard, zeros)
    assert is_right(case, url)
    with pytest.raises(CheckpointExistsError):
        old.commit(digests, {})
    assert is_right(case, url)
    return Ending(RIGHT, "CheckpointExistsError")


def _both(draw: random.Random, *drivers: Callable[[], str | None]) -> list[str | None]:
    """Both at the same time, storage slow; the errors that they end in. What is no named error is raised."""
    found: list[str | None] = [None] * len(drivers)
    raised: list[BaseException] = []

    def drive(i: int) -> None:
        try:
            found[i] = drivers[i]()
        except BaseException as error:
            raised.append(error)

    late_s = draw.choice([0.0, draw.uniform(0, 0.3)])
    with boundary.hooked(boundary.Jitter(draw)):
        threads = [threading.Thread(target=drive, args=(i,)) for i in range(len(drivers))]
        for thread in threads:
            thread.start()
            time.sleep(late_s)
        for thread in threads:
            thread.join()
    for error in raised:
        raise error
    return found
