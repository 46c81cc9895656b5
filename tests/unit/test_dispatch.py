"""Who does which step, when actors are slow, hang and die. Time is simulated."""

from __future__ import annotations

import heapq
import itertools
from collections import Counter
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.execute import dispatch
from bot_dist.execute.dispatch import COPIES, LIVES, STRAGGLER, STRAGGLER_S, Dispatch
from bot_dist.plan import LANES, Step
from tests.conftest import examples


def step(i: int, owner: int = 0) -> Step:
    return Step(id=f"step-{i}", module=0, owner=owner, target=((0, 1),), source=(((0, 1),),), core=((0, 1),))


def finish(run: Dispatch, rank: int, start_s: float, stop_s: float) -> Step:
    """A step that an actor takes and finishes."""
    taken = run.take(rank, start_s)
    assert taken is not None
    assert run.done(taken, rank, stop_s)
    return taken


def test_own_steps_come_first_in_order() -> None:
    run = Dispatch([step(0, 0), step(1, 1), step(2, 0)], actors=2)
    assert [run.take(0, 0.0), run.take(0, 0.0), run.take(1, 0.0)] == [step(0, 0), step(2, 0), step(1, 1)]
    assert run.left == 3


def test_who_has_none_left_takes_the_last_of_whoever_has_most() -> None:
    run = Dispatch([step(0, 0), *(step(i, 1) for i in range(1, 4)), step(4, 2), step(5, 2)], actors=3)
    finish(run, 0, 0.0, 1.0)
    assert run.take(0, 1.0) == step(3, 1)


def test_nothing_is_left_to_take_while_others_are_in_time() -> None:
    run = Dispatch([step(0, 0), step(1, 1)], actors=2)
    finish(run, 0, 0.0, 1.0)
    assert run.take(1, 0.0) == step(1, 1)
    assert run.take(0, STRAGGLER_S) is None
    assert run.left == 1


def test_a_straggler_is_done_twice_and_counts_once() -> None:
    run = Dispatch([step(i, i) for i in range(3)], actors=3)
    slow = run.take(1, 0.0)
    assert slow == step(1, 1)
    finish(run, 0, 0.0, 1.0)
    finish(run, 2, 0.0, 1.0)
    assert run.take(1, STRAGGLER_S + 0.1) is None  # its own
    assert run.take(0, STRAGGLER_S + 0.1) == slow
    assert run.take(2, 100.0) is None  # two are at it
    assert run.done(slow, 0, 101.0)
    assert not run.done(slow, 1, 102.0)
    assert run.left == 0


def test_steps_that_all_take_long_are_no_stragglers() -> None:
    run = Dispatch([step(0, 0), step(1, 1)], actors=2)
    run.take(1, 0.0)
    finish(run, 0, 0.0, 100.0)
    assert run.take(0, STRAGGLER * 100.0) is None
    assert run.take(0, STRAGGLER * 100.0 + 0.1) == step(1, 1)


def test_before_the_first_result_nothing_is_known_to_be_slow() -> None:
    run = Dispatch([step(0, 0)], actors=2)
    run.take(0, 0.0)
    assert run.take(1, 1000.0) is None


def test_what_a_dead_actor_was_doing_is_done_by_others() -> None:
    run = Dispatch([step(0, 0), step(1, 0)], actors=2)
    run.take(0, 0.0)
    assert run.lost(0) == []
    assert [run.take(1, 1.0), run.take(1, 1.0)] == [step(1, 0), step(0, 0)]


def test_a_copy_that_lives_goes_on_when_the_other_dies() -> None:
    run = Dispatch([step(0, 0), step(1, 1)], actors=2)
    finish(run, 0, 0.0, 1.0)
    slow = run.take(1, 0.0)
    assert run.take(0, 50.0) == slow
    assert run.lost(1) == []
    assert run.take(1, 51.0) is None
    assert slow is not None
    assert run.done(slow, 0, 52.0)


def test_a_step_that_costs_too_many_actors_is_the_reason() -> None:
    run = Dispatch([step(0, 0), step(1, 1)], actors=2)
    for _ in range(LIVES - 1):
        assert run.take(0, 0.0) == step(0, 0)
        assert run.lost(0) == []
    assert run.take(0, 0.0) == step(0, 0)
    assert run.lost(0) == [step(0, 0)]


def test_an_actor_that_dies_idle_costs_no_step_a_life() -> None:
    run = Dispatch([step(0, 0)], actors=2)
    for _ in range(2 * LIVES):
        assert run.lost(1) == []
    finish(run, 0, 0.0, 1.0)
    assert run.left == 0


