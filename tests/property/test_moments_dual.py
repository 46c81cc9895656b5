"""What AdamW's moments take in the place of an operator is its transposed pseudo-inverse, and the squares of that."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
from hypothesis import assume, given
from hypothesis import strategies as st

from bot_dist.errors import PlanError
from bot_dist.operators import (
    Constant,
    Copy,
    Diagonal,
    FirstMoment,
    Lazy,
    Merge,
    OperatorSpec,
    Resample,
    SecondMoment,
    Select,
    Stack,
    build_operator,
    origins,
)
from bot_dist.operators.optimizer_state import dual_matrix
from tests.conftest import examples
from tests.property.test_operators import boundaries, gains, lengths, levels, wavelets

CONDITION = 1e3
"""Of a matrix whose pseudo-inverse is beyond doubt."""
KINDS = (Resample, Copy, Lazy, Stack, Select, Merge, Constant, Diagonal)


def moments(of: OperatorSpec) -> tuple[np.ndarray, np.ndarray]:
    found = []
    for kind in (FirstMoment, SecondMoment):
        spec = kind(n_source=of.n_source, n_target=of.n_target, of=of)
        spec.check("axis 'embed'")
        operator = build_operator(spec)
        assert (operator.n_target, operator.n_source) == (of.n_target, of.n_source)
        found.append(operator.dense())
    return found[0], found[1]


@st.composite
def operators(draw: st.DrawFn) -> OperatorSpec:
    """Any operator that is built, up or down."""
    small, more, gain = draw(lengths), draw(st.integers(1, 20)), draw(gains)
    kind = draw(st.sampled_from(KINDS))
    n_source, n_target, options = small, small + more, {"gain": gain}
    if kind is Resample:
        large = small << draw(levels) if draw(st.booleans()) else n_target
        n_source, n_target = draw(st.permutations([small, large]))
        options |= {"wavelet": draw(wavelets), "boundary": draw(boundaries)}
    elif kind is Copy:
        options["split"] = draw(st.sampled_from([0, 0.5, 1]))
        options["speaks"] = draw(st.sampled_from(["every", "first", "last"]))
    elif kind is Select:
        n_target = draw(st.integers(1, 20))
        taken = st.integers(0, small - 1)
        options["indices"] = tuple(draw(st.lists(taken, min_size=n_target, max_size=n_target)))
    elif kind is Merge:
        n_source, n_target = small + more, 2
        options |= {"split": draw(st.sampled_from([0, 0.5, 1])), "indices": (0, draw(st.integers(1, small)))}
    elif kind is Constant:
        options = {"value": gain}
    elif kind is Diagonal:
        n_target = small
        options = {"factors": tuple(draw(st.lists(gains, min_size=small, max_size=small)))}
    return kind(n_source=n_source, n_target=n_target, **options)


@given(operators())
@examples(500)
def test_moments_take_the_transposed_pseudo_inverse_and_its_squares(of: OperatorSpec) -> None:
    a = build_operator(of).dense()
    sizes = np.linalg.svd(a, compute_uv=False)
    kept = sizes[sizes > 1e-9 * sizes[0]]
    assume(not len(kept) or kept[0] < CONDITION * kept[-1])
    first, second = moments(of)
    np.testing.assert_allclose(first, np.linalg.pinv(a, rcond=1e-9).T, atol=1e-9 * max(1, np.abs(first).max()))

    taking = first.any(axis=1)
    np.testing.assert_array_equal(second[taking], first[taking] ** 2)
    np.testing.assert_array_equal(second[~taking], np.eye(of.n_source)[origins(of.n_source, of.n_target)][~taking])


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 2**32 - 1))
def test_so_has_a_dense_matrix_of_any_rank(n_target: int, n_source: int, rank: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rank = min(rank, n_target, n_source)
    left, right = (np.linalg.qr(rng.standard_normal((n, rank)))[0] for n in (n_target, n_source))
    a = (left * rng.uniform(0.1, 2, rank)) @ right.T
    np.testing.assert_allclose(dual_matrix(a), np.linalg.pinv(a, rcond=1e-9).T, atol=1e-9)


def test_gradients_of_a_grown_model_are_where_those_of_its_source_go() -> None:
    """Units are copied, and read in part: y = outer · inner · x."""
    rng = np.random.default_rng(0)
    specs = [Copy(n_source=4, n_target=6, split=split) for split in (0.0, 1.0)]
    write, read = (build_operator(spec).dense() for spec in specs)
    inner, outer, x, error = (rng.standard_normal(shape) for shape in ((4, 5), (3, 4), 5, 3))
    grown_inner, grown_outer = write @ inner, outer @ read.T
    np.testing.assert_allclose(grown_outer @ grown_inner @ x, outer @ inner @ x, atol=1e-12)
    gradients = np.outer(outer.T @ error, x), np.outer(error, inner @ x).T
    grown = np.outer(grown_outer.T @ error, x), np.outer(error, grown_inner @ x).T
    for spec, gradient, wanted in zip(specs, gradients, grown, strict=True):
        first, second = moments(spec)
        np.testing.assert_allclose(first @ gradient, wanted, atol=1e-12)
        np.testing.assert_allclose(second @ gradient**2, wanted**2, atol=1e-12)


def test_what_is_too_large_to_invert_is_refused() -> None:
    orthogonal = [name for name in pywt.wavelist(kind="discrete") if pywt.Wavelet(name).orthogonal and name != "dmey"]
    for wavelet in orthogonal:
        assert Resample(n_source=8192, n_target=16384, wavelet=wavelet).dual_block == 1
    of = Resample(n_source=8192, n_target=16384, wavelet="bior6.8")
    with pytest.raises(PlanError, match=r"w: carrying AdamW's moments .* dense inverse of 16,384 .*moments none"):
        FirstMoment(n_source=8192, n_target=16384, of=of).check("w")
