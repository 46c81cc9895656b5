"""Random numbers depend on the key and the place alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bot_dist.tensors import whole
from bot_dist.tensors.random import BLOCK, normal

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple)


@given(sizes, st.data())
def test_a_box_holds_what_the_whole_tensor_holds_there(sizes: tuple[int, ...], data: st.DataObject) -> None:
    box = []
    for n in sizes:
        start = data.draw(st.integers(0, n - 1))
        box.append((start, data.draw(st.integers(start + 1, n))))
    full = normal("key", sizes, whole(sizes))
    np.testing.assert_array_equal(normal("key", sizes, tuple(box)), full[tuple(slice(*r) for r in box)])


def test_keys_differ_and_equal_keys_do_not() -> None:
    shape = (3, BLOCK)
    a, b, again = (normal(key, shape, whole(shape)) for key in ("a", "b", "a"))
    assert np.array_equal(a, again)
    assert not np.array_equal(a, b)
    assert len(np.unique(a)) > 0.99 * a.size  # no block repeats another


def test_values_are_standard_normal() -> None:
    shape = (64, 4096)
    values = normal("moments", shape, whole(shape)).astype(np.float64)
    assert values.mean() == pytest.approx(0, abs=0.01)
    assert values.std() == pytest.approx(1, abs=0.01)
    assert (values**4).mean() == pytest.approx(3, abs=0.1)
