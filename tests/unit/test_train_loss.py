"""The loss in parts against PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from bot_dist.train import loss as losses
from bot_dist.train.loss import IGNORED, cross_entropy

CLASSES = 11


def rows(n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(n)
    labels = torch.randint(CLASSES, (n,), generator=draw)
    labels[::3] = IGNORED
    return (4 * torch.randn(n, CLASSES, generator=draw)).to(dtype).requires_grad_(), labels


@pytest.mark.parametrize("part", [1, 5 * CLASSES, 2**22])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_value_and_gradient_are_those_of_pytorch(
    part: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(losses, "PART", part)
    logits, labels = rows(17, dtype)
    exact = logits.detach().to(torch.promote_types(dtype, torch.float32)).requires_grad_()
    wanted = F.cross_entropy(exact, labels, ignore_index=IGNORED, reduction="sum")
    (wanted * 3).backward()
    found = cross_entropy(logits * 1, labels)
    (found * 3).backward()
    assert found.dtype == exact.dtype
    torch.testing.assert_close(found, wanted)
    assert logits.grad is not None
    assert exact.grad is not None
    torch.testing.assert_close(logits.grad, exact.grad.to(dtype))
    assert (logits.grad[::3] == 0).all()


def test_the_gradient_takes_the_place_of_the_logits_and_is_there_once() -> None:
    logits, labels = rows(8, torch.float32)
    head = logits * 1
    loss = cross_entropy(head, labels)
    loss.backward(retain_graph=True)
    assert torch.equal(head, logits.grad)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_measuring_leaves_the_logits_as_they_are() -> None:
    logits, labels = rows(8, torch.float32)
    with torch.no_grad():
        before = logits.clone()
        cross_entropy(logits, labels)
    assert torch.equal(logits, before)
