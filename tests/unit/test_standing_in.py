"""Functions that stand in for modules, and runs that end where a module is called."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from bot_dist.fit.standing_in import first_call, standing_in


class Block(torch.nn.Module):
    """Two maps, one after the other; counts how often it was run to its end."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = torch.nn.Linear(2, 3), torch.nn.Linear(3, 2)
        self.ended = 0

    def forward(self, x: torch.Tensor, **options: Any) -> torch.Tensor:
        result: torch.Tensor = self.second(self.first(x) + options.get("shift", 0))
        self.ended += 1
        return result


def test_what_stands_in_is_called_in_place_of_a_module_and_leaves_no_trace() -> None:
    block, x = Block(), torch.randn(4, 2)
    before = block(x)
    with standing_in({block.first: lambda _: torch.ones(4, 3)}):
        assert torch.equal(block(x), block.second(torch.ones(4, 3)))
    assert torch.equal(block(x), before)
    with pytest.raises(ZeroDivisionError), standing_in({block.first: lambda _: 1 / 0}):
        block(x)
    assert torch.equal(block(x), before)


def test_a_run_ends_where_the_module_is_called() -> None:
    block, x = Block(), torch.randn(4, 2)
    with torch.no_grad():
        (read,), keywords = first_call(block.second, lambda: block(x, shift=1))
        assert torch.equal(read, block.first(x) + 1)
    assert keywords == {}
    assert block.ended == 0
    (whole,), keywords = first_call(block, lambda: block(x, shift=1))
    assert whole is x
    assert keywords == {"shift": 1}
    block(x)
    assert block.ended == 1, "nothing stays"


def test_a_module_that_is_not_called_is_told() -> None:
    block, other = Block(), Block()
    with pytest.raises(RuntimeError, match=r"^Linear was not called: "):
        first_call(other.first, lambda: block(torch.randn(4, 2)))
