"""A fitted matrix and its details give every signal back; where nothing is to be inverted, bit by bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.errors import PlanError
from bot_dist.operators.dual import dropped, dual, places, split_of
from bot_dist.operators.lifting import lifted

seeds = st.integers(0, 2**32 - 1)


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 3), seeds)
def test_the_dual_undoes_a_matrix(n_target: int, more: int, lost: int, seed: int) -> None:
    """Also one whose rows are dependent, as those of LayerNorm's bases are, or that may be."""
    rng = np.random.default_rng(seed)
    n_source, rank = n_target + more, max(1, n_target - lost)
    turned = np.linalg.qr(rng.standard_normal((n_source, n_source)))[0]
    scaled = rng.uniform(0.5, 2, (n_target, 1)) * turned[:n_target]
    for matrix in (scaled, rng.standard_normal((n_target, rank)) @ turned[:rank]):
        sizes = np.linalg.svd(matrix)[1]
        if sizes[rank - 1] < 1e-3 * sizes[0]:
            continue
        restoring, details = np.split(dual(matrix, rank, "A"), [n_target])
        assert details.shape == (n_source - rank, n_source)
        np.testing.assert_allclose(details @ details.T, np.eye(len(details)), atol=1e-12)
        np.testing.assert_allclose(restoring.T @ matrix + details.T @ details, np.eye(n_source), atol=1e-9)


def test_dependent_rows_can_not_be_undone() -> None:
    with pytest.raises(PlanError, match="fitted A can't be undone: of its 2 rows fewer than 2 are independent; use"):
        dual(np.array([[1.0, 2, 3], [2, 4, 6]]), 2, "fitted A")
    dual(np.array([[1.0, 2, 3], [2, 4, 6]]), 1, "fitted A")


@given(st.integers(2, 20), st.data())
def test_a_lifting_tells_what_it_keeps(n: int, data: st.DataObject) -> None:
    """Also if it predicts a dropped unit to be just like a kept one."""
    kept = np.array(sorted(data.draw(st.sets(st.integers(0, n - 1), min_size=1, max_size=n))))
    others = dropped(kept, n)
    predictor = np.array(
        data.draw(
            st.lists(
                st.lists(st.sampled_from([0.0, 1.0, 0.3]), min_size=len(kept), max_size=len(kept)),
                min_size=len(others),
                max_size=len(others),
            )
        )
    ).reshape(len(others), len(kept))
    matrix = lifted(n, kept, others, predictor)[1]
    found = split_of(matrix)
    np.testing.assert_array_equal(matrix[:, found], np.eye(len(kept)))
    assert (np.diff(found) > 0).all()
    signal = np.arange(n)
    order = np.concatenate((signal[found], signal[dropped(found, n)]))
    np.testing.assert_array_equal(order[places(found, n)], signal)
