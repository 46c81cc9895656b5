"""Bases fitted to a signal: isometries that hold the most of its energy, and LayerNorm's, which keep the mean apart."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.errors import CalibrationError
from bot_dist.operators.klt import isometry, isometry_centred, klt

TOLERANCE = 1e-10

widths = st.integers(2, 24)
seeds = st.integers(0, 2**31)


def signal(n: int, seed: int, tokens: int = 100) -> np.ndarray:
    """(tokens, n): correlated, its energy falling over directions that are no axis, its mean not zero."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((n, n)) * 0.8 ** np.arange(n)[:, None]
    return (rng.standard_normal((tokens, n)) + 0.5) @ mixing


def moment_of(x: np.ndarray) -> np.ndarray:
    return x.T @ x / len(x)


def random_isometry(n_target: int, n: int, seed: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(seed).standard_normal((n, n_target)))[0].T


@given(widths, seeds)
def test_a_basis_is_orthonormal_and_its_energies_are_those_of_the_signal(n: int, seed: int) -> None:
    x = signal(n, seed)
    basis = klt(moment_of(x))
    np.testing.assert_allclose(basis.vectors @ basis.vectors.T, np.eye(n), atol=TOLERANCE)
    measured = np.mean((x @ basis.vectors.T) ** 2, axis=0)
    np.testing.assert_allclose(basis.energies, measured, atol=TOLERANCE * measured[0])
    assert (np.diff(basis.energies) <= 0).all()
    assert (basis.energies >= 0).all()


@given(widths, seeds, st.data())
def test_no_isometry_holds_more_energy(n: int, seed: int, data: st.DataObject) -> None:
    n_target = data.draw(st.integers(1, n))
    x = signal(n, seed)
    basis = klt(moment_of(x))
    q = isometry(basis, n_target)
    held = np.sum((x @ q.T) ** 2) / len(x)
    np.testing.assert_allclose(held, basis.energies[:n_target].sum(), rtol=TOLERANCE)
    other = random_isometry(n_target, n, seed)
    assert np.sum((x @ other.T) ** 2) / len(x) <= held * (1 + TOLERANCE)


@given(widths, seeds)
def test_signs_do_not_depend_on_the_solver(n: int, seed: int) -> None:
    basis = klt(moment_of(signal(n, seed)))
    for vector in basis.vectors:
        assert vector[np.argmax(np.abs(vector))] > 0


def test_rounding_does_not_choose_the_sign_of_tied_components() -> None:
    for noise in (1e-12, -1e-12):
        vector = np.array([1.0, -1 - noise]) / np.sqrt(2)
        np.testing.assert_allclose(klt(np.outer(vector, vector)).vectors[0], [np.sqrt(0.5), -np.sqrt(0.5)], atol=1e-9)


def test_directions_without_energy_have_energy_zero() -> None:
    moment = moment_of(signal(12, seed=1, tokens=3))
    assert (klt(moment).energies >= 0).all()
    assert (klt(moment).energies[3:] < 1e-12 * klt(moment).energies[0]).all()


@given(widths, seeds, st.data())
def test_the_centred_isometry_keeps_the_mean_out_on_both_sides(n: int, seed: int, data: st.DataObject) -> None:
    n_target = data.draw(st.integers(2, n))
    q = isometry_centred(moment_of(signal(n, seed)), n_target)
    assert q.shape == (n_target, n)
    centring = np.eye(n_target) - 1 / n_target
    np.testing.assert_allclose(q @ q.T, centring, atol=TOLERANCE)
    np.testing.assert_allclose(q @ np.ones(n), 0, atol=TOLERANCE)
    np.testing.assert_allclose(np.ones(n_target) @ q, 0, atol=TOLERANCE)


@given(widths, seeds, st.data())
def test_the_centred_isometry_holds_the_most_of_the_centred_signal(n: int, seed: int, data: st.DataObject) -> None:
    n_target = data.draw(st.integers(2, n))
    x = signal(n, seed)
    centred = x - x.mean(axis=1, keepdims=True)
    q = isometry_centred(moment_of(x), n_target)
    best = np.linalg.eigvalsh(moment_of(centred))[::-1][: n_target - 1].sum()
    np.testing.assert_allclose(np.sum((x @ q.T) ** 2) / len(x), best, rtol=1e-8)
    np.testing.assert_allclose(x @ q.T, centred @ q.T, atol=1e-8)


def test_at_full_width_the_centred_isometry_is_a_rotation_of_the_centred_signal() -> None:
    x = signal(8, seed=2)
    centred = x - x.mean(axis=1, keepdims=True)
    q = isometry_centred(moment_of(x), 8)
    np.testing.assert_allclose(centred @ q.T @ q, centred, atol=TOLERANCE)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_moment_that_is_not_finite_is_named(bad: float) -> None:
    moment = np.eye(4)
    moment[2, 2] = bad
    for fit in (klt, lambda m: isometry_centred(m, 2)):
        with pytest.raises(CalibrationError, match=r"not finite at 1 of them \(the first: 2\).*float32"):
            fit(moment)


def test_a_moment_that_is_not_symmetric_is_refused() -> None:
    moment = np.eye(4)
    moment[0, 1] = 0.1
    with pytest.raises(CalibrationError, match="not symmetric"):
        klt(moment)
