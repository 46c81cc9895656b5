"""Sums of products over tokens."""

from __future__ import annotations

import torch

from bot_dist.fit.sites import COLUMNS, Moment
from bot_dist.fit.statistics_share import relative_change


def test_products_of_every_pair_of_columns() -> None:
    x = torch.randn(3, 50, 2 * COLUMNS + 17, generator=torch.Generator().manual_seed(0))
    moment = Moment(x.shape[-1])
    for window in x:
        moment.add(window)
    flat = x.flatten(0, 1).double()
    torch.testing.assert_close(moment.products(), flat.T @ flat, rtol=0, atol=1e-4)
    assert torch.equal(moment.products(), moment.products().T)
    torch.testing.assert_close(moment.total, flat.sum(0))


def test_many_windows_add_no_error() -> None:
    """In float32, 0.1 would be lost beside 2²⁴."""
    moment = Moment(1)
    moment.add(torch.full((1, 1), 2.0**12))
    for _ in range(100):
        moment.add(torch.full((1, 1), 0.1))
    assert abs(moment.products().item() - (2.0**24 + 1)) < 1e-6


def test_a_token_that_was_nothing_counts_as_changed() -> None:
    before = torch.tensor([[3.0, 4.0], [0.0, 0.0]], dtype=torch.float64)
    assert relative_change(before, torch.tensor([[3.0, 5.0], [1.0, 0.0]])).tolist() == [1 / 25, 1.0]
