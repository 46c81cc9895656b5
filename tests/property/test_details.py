"""Shrinking drops details, and nothing else: with them, every signal comes back."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.errors import PlanError
from bot_dist.operators import (
    Copy,
    FittedLifting,
    FittedMatrix,
    FittedSelection,
    Operator,
    OperatorSpec,
    Resample,
    Stack,
    build_operator,
)
from bot_dist.operators.details import complement
from tests.conftest import examples
from tests.property.test_operators import HAAR, TOLERANCE, boundaries, gains, levels, spec, tolerance, wavelets

ORTHOGONAL = [name for name in pywt.wavelist(kind="discrete") if pywt.Wavelet(name).orthogonal]


@st.composite
def shrinking(draw: st.DrawFn) -> OperatorSpec:
    """Any operator that shrinks an axis."""
    n_target = draw(st.integers(1, 30))
    ratio = draw(st.sampled_from([2, 4, 8]) | st.floats(1.01, 6))
    n_source = max(n_target + 1, round(n_target * ratio))
    if draw(st.sampled_from([False, False, True])):
        return spec(n_source, n_target, kind=Copy, gain=draw(gains))
    return spec(n_source, n_target, wavelet=draw(wavelets), boundary=draw(boundaries), gain=draw(gains))


def is_filter_bank(of: OperatorSpec) -> bool:
    return isinstance(of, Resample) and of.is_bank


def matrices(of: OperatorSpec) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A, D and R."""
    for s in (of, of.detail(), of.restoring()):
        s.check("axis 'embed'")
    a, d, r = (build_operator(s) for s in (of, of.detail(), of.restoring()))
    n_source, n_target = of.n_source, of.n_target
    assert (d.n_target, d.n_source, r.n_target, r.n_source) == (n_source - n_target, n_source, n_source, n_source)
    return a.dense(), d.dense(), r.dense()


@given(shrinking())
@examples(400)
def test_details_give_everything_back(of: OperatorSpec) -> None:
    a, d, r = matrices(of)
    exact = tolerance(of.wavelet, of.levels) if is_filter_bank(of) else TOLERANCE
    np.testing.assert_allclose(r @ np.concatenate((a, d)), np.eye(of.n_source), atol=exact)


@given(shrinking())
@examples(300)
def test_details_are_an_orthonormal_basis_of_what_is_dropped(of: OperatorSpec) -> None:
    """Of every operator but a bank of biorthogonal filters."""
    _, d, r = matrices(of)
    if is_filter_bank(of) and of.wavelet not in ORTHOGONAL:
        return
    exact = tolerance(of.wavelet, of.levels) if is_filter_bank(of) else TOLERANCE
    np.testing.assert_allclose(d @ d.T, np.eye(len(d)), atol=exact)
    np.testing.assert_allclose(r[:, of.n_target :], d.T, atol=exact)
    np.testing.assert_allclose(build_operator(of).dense() @ d.T, 0, atol=exact * of.gain)


@given(st.sampled_from(ORTHOGONAL), st.integers(1, 20), levels, gains)
@examples(200)
def test_energy_is_that_of_approximation_and_details(wavelet: str, small: int, level: int, gain: float) -> None:
    of = spec(small << level, small, wavelet=wavelet, gain=gain)
    w = np.random.default_rng(small).standard_normal(of.n_source)
    a, d, _ = matrices(of)
    approximation = a @ w / (gain * 2 ** (-level / 2))
    energy = (approximation**2).sum() + ((d @ w) ** 2).sum()
    np.testing.assert_allclose(energy, (w**2).sum(), rtol=2 * of.n_source * tolerance(wavelet, level))


def test_a_bank_that_does_not_reconstruct_is_inverted_all_the_same() -> None:
    a, d, r = matrices(spec(48, 24, wavelet="dmey"))
    np.testing.assert_allclose(r @ np.concatenate((a, d)), np.eye(48), atol=1e-10)


@given(wavelets.filter(lambda wavelet: wavelet != "dmey"), st.integers(1, 20), levels)
@examples(200)
def test_details_of_a_filter_bank_are_those_of_pywavelets(wavelet: str, small: int, level: int) -> None:
    x = np.random.default_rng(small).standard_normal(small << level)
    bands, band = [], x
    for _ in range(level):
        band, dropped = pywt.dwt(band, wavelet, "periodization")
        bands.insert(0, dropped)
    _, d, _ = matrices(spec(small << level, small, wavelet=wavelet))
    np.testing.assert_allclose(d @ x, np.concatenate(bands), atol=TOLERANCE)


def test_a_selection_drops_the_other_indices() -> None:
    _, d, r = matrices(spec(6, 3, kind=Copy, gain=2.0))
    assert d.tolist() == np.eye(6)[[1, 3, 5]].tolist()
    assert (r @ [2, 6, 10, 20, 40, 50]).tolist() == [1, 20, 3, 40, 5, 50]


