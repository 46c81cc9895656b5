"""The learning rate: linear warm-up to the peak, then a cosine or a plateau and a line to a tenth of it."""

import pytest

from bot_dist.train.schedule import learning_rate


def rates(steps: int, warmup: int, **options) -> list[float]:
    return [learning_rate(step, peak=2.0, warmup=warmup, steps=steps, **options) for step in range(steps)]


def test_warms_up_to_the_peak_then_falls_to_a_tenth():
    got = rates(steps=12, warmup=4)
    assert got[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert got[4:] == sorted(got[4:], reverse=True)
    assert got[-1] == pytest.approx(0.2)


def test_halfway_down_the_cosine_is_the_mean_of_both_ends():
    assert rates(steps=11, warmup=0)[5] == pytest.approx((2.0 + 0.2) / 2)


def test_stable_stays_at_the_peak_and_falls_in_a_line():
    got = rates(steps=12, warmup=2, schedule="stable", decay=4)
    assert got == pytest.approx([1.0, *[2.0] * 7, 1.55, 1.1, 0.65, 0.2])
    assert rates(steps=20, warmup=2, schedule="stable") == rates(steps=20, warmup=2, schedule="stable", decay=4)


@pytest.mark.parametrize("options", [{}, {"schedule": "stable"}, {"schedule": "stable", "decay": 9}])
@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 2), (3, 10), (5, 2)])
def test_short_runs_have_positive_rates_up_to_the_peak(steps, warmup, options):
    got = rates(steps, warmup, **options)
    assert all(0 < rate <= 2.0 for rate in got)
    assert got[warmup:] == sorted(got[warmup:], reverse=True)
