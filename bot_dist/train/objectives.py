"""Objectives of training: samples become the model's inputs, and labels of what it is to predict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F

from bot_dist.errors import InputError
from bot_dist.model import Model
from bot_dist.train.loss import IGNORED, cross_entropy

if TYPE_CHECKING:
    from bot_dist.data.batches import Batches

MASKED = 0.15
"""Share of the tokens of a sequence that BERT predicts: of these 80 % are masked, 10 % random, 10 % as they were."""

HELD_OUT = -1
"""The step that held-out samples are masked for, whenever they are measured."""

Stacked: TypeAlias = "torch.Tensor | tuple[torch.Tensor, torch.Tensor]"
"""Samples. Of a text: a LongTensor ``(samples, context)``. Of images: pixels ``(samples, channels, height, width)`` and
a LongTensor ``(samples,)`` with their classes."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """The data that a run is trained on and measured on."""

    batches: Batches[Any]
    """Batches of ``Stacked`` samples."""
    held_out: Stacked
    tokens_per_sample: int
    """Positions that the model computes for one sample."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """Inputs of the model's ``forward`` by name, and labels in the shape of its logits without the last dimension."""

    inputs: Mapping[str, torch.Tensor]
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def n_labels(self) -> int:
        return int((self.labels != IGNORED).sum())

    def part(self, start: int, stop: int) -> Examples:
        return Examples(inputs={k: v[start:stop] for k, v in self.inputs.items()}, labels=self.labels[start:stop])

    def to(self, device: str) -> Examples:
        return Examples(inputs={k: v.to(device) for k, v in self.inputs.items()}, labels=self.labels.to(device))

    def loss(self, logits: torch.Tensor) -> torch.Tensor:
        """Sum over all labels of the cross-entropy in nats; its backward pass overwrites the logits."""
        return cross_entropy(logits.flatten(0, -2), self.labels.flatten())

    def n_correct(self, logits: torch.Tensor) -> int:
        return int((logits.argmax(-1) == self.labels).sum())


class Objective(Protocol):
    """Makes examples of samples. Nothing depends on the rank that does it."""

    measures_accuracy: bool

    def examples(self, samples: Stacked, *, step: int, first: int) -> Examples:
        """Make examples of samples; ``first`` is the place of the first of them in the step."""


@dataclass(frozen=True)
class CausalLM:
    """Every token but the first of a sequence is predicted from those before it."""

    measures_accuracy = False

    def examples(self, samples: Stacked, *, step: int, first: int) -> Examples:
        assert isinstance(samples, torch.Tensor)
        # The last token predicts nothing; marking it is cheaper than slicing it off, which copies all the logits.
        return Examples(inputs={"input_ids": samples}, labels=F.pad(samples[:, 1:], (0, 1), value=IGNORED))


@dataclass(frozen=True, kw_only=True)
class MaskedLM:
    """Devlin et al. 2019: ``MASKED`` of the tokens of each sequence are predicted from the others. Which they are
    depends on the seed, the step and the place of the sequence in it."""

    seed: int
    vocabulary: int
    mask: int
    """Token that stands for what is masked."""
    special: tuple[int, ...] = ()
    """Tokens that are never predicted."""

    measures_accuracy = False

    def examples(self, samples: Stacked, *, step: int, first: int) -> Examples:
        assert isinstance(samples, torch.Tensor)
        masked, labels = samples.numpy().copy(), np.full(samples.shape, IGNORED, np.int64)
        for i, (tokens, seen, wanted) in enumerate(zip(samples.numpy(), masked, labels, strict=True)):
            draw = np.random.default_rng([self.seed, step - HELD_OUT, first + i])
            places = np.flatnonzero(~np.isin(tokens, self.special))
            places = draw.permutation(places)[: max(1, round(MASKED * len(places)))]
            wanted[places] = tokens[places]
            kind = draw.random(len(places))
            seen[places[kind < 0.8]] = self.mask
            random = places[kind >= 0.9]
            seen[random] = draw.integers(self.vocabulary, size=len(random))
        return Examples(inputs={"input_ids": torch.from_numpy(masked)}, labels=torch.from_numpy(labels))


@dataclass(frozen=True)
class ImageClassification:
    """The class of each image is predicted."""

    measures_accuracy = True

    def examples(self, samples: Stacked, *, step: int, first: int) -> Examples:
        pixels, classes = samples
        return Examples(inputs={"pixel_values": pixels}, labels=classes)


TRAINED = {
    "bert": ("BertForMaskedLM",),
    "vit": ("ViTForImageClassification",),
    "deit": ("DeiTForImageClassification", "DeiTForImageClassificationWithTeacher"),
}
"""Classes of ``transformers`` by family, where it has several: those that have a head to pretrain, and none that would
stay untrained."""


def check_objective(model: Model, run: str) -> None:
    """Raise InputError where the class of the model is not one that is pretrained."""
    name, wanted = model.family.architecture(model.config), TRAINED.get(model.family.name)
    if wanted is not None and name not in wanted:
        raise InputError(
            f"run '{run}': its config.json names the architecture {name}, which has no head to pretrain or one that "
            f"would stay untrained; name {' or '.join(wanted)} there"
        )


def objective_of(model: Model, *, seed: int, masking: Mapping[str, Any] | None = None) -> Objective:
    """The objective of the model's family; ``masking`` are ``mask`` and ``special`` of a ``MaskedLM``."""
    if model.family.objective == "masked":
        assert masking is not None, "the driver takes it from the tokenizer"
        return MaskedLM(
            seed=seed,
            vocabulary=model.sizes["vocab"],
            mask=masking["mask"],
            special=tuple(masking["special"]),
        )
    return ImageClassification() if model.family.objective == "image" else CausalLM()
