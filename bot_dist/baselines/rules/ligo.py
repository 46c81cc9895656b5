"""LiGO: a linear growth operator that is learned (Wang et al., *Learning to Grow Pretrained Models for Efficient
Transformer Training*, ICLR 2023, arXiv 2303.00980).

``W'_i = Σ_l D_il · B W_l Aᵀ``. One matrix for the residual width is shared by embeddings, norms and all maps; FFN units
and the heads of queries, keys and values have one per layer, which what writes and what reads them share (attention's
output reads what values write); D mixes layers, for every kind of weight its own. They begin as copies (unit i of unit
i mod n, readers taking each copy's part) under a little noise and as the stack again, and are learned with the loss of
the grown model on its own training data for ``STEPS`` steps. The FLOPs of these steps, and of growing within them,
count.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from bot_dist.baselines.rule import Baseline, Batch, Given, Made, Rule, changed, only_grows, refuse_axes
from bot_dist.errors import PlanError
from bot_dist.formats.configuration import RUN, transformers_config
from bot_dist.model import Model, Weight

STEPS = 100
LEARNING_RATE = 1e-3
"""Learning rate of Adam, which falls linearly to zero."""
NOISE = 1e-2
"""Deviation of what is added to the first matrices, so that copies can become different."""
SLOTS = {"attn.q": 0, "attn.k": 1, "attn.v": 2, "attn.out": 2}
"""Whose heads a map has."""


def ligo(source: Model, target: Model) -> Rule:
    only_grows("LiGO", source, target)
    refuse_axes("LiGO", source, target, "position")
    if "heads" not in source.sizes or any(w.root_width or w.offset for w in target.weights):
        raise PlanError(
            f"LiGO is for multi-head attention and plain norms, which family '{source.family.name}' has not; use "
            f"another baseline"
        )
    return Rule(name="LiGO", make=_make, made=target)


def _make(given: Given) -> Made:
    torch.manual_seed(given.seed)
    growth = Growth(given)
    module = _module(given.target)
    optimizer = torch.optim.Adam(growth.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, STEPS)
    losses = []
    for step in range(STEPS):
        loss = _loss(module, growth, given.batch(step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    with torch.no_grad():
        weights = growth()
    context = given.target.tokens_per_sample(given.context)
    model_flops = given.target.training_flops_per_token(context) * context * len(given.batch(0))
    flops = float(STEPS * (model_flops + 3 * growth.flops))
    return Made(weights=weights, flops=flops, facts={"losses": losses, "steps": STEPS})


def _loss(module: torch.nn.Module, growth: Growth, batch: Batch) -> torch.Tensor:
    """Mean over labels, of the grown model."""
    inside = growth.given.target.inside
    weights = {inside[name]: tensor for name, tensor in growth().items()}
    logits = torch.func.functional_call(module, weights, kwargs=dict(batch.inputs), tie_weights=True).logits
    return batch.loss(logits) / batch.n_labels


def _module(model: Model) -> torch.nn.Module:
    import transformers

    config = transformers_config(model.config, **RUN)
    architecture: Any = getattr(transformers, model.family.architecture(model.config))
    module: torch.nn.Module = architecture(config)
    return module.float().train()


class Growth(torch.nn.Module):
    """All matrices; called, the weights of the target by name and in the shape of its files."""

    def __init__(self, given: Given) -> None:
        super().__init__()
        self.given, self.flops = given, 0
        source, target = given.model.sizes, given.target.sizes
        self._axes = changed(given.model, given.target)
        self._source = {weight: given.values(weight) for weight in given.target.weights}
        layers = source["layer"]
        heads = [math.prod(sizes[axis] for axis in ("heads", "head_dim")) for sizes in (source, target)]
        self._heads = heads[0] != heads[1]
        self._counts: dict[str, torch.Tensor] = {}
        self.widths = torch.nn.ParameterDict()
        every: dict[str, tuple[int, int, tuple[int, ...]]] = {
            "embed": (source["embed"], target["embed"], ()),
            "mlp": (source["mlp"], target["mlp"], (layers,)),
            "heads": (heads[0], heads[1], (3, layers)),
        }
        for key, (n_source, n_target, leading) in every.items():
            if n_source != n_target:
                matrix = _copies(source, target, key, n_source, n_target)
                self._counts[key] = matrix.sum(0)[matrix.argmax(1)][:, None]
                noise = NOISE / math.sqrt(n_source) * torch.randn(*leading, n_target, n_source)
                self.widths[key] = torch.nn.Parameter(matrix + noise)
        self.depths = torch.nn.ParameterDict()
        if "layer" in self._axes:
            stacked = torch.eye(layers)[torch.arange(target["layer"]) % layers]
            for weight in self._source:
                if weight.layered:
                    self.depths[weight.name.replace(".", "_")] = torch.nn.Parameter(stacked.clone())

    def forward(self) -> dict[str, torch.Tensor]:
        self.flops = 0
        return self.given.named({weight: self._grown(weight, values) for weight, values in self._source.items()})

    def _grown(self, weight: Weight, values: torch.Tensor) -> torch.Tensor:
        names = [use.axis for use in weight.uses]
        for dim, use in enumerate(weight.uses, start=1):
            if use.axis in ("embed", "mlp") and use.axis in self._axes and use.role != "fixed":
                values = self._along(values, dim, self._matrix(use.axis, use.role == "read"))
        if self._heads and "heads" in names:
            values = self._along_heads(weight, values, names)
        if weight.layered and "layer" in self._axes:
            depth = self.depths[weight.name.replace(".", "_")]
            self.flops += 2 * values.numel() * len(depth)
            values = torch.einsum("Ll,l...->L...", depth, values)
        if self.given.target.tied and weight.name in self.given.target.family.before_head:
            values = values * (self.given.model.sizes["embed"] / self.given.target.sizes["embed"])
        return values

    def _matrix(self, key: str, reads: bool) -> torch.Tensor:
        """``([layers,] n_target, n_source)``."""
        matrix: torch.Tensor = self.widths[key]
        return matrix / self._counts[key] if reads else matrix

    def _along(self, values: torch.Tensor, dim: int, matrix: torch.Tensor) -> torch.Tensor:
        """A matrix, or one per layer, applied along a dimension of ``(layers, …)``."""
        moved = values.movedim(dim, -1)
        flat = moved.reshape(len(moved), -1, moved.shape[-1])
        self.flops += 2 * flat.numel() * matrix.shape[-2]
        return (flat @ matrix.transpose(-1, -2)).reshape(*moved.shape[:-1], -1).movedim(-1, dim)

    def _along_heads(self, weight: Weight, values: torch.Tensor, names: list[str]) -> torch.Tensor:
        """Heads and their coordinates are one axis; fused queries, keys and values have each their matrix."""
        target = self.given.target.sizes
        first, second = names.index("heads") + 1, names.index("head_dim") + 1
        reads = weight.uses[first - 1].role == "read"
        joined = values.movedim((first, second), (-2, -1)).flatten(-2)
        matrix = self._matrix("heads", reads)
        if "qkv" in names:
            slot = [name for name in names if name not in ("heads", "head_dim")].index("qkv") + 1
            parts = [self._along(part, part.dim() - 1, matrix[i]) for i, part in enumerate(joined.unbind(slot))]
            joined = torch.stack(parts, slot)
        else:
            module = weight.name.removesuffix(".weight").removesuffix(".bias")
            joined = self._along(joined, joined.dim() - 1, matrix[SLOTS[module]])
        heads = joined.reshape(*joined.shape[:-1], target["heads"], target["head_dim"])
        return heads.movedim((-2, -1), (first, second))


def _copies(source: dict[str, int], target: dict[str, int], key: str, n_source: int, n_target: int) -> torch.Tensor:
    """``(n_target, n_source)`` of zeros and ones: unit i is unit i mod n; whole heads, and their coordinates."""
    if key != "heads":
        return torch.eye(n_source)[torch.arange(n_target) % n_source]
    heads = torch.eye(source["heads"])[torch.arange(target["heads"]) % source["heads"]]
    inner = torch.eye(source["head_dim"])[torch.arange(target["head_dim"]) % source["head_dim"]]
    return torch.kron(heads, inner)


BASELINE = Baseline(rule=ligo)
