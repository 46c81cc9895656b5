"""Lifting: one pair of operators for the lazy wavelet, Haar and least squares; predictors that no other one beats."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.errors import CalibrationError
from bot_dist.operators import Resample, build_operator, from_dense
from bot_dist.operators.details import complement
from bot_dist.operators.klt import isometry, isometry_centred, klt
from bot_dist.operators.lifting import (
    expanded,
    lifted,
    loudness,
    most_telling,
    paired,
    predictor,
    reading,
    regression,
    split,
)
from tests.conftest import examples

TOLERANCE = 1e-9

seeds = st.integers(0, 2**31)


def signal(n: int, seed: int, tokens: int = 200) -> np.ndarray:
    """(tokens, n): correlated, its mean not zero."""
    rng = np.random.default_rng(seed)
    return (rng.standard_normal((tokens, n)) + 0.5) @ (np.eye(n) + 0.5 * rng.standard_normal((n, n)))


def moment_of(x: np.ndarray) -> np.ndarray:
    return x.T @ x / len(x)


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray, int]:
    """Units, those kept, those dropped, and a seed."""
    n, seed = draw(st.integers(2, 16)), draw(seeds)
    kept, dropped = split(np.random.default_rng(seed).standard_normal(n), draw(st.integers(1, n - 1)))
    return n, kept, dropped, seed


# Splits.


@given(st.lists(st.floats(0, 9), min_size=1, max_size=20), st.data())
def test_a_split_keeps_the_most_important_in_their_order(values: list[float], data: st.DataObject) -> None:
    weights = np.array(values)
    kept, dropped = split(weights, data.draw(st.integers(1, len(values))))
    assert sorted([*kept, *dropped]) == list(range(len(values)))
    assert (np.diff(kept) > 0).all()
    assert (np.diff(dropped) > 0).all()
    assert len(dropped) == 0 or weights[kept].min() >= weights[dropped].max()


def test_of_equals_the_first_are_kept() -> None:
    assert split(np.ones(6), 3)[0].tolist() == [0, 1, 2]


def test_an_importance_that_is_not_finite_is_named() -> None:
    with pytest.raises(CalibrationError, match="unit 1 of 3"):
        split(np.array([1.0, np.nan, 2.0]), 2)


def test_kept_heads_keep_all_of_their_coordinates() -> None:
    assert expanded(np.array([0, 2]), 3).tolist() == [0, 1, 2, 6, 7, 8]
    kept, dropped = split(np.array([3.0, 1.0, 2.0]), 2)
    assert sorted([*expanded(kept, 4), *expanded(dropped, 4)]) == list(range(12))


# Operators.


@given(st.integers(1, 12))
def test_haar_is_the_wavelet_that_predicts_its_neighbour_and_takes_half_the_detail(pairs: int) -> None:
    n = 2 * pairs
    kept, dropped = np.arange(0, n, 2), np.arange(1, n, 2)
    write, read = lifted(n, kept, dropped, np.eye(pairs), np.eye(pairs) / 2)
    haar = build_operator(Resample(n_source=n, n_target=pairs, wavelet="haar")).dense()
    np.testing.assert_allclose(write, haar, atol=TOLERANCE)
    np.testing.assert_allclose(read, 2 * haar, atol=TOLERANCE)


@given(splits())
def test_without_prediction_lifting_is_selection(case: tuple[int, np.ndarray, np.ndarray, int]) -> None:
    n, kept, dropped, seed = case
    weight = np.random.default_rng(seed).standard_normal((n, 3))
    for operator in lifted(n, kept, dropped, np.zeros((len(dropped), len(kept)))):
        np.testing.assert_array_equal(operator @ weight, weight[kept])


@given(splits())
def test_what_is_read_is_what_the_kept_units_tell(case: tuple[int, np.ndarray, np.ndarray, int]) -> None:
    """A function that is linear behind the axis is kept exactly, if the dropped units are functions of the kept."""
    n, kept, dropped, seed = case
    rng = np.random.default_rng(seed)
    x, true = np.empty((50, n)), rng.standard_normal((len(dropped), len(kept)))
    x[:, kept] = rng.standard_normal((50, len(kept)))
    x[:, dropped] = x[:, kept] @ true.T
    update = rng.standard_normal((len(kept), len(dropped)))
    reader = rng.standard_normal((4, n))
    for u in (None, update):
        write, read = lifted(n, kept, dropped, true, u)
        np.testing.assert_allclose(x @ write.T @ read @ reader.T, x @ reader.T, atol=1e-8)


@given(splits())
def test_operators_with_their_details_are_invertible(case: tuple[int, np.ndarray, np.ndarray, int]) -> None:
    n, kept, dropped, seed = case
    rng = np.random.default_rng(seed)
    prediction = predictor(moment_of(signal(n, seed)), kept, dropped, 1e-3)
    update = 0.3 * rng.standard_normal((len(kept), len(dropped)))
    weight = rng.standard_normal((n, 3))
    for u in (None, update):
        for operator in lifted(n, kept, dropped, prediction, u):
            details, undo = complement(from_dense(operator), "lifted")
            bands = np.concatenate([operator @ weight, details.dense() @ weight])
            np.testing.assert_allclose(undo.dense() @ bands, weight, atol=1e-8)


# Predictors.


@given(splits())
def test_no_linear_predictor_is_better(case: tuple[int, np.ndarray, np.ndarray, int]) -> None:
    n, kept, dropped, seed = case
    x = signal(n, seed)
    best = predictor(moment_of(x), kept, dropped, 0.0)
    assert best.shape == (len(dropped), len(kept))
    error = np.mean((x[:, dropped] - x[:, kept] @ best.T) ** 2)
    for size in (1e-3, 0.1, 1.0):
        other = best + size * np.random.default_rng(seed).standard_normal(best.shape)
        assert error < np.mean((x[:, dropped] - x[:, kept] @ other.T) ** 2)
    np.testing.assert_allclose((x[:, dropped] - x[:, kept] @ best.T).T @ x[:, kept] / len(x), 0, atol=1e-8)


def test_a_prediction_from_heads_is_one_of_their_coordinates() -> None:
    """Head 1 repeats head 0 in another order of its coordinates; head 2 is on its own."""
    x = np.random.default_rng(0).standard_normal((100, 3, 4))
    x[:, 1] = x[:, 0, ::-1]
    kept, dropped = expanded(np.array([0, 2]), 4), expanded(np.array([1]), 4)
    found = predictor(moment_of(x.reshape(100, 12)), kept, dropped, 0.0)
    np.testing.assert_allclose(found, np.hstack([np.eye(4)[::-1], np.zeros((4, 4))]), atol=TOLERANCE)


@given(seeds)
def test_a_ridge_is_relative_and_pulls_towards_the_prior(seed: int) -> None:
    x, rng = signal(5, seed), np.random.default_rng(seed)
    y, prior = rng.standard_normal((200, 2)), rng.standard_normal((2, 5))
    cross, moment = y.T @ x / 200, moment_of(x)
    exact, near = regression(cross, moment, 0.0), regression(cross, moment, 1e9, prior)
    np.testing.assert_allclose(near, prior, atol=1e-5)
    np.testing.assert_allclose(regression(cross, moment, 0.0, prior), exact, atol=1e-7)
    damped = regression(cross, moment, 0.1, prior)
    np.testing.assert_allclose(regression(9 * cross, 9 * moment, 0.1, prior), damped, atol=TOLERANCE)
    mean_square = np.trace(moment) / 5
    rows = np.concatenate([x, np.sqrt(200 * 0.1 * mean_square) * np.eye(5)])  # the same as a plain least squares
    wanted = np.concatenate([y, np.sqrt(200 * 0.1 * mean_square) * prior.T])
    np.testing.assert_allclose(damped, np.linalg.lstsq(rows, wanted, rcond=None)[0].T, atol=1e-7)


@pytest.mark.parametrize("tokens", [3, 1])
def test_too_short_a_text_is_named_and_a_ridge_helps(tokens: int) -> None:
    moment = moment_of(signal(8, seed=3, tokens=tokens))
    kept, dropped = np.arange(6), np.arange(6, 8)
    with pytest.raises(CalibrationError, match=r"6 signals to predict from is singular at ridge 0; .* than 6 tokens"):
        predictor(moment, kept, dropped, 0.0)
    assert np.isfinite(predictor(moment, kept, dropped, 1e-3)).all()


def test_silent_units_predict_nothing() -> None:
    with pytest.raises(CalibrationError, match=r"singular at ridge 0\.001;"):
        predictor(np.diag([0.0, 0.0, 1.0]), np.array([0, 1]), np.array([2]), 1e-3)


def test_statistics_that_are_not_finite_are_named() -> None:
    moment = np.eye(3)
    moment[1, 2] = moment[2, 1] = np.nan
    with pytest.raises(CalibrationError, match="not finite"):
        predictor(moment, np.array([0, 1]), np.array([2]), 1e-3)
    with pytest.raises(CalibrationError, match="1 signals with the 3 that predict them is not finite"):
        regression(np.array([[1.0, np.inf, 0.0]]), np.eye(3), 1e-3)


# Which units tell the most.


def left_over(x: np.ndarray, weight: np.ndarray, kept: np.ndarray) -> float:
    """Mean square error of ``W·x`` when the kept coordinates take over the part of the others."""
    dropped = np.setdiff1d(np.arange(x.shape[1]), kept)
    _, read = lifted(x.shape[1], kept, dropped, predictor(moment_of(x), kept, dropped, 0.0))
    return float(np.sum((x @ weight.T - x[:, kept] @ (weight @ read.T).T) ** 2) / len(x))


def greedy(x: np.ndarray, weight: np.ndarray, n_target: int, inner: int, runs: int) -> list[int]:
    """By trying every unit in turn, with the error itself."""
    units = x.shape[1] // inner
    left = [*range(units)]
    while len(left) > n_target:
        counts = [sum(u // (units // runs) == run for u in left) for run in range(runs)]
        may = [u for u in left if counts[u // (units // runs)] * runs > n_target]
        errors = {u: left_over(x, weight, expanded(np.array([v for v in left if v != u]), inner)) for u in may}
        left.remove(min(errors, key=lambda u: errors[u]))
    return left


@given(st.integers(2, 5), st.sampled_from([1, 2, 3]), st.sampled_from([1, 2]), seeds, st.data())
@examples(25)
def test_the_cheapest_unit_is_dropped_again_and_again(
    per_run: int, inner: int, runs: int, seed: int, data: st.DataObject
) -> None:
    n = per_run * runs * inner
    n_target = data.draw(st.integers(1, per_run)) * runs
    x, weight = signal(n, seed), np.random.default_rng(seed).standard_normal((3, n))
    found = most_telling(moment_of(x), weight, 0.0, n_target, inner, runs)
    assert found.tolist() == greedy(x, weight, n_target, inner, runs)


def test_many_are_dropped_together_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight = signal(60, seed=3), np.random.default_rng(3).standard_normal((5, 60))
    one_by_one = most_telling(moment_of(x), weight, 1e-3, 20)
    monkeypatch.setattr("bot_dist.operators.lifting.TOGETHER", 8)
    assert np.isin(most_telling(moment_of(x), weight, 1e-3, 20), one_by_one).mean() > 0.9


def test_of_units_that_repeat_each_other_one_stays() -> None:
    x = np.random.default_rng(0).standard_normal((200, 6))
    x[:, 1::2] = x[:, ::2]
    assert {int(unit) // 2 for unit in most_telling(moment_of(x), np.ones((1, 6)), 1e-6, 3)} == {0, 1, 2}


def test_loudness_is_what_a_unit_alone_puts_out() -> None:
    x, weight = signal(6, seed=1), np.random.default_rng(1).standard_normal((4, 6))
    for unit, found in enumerate(loudness(moment_of(x), weight, inner=2)):
        at = expanded(np.array([unit]), 2)
        np.testing.assert_allclose(found, np.sum((x[:, at] @ weight[:, at].T) ** 2) / len(x))


# Reading a rotated basis.


@given(st.integers(2, 16), seeds, st.data())
def test_reading_is_the_best_from_the_kept_coordinates(n: int, seed: int, data: st.DataObject) -> None:
    n_target = data.draw(st.integers(1, n - 1))
    q = isometry(klt(moment_of(signal(n, seed + 1))), n_target)
    x = signal(n, seed)
    read = reading(moment_of(x), q, 0.0)
    assert read.shape == (n_target, n)
    error = np.sum((x - x @ q.T @ read) ** 2)
    assert error <= np.sum((x - x @ q.T @ q) ** 2) * (1 + TOLERANCE)
    fitted = np.linalg.lstsq(x @ q.T, x, rcond=None)[0]
    np.testing.assert_allclose(read, fitted, atol=1e-6)


@given(st.integers(2, 16), seeds, st.data())
def test_reading_in_the_own_basis_of_a_signal_is_the_rotation(n: int, seed: int, data: st.DataObject) -> None:
    n_target = data.draw(st.integers(1, n))
    moment = moment_of(signal(n, seed))
    q = isometry(klt(moment), n_target)
    np.testing.assert_allclose(reading(moment, q, 1e-3), q, atol=1e-8)


def test_a_large_ridge_reads_by_the_rotation() -> None:
    q = isometry(klt(moment_of(signal(6, seed=1))), 3)
    np.testing.assert_allclose(reading(moment_of(signal(6, seed=2)), q, 1e9), q, atol=1e-6)


@given(st.integers(3, 16), seeds, st.data())
def test_reading_after_a_centred_basis_needs_a_ridge_and_no_mean(n: int, seed: int, data: st.DataObject) -> None:
    """LayerNorm's basis has one dimension less than its width; what it reads is the best of the rest."""
    n_target = data.draw(st.integers(2, n - 1))
    q = isometry_centred(moment_of(signal(n, seed + 1)), n_target)
    x = signal(n, seed)
    x = x - x.mean(axis=1, keepdims=True)
    read = reading(moment_of(x), q, 1e-3)
    np.testing.assert_allclose(read.sum(axis=0), 0, atol=TOLERANCE)
    kept, weight = x @ q.T, np.sqrt(1e-3 * np.sum((x @ q.T) ** 2) / n_target)
    rows, wanted = np.concatenate([kept, weight * np.eye(n_target)]), np.concatenate([x, weight * q])
    np.testing.assert_allclose(read, np.linalg.lstsq(rows, wanted, rcond=None)[0], atol=1e-7)


@given(st.integers(2, 8).flatmap(lambda n: st.tuples(st.just(n), st.integers(-(-n // 2), n))), st.integers(0, 2**31))
def test_pairs_are_those_of_least_cost(sizes: tuple[int, int], seed: int) -> None:
    n, n_target = sizes
    costs = np.random.default_rng(seed).random(n)
    runs = [r for r in itertools.product((1, 2), repeat=n_target) if sum(r) == n]
    starts = [tuple(int(i) for i in np.cumsum((0, *r))[:-1]) for r in runs]
    totals = [
        sum(costs[first] + costs[first + 1] for first, length in zip(s, r, strict=True) if length == 2)
        for s, r in zip(starts, runs, strict=True)
    ]
    assert paired(costs, n_target) == starts[int(np.argmin(totals))]