@dataclass
class Actor:
    """How one actor of a simulation behaves."""

    seconds_per_step: float
    dies_in: frozenset[int] = frozenset()
    """Which of the steps that it takes up it dies in, half way through; another takes its place at once."""
    hangs_in: int | None = None
    """Which it never finishes, with all that it takes up afterwards."""
    taken: int = 0
    lane: dict[str, float] = field(default_factory=dict)
    """When the steps in progress end."""
    life: int = 0
    hung: bool = False


actors = st.builds(
    Actor,
    seconds_per_step=st.floats(0.01, 30),
    dies_in=st.frozensets(st.integers(1, 20), max_size=LIVES - 1),
    hangs_in=st.none(),
)
hanging = st.builds(Actor, seconds_per_step=st.floats(0.01, 30), hangs_in=st.integers(1, 10))


def simulated(run: Dispatch, crew: list[Actor]) -> tuple[Counter[str], Counter[str], int]:
    """First results and starts per step, and the most copies in progress at a time, when all steps are done. Fails when
    they never are."""
    firsts: Counter[str] = Counter()
    starts: Counter[str] = Counter()
    most, now_s, order = 0, 0.0, itertools.count()
    events: list[tuple[float, int, int, int, Step, bool]] = []
    while run.left:
        for rank, actor in enumerate(crew):
            while len(actor.lane) < LANES and (taken := run.take(rank, now_s)) is not None:
                assert taken.id not in actor.lane, "one actor does a step twice"
                starts[taken.id] += 1
                actor.taken += 1
                actor.hung = actor.hung or actor.taken == actor.hangs_in
                dies = actor.taken in actor.dies_in
                ends_s = now_s + actor.seconds_per_step * (0.5 if dies else 1)
                actor.lane[taken.id] = ends_s
                if not actor.hung:
                    heapq.heappush(events, (ends_s, next(order), rank, actor.life, taken, dies))
        doing = Counter(id for actor in crew for id in actor.lane if id not in firsts)
        most = max(most, *doing.values(), 0)
        if not events or events[0][0] > now_s + 1:  # the driver looks again every second
            now_s += 1
            assert now_s < 10_000, "steps are left, and nobody does them"
            continue
        now_s, _, rank, life, ended, dies = heapq.heappop(events)
        actor = crew[rank]
        if life != actor.life:
            continue  # of one that has died since
        if dies:
            assert run.lost(rank) == []
            actor.lane, actor.life = {}, actor.life + 1
            continue
        del actor.lane[ended.id]
        firsts[ended.id] += run.done(ended, rank, now_s)
    return firsts, starts, most


@examples(200)
@given(crew=st.lists(actors, min_size=1, max_size=6), owners=st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_every_step_has_one_first_result_whoever_dies(crew: list[Actor], owners: list[int]) -> None:
    limit, dispatch.LIVES = dispatch.LIVES, 10**9  # here no step is to blame
    try:
        steps = [step(i, owner % len(crew)) for i, owner in enumerate(owners)]
        firsts, starts, most = simulated(Dispatch(steps, len(crew)), crew)
    finally:
        dispatch.LIVES = limit
    assert firsts == Counter({s.id: 1 for s in steps})
    assert most <= COPIES
    deaths = sum(actor.life for actor in crew)
    assert starts.total() <= COPIES * (len(steps) + LANES * deaths)


@examples(200)
@given(
    crew=st.lists(actors, min_size=2, max_size=5),
    hung=hanging,
    owners=st.lists(st.integers(0, 5), min_size=8, max_size=40),
)
def test_what_a_hung_actor_has_is_done_by_others(crew: list[Actor], hung: Actor, owners: list[int]) -> None:
    limit, dispatch.LIVES = dispatch.LIVES, 10**9
    try:
        everybody = [*crew, hung]
        steps = [step(i, owner % len(everybody)) for i, owner in enumerate(owners)]
        firsts, _, most = simulated(Dispatch(steps, len(everybody)), everybody)
    finally:
        dispatch.LIVES = limit
    assert firsts == Counter({s.id: 1 for s in steps})
    assert most <= COPIES


@pytest.mark.parametrize("actors", [1, 3])
def test_a_poison_step_ends_the_run_though_others_get_done(actors: int) -> None:
    run = Dispatch([step(i, i % actors) for i in range(9)], actors)
    for turn in itertools.count():
        rank = turn % actors
        taken = run.take(rank, float(turn))
        if taken is None:
            continue
        if taken.id != "step-4":
            assert run.done(taken, rank, turn + 0.5)
        elif fatal := run.lost(rank):
            break
    assert [s.id for s in fatal] == ["step-4"]
