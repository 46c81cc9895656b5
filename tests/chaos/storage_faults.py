"""Storage that holds or answers something else than it should."""

from __future__ import annotations

import contextlib
import random
from pathlib import Path
from typing import Any

import pytest

import bot_dist.storage.retry
from bot_dist.storage.files import write_file
from tests.chaos import boundary, damage
from tests.chaos.arena import Arena, Run, Seen, attempt
from tests.chaos.endings import RIGHT, Ending, again, is_right, of_damaged
from tests.chaos.proxy import TRANSIENT, seeded


def of_committed(name: str) -> Run:
    def run(arena: Arena, draw: random.Random) -> Ending:
        case = draw.choice(arena.cases)
        case.transfer(arena.url)
        damage.COMMITTED[name](Path(arena.url), draw)
        ending = of_damaged(case, arena.url, draw, forged=name == damage.FORGED)
        assert ending.how != RIGHT, "nothing was damaged"
        return ending

    return run


def stale_manifest(arena: Arena, draw: random.Random) -> Ending:
    """The manifest of an earlier store that was replaced is put back."""
    case = draw.choice(arena.cases)
    case.transfer(arena.url, **{"transfer.wavelet": "db3"})
    stale = Path(arena.url, "manifest.json").read_bytes()
    case.transfer(arena.url, overwrite=True)
    assert is_right(case, arena.url)
    Path(arena.url, "manifest.json").write_bytes(stale)
    return of_damaged(case, arena.url, draw)


def of_unfinished(name: str) -> Run:
    def run(arena: Arena, draw: random.Random) -> Ending:
        case, url = draw.choice(arena.cases), arena.url
        stop = draw.randrange(10, 25)

        def then(done: int) -> None:
            if done == stop:
                raise boundary.Crashed

        with contextlib.suppress(boundary.Crashed):
            case.transfer(url, Seen(then))
        damage.UNFINISHED[name](Path(url), draw)
        assert attempt(case, url) is None
        assert is_right(case, url)
        return Ending(RIGHT)

    return run


# --- S3 ---


def s3(arena: Arena, draw: random.Random) -> Ending:
    """500, 503 SlowDown, 429, no answer, resets, lost answers and truncated bodies at random, of source and target."""
    return _s3(arena, draw)


def s3_ray(arena: Arena, draw: random.Random) -> Ending:
    """The same, with Ray actors."""
    return _s3(arena, draw, **{"cluster.executor": "ray"})


def _s3(arena: Arena, draw: random.Random, **overrides: Any) -> Ending:
    case, proxy = draw.choice(arena.cases), arena.proxy
    assert proxy is not None
    place = f"s3://chaos/{draw.getrandbits(64):x}-{arena.folder.name}"
    for path in case.source.iterdir():
        write_file(f"{place}/source/{path.name}", path.read_bytes())
    url = f"{place}/store"
    proxy.plan = seeded(draw.getrandbits(32), draw.choice([0.05, 0.15, 0.4]), TRANSIENT)
    begun = len(proxy.exchanges)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bot_dist.storage.retry, "FIRST_WAIT_S", 0.005)
            patch.setattr(bot_dist.storage.retry, "TRIES", draw.choice([2, 4, 8]))
            error = attempt(case, url, source=f"{place}/source", **overrides)
    finally:
        proxy.plan = lambda exchange: None
    wrong = sum(fault is not None for _, fault in proxy.exchanges[begun:])
    ending = again(case, url, source=f"{place}/source")
    return Ending(ending.how, f"{wrong} wrong answers; {error}")
