"""The learning rate: linear warm-up to the peak, cosine to a tenth of it."""

import pytest

from bot_dist.train.schedule import learning_rate


def rates(steps: int, warmup: int) -> list[float]:
    return [learning_rate(step, peak=2.0, warmup=warmup, steps=steps) for step in range(steps)]


def test_warms_up_to_the_peak_then_falls_to_a_tenth():
    got = rates(steps=12, warmup=4)
    assert got[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert got[4:] == sorted(got[4:], reverse=True)
    assert got[-1] == pytest.approx(0.2)


def test_halfway_down_the_cosine_is_the_mean_of_both_ends():
    assert rates(steps=11, warmup=0)[5] == pytest.approx((2.0 + 0.2) / 2)


@pytest.mark.parametrize(("steps", "warmup"), [(1, 0), (1, 1), (2, 2), (3, 10)])
def test_short_runs_have_positive_rates_up_to_the_peak(steps, warmup):
    assert all(0 < rate <= 2.0 for rate in rates(steps, warmup))
