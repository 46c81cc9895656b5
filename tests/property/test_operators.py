"""PyWavelets is the oracle of every filter bank; what a signal is otherwise, of everything else."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.errors import PlanError, RecipeError
from bot_dist.kernels import Stage, apply_operators
from bot_dist.operators import (
    Copy,
    Diagonal,
    FittedLifting,
    FittedMatrix,
    Lazy,
    Operator,
    OperatorSpec,
    Resample,
    Stack,
    build_operator,
    counts,
    spec_from_json,
    spec_to_json,
)
from tests.conftest import examples

WAVELETS = pywt.wavelist(kind="discrete")
HAAR = ["haar", "db1", "bior1.1", "rbio1.1"]
TOLERANCE = 1e-12
ROUNDING = 16 * np.finfo(np.float64).eps

wavelets = st.sampled_from(WAVELETS)
boundaries = st.sampled_from(["periodic", "symmetric"])
levels = st.integers(1, 3)
lengths = st.integers(1, 24)
gains = st.floats(0.1, 4)


@cache
def tolerance(wavelet: str, levels: int = 1) -> float:
    """What the filter bank itself loses in float64 over some levels: taps are tabulated, and ``dmey`` approximates. Per
    level, by PyWavelets: the largest row of what is wrong with unit vectors that were taken apart and put together, and
    the largest error of a constant after analysis or synthesis alone. The next level amplifies it by its absolute taps.
    """
    bank = pywt.Wavelet(wavelet)
    n = 2 * bank.dec_len
    bands = pywt.dwt(np.eye(n), wavelet, "periodization", axis=0)
    units = np.abs(pywt.idwt(*bands, wavelet, "periodization", axis=0) - np.eye(n)).sum(axis=1)
    down = np.abs(pywt.dwt(np.ones(n), wavelet, "periodization")[0] / math.sqrt(2) - 1)
    up = np.abs(pywt.idwt(np.ones(n), None, wavelet, "periodization") * math.sqrt(2) - 1)
    taps, rows = np.abs(bank.dec_lo), np.abs(bank.rec_lo).reshape(-1, 2)  # of synthesis: one row per parity
    amplified = max(taps.sum() / math.sqrt(2), *rows.sum(axis=0) * math.sqrt(2))
    lost = max(units.max(), down.max(), up.max()) * sum(amplified**k for k in range(levels))
    return max(TOLERANCE, lost + ROUNDING)


def spec(n_source: int, n_target: int, kind: type[OperatorSpec] = Resample, **options: object) -> Any:
    """An operator that keeps the norm of what it resamples."""
    if kind is not Diagonal:
        options.setdefault("gain", np.sqrt(n_source / n_target))
    return kind(n_source=n_source, n_target=n_target, **options)


def dense(n_source: int, n_target: int, **options: object) -> np.ndarray:
    return build_operator(spec(n_source, n_target, **options)).dense()


def area(x: np.ndarray, n_target: int) -> np.ndarray:
    """Area resampling on the finest grid that source and target share."""
    return np.repeat(x, n_target).reshape(n_target, len(x)).mean(axis=1)


# Filter banks at powers of two.


@given(wavelets, lengths, levels)
@examples(300)
def test_shrinking_is_the_approximation_band_of_pywavelets(wavelet: str, small: int, level: int) -> None:
    x = np.random.default_rng(small).standard_normal(small << level)
    band = x
    for _ in range(level):
        band = pywt.dwt(band, wavelet, "periodization")[0]
    np.testing.assert_allclose(dense(small << level, small, wavelet=wavelet) @ x, band, atol=TOLERANCE)


@given(wavelets, lengths, levels)
@examples(300)
def test_growing_is_the_synthesis_of_pywavelets_with_zero_details(wavelet: str, small: int, level: int) -> None:
    x = np.random.default_rng(small).standard_normal(small)
    signal = x
    for _ in range(level):
        signal = pywt.idwt(signal, None, wavelet, "periodization")
    np.testing.assert_allclose(dense(small, small << level, wavelet=wavelet) @ x, signal, atol=TOLERANCE)


@given(wavelets, lengths, levels)
@examples(200)
def test_growing_then_shrinking_is_the_identity(wavelet: str, small: int, level: int) -> None:
    there, back = (small, small << level), (small << level, small)
    product = dense(*back, wavelet=wavelet) @ dense(*there, wavelet=wavelet)
    np.testing.assert_allclose(product, np.eye(small), atol=tolerance(wavelet, level))


@given(wavelets, boundaries, lengths, levels, levels)
@examples(200)
def test_levels_compose(wavelet: str, boundary: str, small: int, first: int, second: int) -> None:
    sizes = [small, small << first, small << (first + second)]
    for a, b, c in (sizes, sizes[::-1]):
        two = build_operator(spec(b, c, wavelet=wavelet, boundary=boundary)).after(
            build_operator(spec(a, b, wavelet=wavelet, boundary=boundary))
        )
        np.testing.assert_allclose(two.dense(), dense(a, c, wavelet=wavelet, boundary=boundary), atol=TOLERANCE)


@pytest.mark.parametrize("wavelet", ["coif17", "db38", "dmey"])
def test_filters_longer_than_the_axis_wrap_as_often_as_needed(wavelet: str) -> None:
    x = np.random.default_rng(0).standard_normal(6)
    np.testing.assert_allclose(
        dense(6, 3, wavelet=wavelet) @ x, pywt.dwt(x, wavelet, "periodization")[0], atol=TOLERANCE
    )
    # A symmetric axis is one period of a signal of twice its length.
    mirrored = np.concatenate((x, x[::-1]))
    wide = dense(12, 6, wavelet=wavelet) @ mirrored
    shifts = [np.roll(wide, k)[:3] for k in range(6)] + [
        np.roll(dense(12, 6, wavelet=wavelet) @ np.roll(mirrored, 1), k)[:3] for k in range(6)
    ]
    found = dense(6, 3, wavelet=wavelet, boundary="symmetric") @ x
    assert min(np.abs(found - shifted).max() for shifted in shifts) < tolerance(wavelet)


# Any ratio.


@given(st.sampled_from(HAAR), st.integers(1, 60), st.integers(1, 60), boundaries, gains)
@examples(300)
def test_haar_is_area_resampling_at_any_ratio(
    wavelet: str, n_source: int, n_target: int, boundary: str, gain: float
) -> None:
    x = np.random.default_rng(n_source).standard_normal(n_source)
    operator = dense(n_source, n_target, wavelet=wavelet, boundary=boundary, gain=gain)
    np.testing.assert_allclose(operator @ x, gain * area(x, n_target), atol=TOLERANCE)


@given(wavelets, st.integers(1, 40), st.integers(1, 40))
@examples(300)
def test_other_ratios_are_the_nearest_level_and_area_resampling(wavelet: str, n_source: int, n_target: int) -> None:
    x = np.random.default_rng(n_source).standard_normal(n_source)
    # 2^(k − ½) < ratio < 2^(k + ½)
    ratio = max(n_source, n_target) / min(n_source, n_target)
    level = next(k for k in range(9) if ratio**2 < 2 ** (2 * k + 1))
    signal = x if n_target > n_source else area(x, n_target << level)
    for _ in range(level):
        if n_target > n_source:
            signal = pywt.idwt(signal, None, wavelet, "periodization") * math.sqrt(2)
        else:
            signal = pywt.dwt(signal, wavelet, "periodization")[0] / math.sqrt(2)
    signal = area(signal, n_target) if n_target > n_source else signal
    operator = dense(n_source, n_target, wavelet=wavelet, gain=1.0)
    np.testing.assert_allclose(operator @ x, signal, atol=tolerance(wavelet, max(1, level)))


@given(st.integers(1, 30), st.integers(1, 9))
def test_haar_keeps_a_function_at_integer_ratios(small: int, ratio: int) -> None:
    n = small * ratio
    up, down = dense(small, n, gain=1.0), dense(n, small, gain=1.0)
    np.testing.assert_allclose(down @ up, np.eye(small), atol=TOLERANCE)
    read = dense(small, n, gain=1 / ratio)
    np.testing.assert_allclose(read.T @ up, np.eye(small), atol=TOLERANCE)


@given(wavelets, st.integers(1, 40), st.integers(1, 40), boundaries, gains)
@examples(300)
def test_rows_sum_to_the_gain(wavelet: str, n_source: int, n_target: int, boundary: str, gain: float) -> None:
    of_gain = spec(n_source, n_target, wavelet=wavelet, boundary=boundary, gain=gain)
    sums = build_operator(of_gain).dense().sum(axis=1)
    np.testing.assert_allclose(sums, gain, rtol=tolerance(wavelet, max(1, of_gain.levels)))


@pytest.mark.parametrize("wavelet", ["haar", "db2", "coif3", "bior6.8", "sym8"])
@pytest.mark.parametrize(("n_source", "n_target"), [(120, 60), (60, 120), (120, 50), (50, 120), (90, 30), (30, 90)])
def test_the_layer_axis_is_not_shifted(wavelet: str, n_source: int, n_target: int) -> None:
    """A straight line of layers stays where it is, to within half a sample of the finer signal at each level."""
    line = dense(n_source, n_target, wavelet=wavelet, boundary="symmetric", gain=1.0) @ np.arange(n_source)
    centres = (np.arange(n_target) + 0.5) * n_source / n_target - 0.5
    middle = slice(n_target // 3, -(n_target // 3))
    finest = 0.5 ** spec(n_source, n_target).levels * max(1.0, n_source / n_target)
    coarsest = max(1.0, n_source / n_target)
    assert np.abs((line - centres)[middle].mean()) <= 0.5 * (coarsest - finest) + TOLERANCE


def test_symmetric_layers_do_not_mix_first_and_last() -> None:
    assert dense(16, 8, wavelet="db2", boundary="symmetric")[0, -3:].tolist() == [0, 0, 0]
    assert dense(16, 8, wavelet="db4")[0, -1] != 0
    assert dense(25, 8, wavelet="db2", boundary="symmetric")[0, -3:].tolist() == [0, 0, 0]


# Copies and the rest.


@given(st.integers(1, 40), st.integers(1, 40))
def test_counts_say_how_often_each_index_is_copied(n_source: int, n_target: int) -> None:
    copies = dense(n_source, n_target, kind=Copy, gain=1.0)
    assert copies.sum(axis=0).tolist() == counts(n_source, n_target).tolist()
    assert counts(n_source, n_target).sum() == n_target
    origins = [i * n_source // n_target for i in range(n_target)]
    assert copies.argmax(axis=1).tolist() == origins
    assert sorted(origins) == origins
    if n_target < n_source:
        assert len(set(origins)) == n_target


@given(st.integers(1, 30), st.integers(0, 60), gains)
def test_copies_are_an_isometry_and_read_what_was_written(small: int, more: int, gain: float) -> None:
    n = small + more
    q = dense(small, n, kind=Copy, split=0.5, gain=1.0)
    np.testing.assert_allclose(q.T @ q, np.eye(small), atol=TOLERANCE)
    root = math.sqrt(n / small)
    write = dense(small, n, kind=Copy, split=0.5, gain=root)
    read = dense(small, n, kind=Copy, split=0.5, gain=1 / root)
    np.testing.assert_allclose(read.T @ write, np.eye(small), atol=TOLERANCE)
    write = dense(small, n, kind=Copy, gain=gain)
    read = dense(small, n, kind=Copy, split=1.0, gain=1 / gain)
    np.testing.assert_allclose(read.T @ write, np.eye(small), atol=TOLERANCE)


def test_one_copy_speaks() -> None:
    options = {"kind": Copy, "gain": 1.0}
    assert dense(2, 5, **options).tolist() == [[1, 0], [1, 0], [1, 0], [0, 1], [0, 1]]
    assert dense(2, 5, **options, speaks="first").tolist() == [[1, 0], [0, 0], [0, 0], [0, 1], [0, 0]]
    assert dense(2, 5, **options, speaks="last").tolist() == [[0, 0], [0, 0], [1, 0], [0, 0], [0, 1]]
    assert dense(4, 2, **options, speaks="last").tolist() == [[1, 0, 0, 0], [0, 0, 1, 0]]
    assert dense(1, 1, **options, speaks="first").tolist() == [[1]]


@given(st.integers(1, 20), st.integers(0, 20), gains)
def test_lazy_keeps_the_old_indices(small: int, more: int, gain: float) -> None:
    n = small + more
    assert dense(small, n, kind=Lazy, gain=gain).tolist() == (gain * np.eye(n, small)).tolist()


@given(st.integers(1, 9), st.integers(1, 40))
def test_stacking_repeats_the_whole(small: int, n: int) -> None:
    x = np.arange(small)
    assert (dense(small, n, kind=Stack, gain=2.0) @ x).tolist() == [2 * (i % small) for i in range(n)]


def test_a_diagonal_scales_each_index() -> None:
    assert dense(3, 3, kind=Diagonal, factors=(1.0, -2.0, 0.5)).tolist() == np.diag([1, -2, 0.5]).tolist()


@given(wavelets, st.integers(1, 20), st.integers(1, 60), st.sampled_from([Resample, Copy, Lazy, Stack]))
def test_an_origin_is_one_value(wavelet: str, small: int, n: int, kind: type[OperatorSpec]) -> None:
    if n < small:
        return
    candidate = spec(small, n, kind, **({"wavelet": wavelet} if kind is Resample else {}))
    if candidate.takes_origin:
        taps = build_operator(candidate).dense()
        assert ((taps != 0).sum(axis=1) == 1).all()
        assert taps.argmax(axis=1).tolist() == [i * small // n for i in range(n)]


def test_which_operators_take_the_origin() -> None:
    assert spec(2, 6).takes_origin
    assert spec(2, 5, kind=Copy).takes_origin
    for other in (
        spec(2, 5),
        spec(2, 4, wavelet="db2"),
        spec(2, 4, kind=Copy, speaks="first"),
        spec(2, 4, kind=Stack),
        spec(4, 2),
    ):
        assert not other.takes_origin, other


# Operators as banded matrices.


@given(wavelets, st.integers(2, 40), st.integers(2, 40), boundaries, st.data())
def test_a_block_gives_the_same_bytes(
    wavelet: str, n_source: int, n_target: int, boundary: str, data: st.DataObject
) -> None:
    operator = build_operator(spec(n_source, n_target, wavelet=wavelet, boundary=boundary))
    start = data.draw(st.integers(0, n_target - 1))
    stop = data.draw(st.integers(start + 1, n_target))
    x = torch.randn(3, n_source, 5, generator=torch.Generator().manual_seed(n_source))
    everything = Stage(1, *operator.restricted((0, n_target), ((0, n_source),)))
    whole = apply_operators(x, [everything], torch.float32).tensor
    source = operator.support((start, stop))
    part = torch.cat([x[:, a:b] for a, b in source], 1)
    block = apply_operators(part, [Stage(1, *operator.restricted((start, stop), source))], torch.float32).tensor
    assert torch.equal(block, whole[:, start:stop])
    exact = torch.einsum("ts,asb->atb", torch.from_numpy(operator.dense()), x.double())
    torch.testing.assert_close(whole.double(), exact, rtol=1e-5, atol=1e-5)


def test_products_merge_equal_indices() -> None:
    pair = Operator(np.array([[0, 1]]), np.array([[1.0, 2.0]]), 2)
    fold = Operator(np.array([[0], [0]]), np.array([[3.0], [5.0]]), 1)
    product = pair.after(fold)
    assert product.indices.tolist() == [[0]]
    assert product.taps.tolist() == [[13.0]]


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 40), st.integers(1, 5), st.integers(1, 5), st.data())
def test_products_are_those_of_matrices(a: int, b: int, c: int, wide: int, wider: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 1000)))
    outer = Operator(rng.integers(0, b, (a, wide)), rng.integers(-2, 3, (a, wide)).astype(float), b)
    inner = Operator(rng.integers(0, c, (b, wider)), rng.integers(-2, 3, (b, wider)).astype(float), c)
    product = outer.after(inner)
    assert product.dense().tolist() == (outer.dense() @ inner.dense()).tolist()
    needed = {i for start, stop in product.support((0, a)) for i in range(start, stop)}
    assert set(np.flatnonzero(product.dense().any(axis=0))) <= needed


def test_products_of_scattered_rows_take_little_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bot_dist.operators.banded.BLOCK", 16)
    rng = np.random.default_rng(0)
    outer = Operator(rng.integers(0, 30, (20, 3)), rng.standard_normal((20, 3)), 30)
    inner = Operator(rng.integers(0, 50, (30, 2)), rng.standard_normal((30, 2)), 50)
    np.testing.assert_allclose(outer.after(inner).dense(), outer.dense() @ inner.dense(), atol=TOLERANCE)


def test_banded_operators_stay_narrow() -> None:
    assert build_operator(spec(48, 24, wavelet="coif3")).taps.shape[1] == 18
    assert build_operator(spec(24, 48, wavelet="coif3")).taps.shape[1] == 9
    assert build_operator(spec(768, 576)).taps.shape[1] == 2
    assert build_operator(spec(24, 96)).taps.shape[1] == 1


# Specs.


def test_specs_survive_json_and_are_hashable() -> None:
    shrinking = spec(9, 4, wavelet="db2", boundary="symmetric")
    for original in (
        shrinking,
        shrinking.restoring(),
        spec(2, 2, kind=Diagonal, factors=(1.0, 0.5)),
        spec(8, 4, kind=FittedMatrix, handle="file:///a.npy", digest="00", per_layer=True),
    ):
        again = spec_from_json(json.loads(json.dumps(spec_to_json(original))))
        assert again == original
        assert hash(again) == hash(original)


@pytest.mark.parametrize(
    ("described", "text"),
    [
        (spec(8, 8, gain=1.0), "keep"),
        (spec(8, 8, gain=1.0, kind=Lazy), "keep"),
        (spec(8, 8, gain=0.5), "area ×0.5"),
        (spec(8, 4, gain=0.5), "haar ×0.5"),
        (spec(8, 7, gain=1.0, wavelet="db2"), "area ×1"),
        (spec(9, 3, gain=1.0, wavelet="db2"), "db2+area ×1"),
        (spec(4, 8, kind=Copy, gain=1.25), "copy ×1.25"),
        (spec(4, 8, kind=Copy, gain=2.0, split=0.5), "copy ×2 /c^½"),
        (spec(4, 8, kind=Copy, gain=1.0, split=1.0), "copy ×1 /c"),
        (spec(4, 8, kind=Copy, gain=1.0, split=0.25), "copy ×1 /c^0.25"),
        (spec(4, 8, kind=Copy, gain=1.0, speaks="last"), "identity"),
        (spec(8, 4, kind=Copy, gain=1.0), "even"),
        (spec(4, 8, kind=Lazy), "lazy"),
        (spec(4, 8, kind=Stack), "stack"),
        (spec(2, 2, kind=Diagonal, factors=(1.0, 2.0)), "diagonal"),
        (spec(8, 4, gain=0.5).detail(), "detail of haar ×0.5"),
        (spec(8, 4, kind=Copy).restoring(), "restore of even"),
        (spec(8, 4, gain=0.5, kind=FittedLifting, handle="a#mlp.read"), "fitted mlp.read ×0.5"),
    ],
)
def test_specs_are_short_in_tables(described: OperatorSpec, text: str) -> None:
    assert str(described) == text


@pytest.mark.parametrize(
    "changing",
    [
        spec(8, 8, gain=2.0),
        spec(1, 1, kind=Diagonal, factors=(1.0,)),
        spec(8, 8, gain=1.0, kind=FittedMatrix),
        spec(8, 4).restoring(),
        spec(8, 4, gain=1.0),
    ],
)
def test_what_must_not_be_skipped(changing: OperatorSpec) -> None:
    assert not changing.is_identity


@pytest.mark.parametrize(("n_source", "n_target"), [(0, 4), (4, 0), (-2, 4), (4, -1)])
def test_sizes_below_one_are_refused(n_source: int, n_target: int) -> None:
    with pytest.raises(PlanError, match=rf"axis 'embed': {n_source} → {n_target} .*at least 1"):
        Resample(n_source=n_source, n_target=n_target).check("axis 'embed'")


@pytest.mark.parametrize(("kind", "policy"), [(Lazy, "lazy"), (Stack, "stack")])
def test_policies_that_only_grow(kind: type[OperatorSpec], policy: str) -> None:
    with pytest.raises(PlanError, match=rf"axis 'embed': policy '{policy}' only grows, and 8 → 4 shrinks; use"):
        spec(8, 4, kind=kind).check("axis 'embed'")
    spec(4, 8, kind=kind).check("axis 'embed'")


def test_a_selection_has_nothing_to_split() -> None:
    with pytest.raises(PlanError, match=r"axis 'embed': policy 'copy' .*8 → 4 shrinks; use 'resample', or split 0"):
        spec(8, 4, kind=Copy, split=0.5).check("axis 'embed'")
    spec(8, 4, kind=Copy).check("axis 'embed'")


@pytest.mark.parametrize(("n_source", "n_target"), [(576, 768), (30, 20), (9, 3), (15, 7), (7, 7)])
def test_every_ratio_is_supported(n_source: int, n_target: int) -> None:
    spec(n_source, n_target, wavelet="coif3").check("axis 'embed'")


def test_an_unknown_wavelet_names_the_nearest() -> None:
    for use in (build_operator, lambda s: s.check("axis 'embed'")):
        with pytest.raises(RecipeError, match=r"unknown wavelet 'bior6\.9'.*'bior6\.8'"):
            use(spec(4, 8, wavelet="bior6.9"))


def test_fitted_operators_are_not_built() -> None:
    with pytest.raises(AssertionError, match=r"file:///a\.npy"):
        build_operator(spec(8, 4, kind=FittedMatrix, handle="file:///a.npy"))
