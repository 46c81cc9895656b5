"""What is to be predicted of which samples."""

from __future__ import annotations

import torch

from bot_dist.train.objectives import HELD_OUT, IGNORED, MASKED, CausalLM, ImageClassification, MaskedLM

MASK, SPECIAL, VOCABULARY = 3, (0, 1, 2), 1000
TOKENS = torch.randint(4, VOCABULARY, (64, 400), generator=torch.Generator().manual_seed(0))


def masked(tokens: torch.Tensor = TOKENS, seed: int = 0, step: int = 5, first: int = 0) -> tuple[torch.Tensor, ...]:
    made = MaskedLM(seed=seed, vocabulary=VOCABULARY, mask=MASK, special=SPECIAL)
    examples = made.examples(tokens, step=step, first=first)
    return examples.inputs["input_ids"], examples.labels


def test_masking_takes_15_percent_and_replaces_80_10_10() -> None:
    seen, labels = masked()
    wanted = labels != IGNORED
    assert torch.equal(wanted.sum(1), torch.full((64,), round(MASKED * 400)))
    assert torch.equal(labels[wanted], TOKENS[wanted])
    assert torch.equal(seen[~wanted], TOKENS[~wanted])
    n = wanted.sum().item()
    assert abs((seen[wanted] == MASK).sum().item() / n - 0.8) < 0.02
    assert abs((seen[wanted] == TOKENS[wanted]).sum().item() / n - 0.1) < 0.02
    random = seen[wanted & (seen != MASK) & (seen != TOKENS)]
    assert len(random.unique()) > 200


def test_masks_depend_on_seed_step_and_place_and_on_no_rank() -> None:
    seen, labels = masked()
    for first in (0, 16, 48):
        assert torch.equal(masked(TOKENS[first : first + 16], first=first)[0], seen[first : first + 16])
    same = TOKENS[:1].expand(2, -1)
    assert not torch.equal(*masked(same)[1])
    for other in (masked(seed=1), masked(step=6), masked(step=HELD_OUT)):
        assert not torch.equal(other[1], labels)


def test_special_tokens_are_not_predicted_and_something_always_is() -> None:
    tokens = torch.zeros(2, 8, dtype=torch.long)
    tokens[:, 5] = 77
    seen, labels = masked(tokens)
    assert (labels != IGNORED).tolist() == [[i == 5 for i in range(8)]] * 2
    assert torch.equal(seen[:, :5], tokens[:, :5])


def test_next_tokens_and_classes() -> None:
    text = CausalLM().examples(TOKENS[:2, :4], step=0, first=0)
    assert torch.equal(text.labels[:, :3], TOKENS[:2, 1:4])
    assert (text.labels[:, 3] == IGNORED).all()
    assert text.n_labels == 6
    pixels, classes = torch.randn(3, 1, 2, 2), torch.tensor([0, 2, 1])
    images = ImageClassification().examples((pixels, classes), step=0, first=0)
    part = images.part(1, 3)
    logits = torch.tensor([[0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])
    assert torch.equal(part.inputs["pixel_values"], pixels[1:])
    assert part.n_correct(logits) == 1
    expected = torch.nn.functional.cross_entropy(logits, classes[1:], reduction="sum")
    torch.testing.assert_close(part.loss(logits), expected)