@pytest.mark.parametrize("wavelet", HAAR)
def test_haar_drops_differences(wavelet: str) -> None:
    for boundary in ("periodic", "symmetric"):
        _, d, _ = matrices(spec(4, 2, wavelet=wavelet, boundary=boundary))
        np.testing.assert_allclose(np.abs(d), np.sqrt([[0.5, 0.5, 0, 0], [0, 0, 0.5, 0.5]]), atol=TOLERANCE)


@pytest.mark.parametrize(
    ("of", "width"),
    [
        (spec(32, 16, wavelet="coif3"), 18),
        (spec(64, 16, wavelet="db2"), 10),
        (spec(64, 48), 4),
        (spec(600, 450, wavelet="coif3"), 4),
        (spec(60, 20), 3),
        (spec(60, 20, kind=Copy), 1),
    ],
)
def test_details_of_banded_operators_are_banded(of: OperatorSpec, width: int) -> None:
    for undoing in (of.detail(), of.restoring()):
        assert build_operator(undoing).taps.shape[1] <= width


@given(shrinking())
def test_the_largest_block_is_known_before_anything_is_built(of: OperatorSpec) -> None:
    if not is_filter_bank(of):
        assert build_operator(of.restoring()).taps.shape[1] <= of.undone_block


def test_a_basis_of_the_kernel_does_not_depend_on_how_it_was_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Details that one machine has kept, another puts back: another decomposition gives the same rows."""
    a = build_operator(spec(40, 13, wavelet="db4"))
    expected = [o.dense() for o in complement(a, "db4")]
    qr = np.linalg.qr

    def otherwise(matrix: np.ndarray, mode: str = "reduced") -> tuple[np.ndarray, np.ndarray]:
        basis, triangle = qr(matrix, mode)
        n = matrix.shape[1]
        rng = np.random.default_rng(0)
        signs = np.where(rng.random(min(matrix.shape)) < 0.5, -1.0, 1.0)
        basis[:, : len(signs)] *= signs
        triangle[: len(signs)] *= signs[:, None]
        if mode == "complete":
            basis[:, n:] = basis[:, n:] @ qr(rng.standard_normal((len(basis) - n, len(basis) - n)))[0]
        return basis, triangle

    monkeypatch.setattr(np.linalg, "qr", otherwise)
    for found, wanted in zip(complement(a, "db4"), expected, strict=True):
        np.testing.assert_allclose(found.dense(), wanted, atol=TOLERANCE)


@pytest.mark.parametrize("taps", [[[1.0, 1.0], [1.0, 1.0]], [[1.0, 0.0], [0.0, 0.0]], [[1.0, 2.0], [2.0, 4.0 + 1e-12]]])
def test_dependent_rows_are_refused(taps: list[list[float]]) -> None:
    """As are rows that depend on each other but for rounding."""
    operator = Operator(np.array([[0, 1], [0, 1]]), np.array(taps), 3)
    with pytest.raises(PlanError, match=r"fitted \(3 → 2\) can't be undone: .*use"):
        complement(operator, "fitted (3 → 2)")


def test_more_rows_than_columns_are_dependent() -> None:
    operator = Operator(np.zeros((2, 1), dtype=np.int64), np.ones((2, 1)), 3)
    with pytest.raises(PlanError, match="dependent"):
        complement(operator, "fitted")


def test_what_grows_has_no_details() -> None:
    with pytest.raises(PlanError, match=r"axis 'embed': 4 → 8 drops nothing"):
        spec(4, 8).restoring().check("axis 'embed'")


def test_details_of_what_is_not_supported() -> None:
    with pytest.raises(PlanError, match=r"policy 'stack' only grows"):
        spec(8, 4, kind=Stack).detail().check("axis 'embed'")


def test_dense_inverses_have_a_limit() -> None:
    with pytest.raises(PlanError, match=r"axis 'embed': undoing coif3\+area .*\(9000 → 3000\) .*over 4,096; use haar"):
        spec(9000, 3000, wavelet="coif3").restoring().check("axis 'embed'")
    for fine in (spec(9000, 3000), spec(9000, 6750, wavelet="coif3"), spec(65536, 16384, wavelet="coif3")):
        fine.restoring().check("axis 'embed'")
    with pytest.raises(PlanError, match="dense inverse of 9,001"):
        spec(9001, 9000).detail().check("axis 'embed'")
    with pytest.raises(
        PlanError, match=r"undoing fitted embed\.write .*over 4,096; use basis permutation in one pass or"
    ):
        spec(9000, 4500, kind=FittedMatrix, handle="#embed.write").detail().check("axis 'embed'")
    for kind in (FittedLifting, FittedSelection):
        spec(9000, 4500, kind=kind).restoring().check("axis 'mlp'")
