"""PyWavelets is the oracle of every filter-bank operator."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bot_dist.errors import PlanError, RecipeError
from bot_dist.wavelets import Operator, OperatorSpec, build_operator, check_supported
from bot_dist.wavelets.apply import apply_operator

WAVELETS = pywt.wavelist(kind="discrete")
TOLERANCE = 1e-12

wavelets = st.sampled_from(WAVELETS)
levels = st.integers(1, 3)
lengths = st.integers(1, 24)


def reconstruction_error(wavelet: str, x: np.ndarray) -> float:
    """What the filter bank itself loses in float64 (``dmey`` is an approximation)."""
    return float(np.abs(pywt.idwt(*pywt.dwt(x, wavelet, "periodization"), wavelet, "periodization") - x).max())


def spec(n_source: int, n_target: int, **options: object) -> OperatorSpec:
    row_sum = options.pop("row_sum", np.sqrt(n_source / n_target))
    return OperatorSpec(n_source=n_source, n_target=n_target, row_sum=row_sum, **options)  # type: ignore[arg-type]


@given(wavelets, lengths, levels)
@settings(deadline=None, max_examples=300)
def test_shrinking_is_the_approximation_band_of_pywavelets(wavelet: str, small: int, level: int) -> None:
    x = np.random.default_rng(small).standard_normal(small << level)
    band = x
    for _ in range(level):
        band = pywt.dwt(band, wavelet, "periodization")[0]
    operator = build_operator(spec(small << level, small, wavelet=wavelet))
    np.testing.assert_allclose(operator.dense() @ x, band, atol=TOLERANCE)


@given(wavelets, lengths, levels)
@settings(deadline=None, max_examples=300)
def test_growing_is_the_synthesis_of_pywavelets_with_zero_details(wavelet: str, small: int, level: int) -> None:
    x = np.random.default_rng(small).standard_normal(small)
    signal = x
    for _ in range(level):
        signal = pywt.idwt(signal, None, wavelet, "periodization")
    operator = build_operator(spec(small, small << level, wavelet=wavelet))
    np.testing.assert_allclose(operator.dense() @ x, signal, atol=TOLERANCE)


@pytest.mark.parametrize("wavelet", WAVELETS)
def test_growing_then_shrinking_is_the_identity(wavelet: str) -> None:
    up, down = build_operator(spec(12, 48, wavelet=wavelet)), build_operator(spec(48, 12, wavelet=wavelet))
    error = 10 * reconstruction_error(wavelet, np.random.default_rng(0).standard_normal(48))
    np.testing.assert_allclose(down.dense() @ up.dense(), np.eye(12), atol=max(TOLERANCE, error))


@given(
    wavelets.filter(lambda w: w != "dmey"),
    st.integers(2, 24),
    st.integers(-2, 2),
    st.sampled_from(["periodic", "symmetric"]),
    st.floats(0.1, 4),
)
@settings(deadline=None)
def test_rows_sum_to_the_gain(wavelet: str, small: int, level: int, boundary: str, gain: float) -> None:
    n_source, n_target = small << max(level, 0), small << max(-level, 0)
    operator = build_operator(spec(n_source, n_target, wavelet=wavelet, boundary=boundary, row_sum=gain))
    wanted = gain if level else 1.0 * gain
    np.testing.assert_allclose(operator.dense().sum(axis=1), wanted, rtol=1e-6)


@pytest.mark.parametrize("wavelet", ["haar", "db2", "coif3", "bior6.8", "sym8"])
def test_the_layer_axis_is_not_shifted(wavelet: str) -> None:
    """A straight line of layers stays where it is, to within half a layer of the finer model."""
    down = build_operator(spec(60, 30, wavelet=wavelet, boundary="symmetric", row_sum=1.0)).dense() @ np.arange(60)
    np.testing.assert_allclose(down[10:20], 2 * np.arange(10, 20) + 0.5, atol=0.51)
    up = build_operator(spec(30, 60, wavelet=wavelet, boundary="symmetric", row_sum=1.0)).dense() @ np.arange(30)
    np.testing.assert_allclose(up[20:40:2] + up[21:41:2], 2 * np.arange(10, 20), atol=0.51)


def test_symmetric_layers_do_not_mix_first_and_last() -> None:
    operator = build_operator(spec(16, 8, wavelet="db2", boundary="symmetric")).dense()
    assert operator[0, -3:].tolist() == [0, 0, 0]
    assert build_operator(spec(16, 8, wavelet="db4")).dense()[0, -1] != 0


def test_identity_insertion_copies_and_silences() -> None:
    copies = build_operator(spec(2, 4, policy="identity", row_sum=1.0)).dense()
    assert copies.tolist() == [[1, 0], [1, 0], [0, 1], [0, 1]]
    silent = build_operator(spec(2, 4, policy="identity", row_sum=1.0, silent_copies=True)).dense()
    assert silent.tolist() == [[1, 0], [0, 0], [0, 1], [0, 0]]


@given(wavelets, st.integers(2, 20), st.integers(-2, 2).filter(bool), st.data())
@settings(deadline=None)
def test_a_block_gives_the_same_bytes(wavelet: str, small: int, level: int, data: st.DataObject) -> None:
    n_source, n_target = small << max(level, 0), small << max(-level, 0)
    operator = build_operator(spec(n_source, n_target, wavelet=wavelet))
    start = data.draw(st.integers(0, n_target - 1))
    stop = data.draw(st.integers(start + 1, n_target))
    x = torch.randn(3, n_source, 5, generator=torch.Generator().manual_seed(small))
    whole = apply_operator(x, operator, 1, (0, n_target), [(0, n_source)])
    source = operator.support((start, stop))
    block = apply_operator(torch.cat([x[:, a:b] for a, b in source], 1), operator, 1, (start, stop), source)
    assert torch.equal(block, whole[:, start:stop])
    dense = torch.einsum("ts,asb->atb", torch.from_numpy(operator.dense()), x.double())
    torch.testing.assert_close(whole.double(), dense, rtol=1e-5, atol=1e-5)


def test_products_merge_equal_indices() -> None:
    pair = Operator(np.array([[0, 1]]), np.array([[1.0, 2.0]]), 2)
    fold = Operator(np.array([[0], [0]]), np.array([[3.0], [5.0]]), 1)
    product = pair.after(fold)
    assert product.indices.tolist() == [[0]]
    assert product.taps.tolist() == [[13.0]]


@pytest.mark.parametrize(("n_source", "n_target"), [(576, 768), (30, 20), (9, 3), (15, 7)])
def test_other_ratios_are_refused_with_those_that_work(n_source: int, n_target: int) -> None:
    with pytest.raises(PlanError, match=rf"axis 'embed': {n_source} → {n_target}.*use .*{2 * n_source}"):
        check_supported(spec(n_source, n_target), "axis 'embed'")


def test_an_unknown_wavelet_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"unknown wavelet 'bior6\.9'.*'bior6\.8'"):
        build_operator(spec(4, 8, wavelet="bior6.9"))
