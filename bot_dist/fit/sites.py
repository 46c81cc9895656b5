"""Sites in a model at which statistics are gathered, and their sums over tokens."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bot_dist.errors import InputError, nearest
from bot_dist.fit.streamed_model import path_in
from bot_dist.model import Model, Weight

COLUMNS = 256
"""Columns of a matrix of products that are computed together."""

Tap = Literal["input", "normalised", "output"]


@dataclass(frozen=True, kw_only=True)
class Site:
    """A module whose activations are of interest."""

    name: str
    """Name of the weight, without ``.weight``."""
    path: str
    """Path of the module in the ``transformers`` model, with ``{layer}`` where there is one in every block."""
    size: int
    """Width of the activations."""
    layers: int
    """Number of such modules."""
    tap: Tap
    """The activations that are taken: a map's input; a norm's input, normalised but without weight and bias; a norm's
    output, where the residual stream itself is normalised (BERT)."""
    norm: Literal["rms", "layer"]

    @property
    def layered(self) -> bool:
        return "{layer}" in self.path


def sites(model: Model, wanted: Iterable[str]) -> list[Site]:
    """The modules of the wanted weights, by name. Raises InputError for what is no norm of the residual stream and no
    linear map."""
    known = {site.name: site for weight in model.weights if (site := _site(model, weight)) is not None}
    for name in (names := sorted({*wanted})):
        if name not in known:
            raise InputError(
                f"statistics of {name!r} are wanted, which is no norm of the residual stream and no linear map of "
                f"family '{model.family.name}'; {nearest(name, known)}"
            )
    return [known[name] for name in names]


def default_wanted(model: Model) -> tuple[str, ...]:
    """Every norm of the residual stream, and the maps that read FFN units or heads."""
    inner = {"mlp", "heads", "kv_heads"}
    names = []
    for weight in model.weights:
        site = _site(model, weight)
        of_stream = not weight.into_residual
        reads_inner = any(use.role == "read" and use.axis in inner for use in weight.uses)
        if site is not None and (reads_inner if site.tap == "input" else of_stream):
            names.append(site.name)
    return tuple(names)


def _site(model: Model, weight: Weight) -> Site | None:
    path = (weight.inside or weight.hf).removesuffix(".weight")
    read = [dim for dim in weight.dims if any(use.role == "read" for use in dim)]
    norm = [(use.axis, use.role) for use in weight.uses] == [("embed", "pointwise")]
    if not (weight.inside or weight.hf).endswith(".weight") or weight.pooled or not (norm or read):
        return None
    (dim,) = read or weight.dims
    tap: Tap = "input" if read else "output" if model.family.post_norm else "normalised"
    return Site(
        name=weight.name.removesuffix(".weight"),
        path=path_in(model, path),
        size=math.prod(model.sizes[use.axis] for use in dim),
        layers=model.weight_layers(weight),
        tap=tap,
        norm=model.family.norm,
    )


class Moment:
    """Sums of ``x xᵀ`` and ``x`` over tokens, in float64.

    The products of one window are made in float32, which is what the activations are rounded to anyway, at twice the
    speed; windows are added up in float64, so that the error does not grow with their number.
    """

    def __init__(self, size: int) -> None:
        self._lower = torch.zeros(size, size, dtype=torch.float64)
        self.total = torch.zeros(size, dtype=torch.float64)

    def add(self, x: torch.Tensor) -> None:
        """Add the activations ``x``, ``(tokens, size)``, to the sums."""
        assert x.shape[1] == len(self.total), (x.shape, self.total.shape)
        for first in range(0, x.shape[1], COLUMNS):  # what is above the diagonal needs no computing
            self._lower[first:, first : first + COLUMNS] += x[:, first:].T @ x[:, first : first + COLUMNS]
        self.total += x.sum(0, dtype=torch.float64)

    def products(self) -> torch.Tensor:
        """The sum of ``x xᵀ``, ``(size, size)``, symmetric."""
        for first in range(0, len(self.total), COLUMNS):
            last = first + COLUMNS
            corner = self._lower[first:last, first:last]
            corner.copy_(corner.tril() + corner.tril(-1).T)
            self._lower[first:last, last:] = self._lower[last:, first:last].T
        return self._lower


@contextmanager
def gathering(module: torch.nn.Module, chosen: Iterable[Site], layer: int = 0) -> Iterator[dict[str, Moment]]:
    """The moments of the sites in one layer, by name, of what the model computes in the block; those that nothing
    reaches are left out."""
    moments: dict[str, Moment] = {}
    handles: list[Any] = []
    for site in chosen:
        hook = _Hook(site, moments)
        at = module.get_submodule(site.path.format(layer=layer))
        handles.append(
            at.register_forward_hook(hook.after) if site.tap == "output" else at.register_forward_pre_hook(hook.before)
        )
    try:
        yield moments
    finally:
        for handle in handles:
            handle.remove()


class _Hook:
    def __init__(self, site: Site, moments: dict[str, Moment]) -> None:
        self.site, self.moments = site, moments

    def before(self, module: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> None:
        x = args[0]
        self._add(normalised(x, module, self.site.norm) if self.site.tap == "normalised" else x)

    def after(self, module: torch.nn.Module, args: Any, result: torch.Tensor) -> None:
        self._add(result)

    def _add(self, x: torch.Tensor) -> None:
        if self.site.name not in self.moments:
            self.moments[self.site.name] = Moment(self.site.size)
        self.moments[self.site.name].add(x.flatten(0, -2))


def normalised(x: torch.Tensor, module: torch.nn.Module, norm: Literal["rms", "layer"]) -> torch.Tensor:
    """The values that a norm computes of ``(…, size)`` before its weight and bias."""
    eps: float = module.variance_epsilon if hasattr(module, "variance_epsilon") else module.eps  # type: ignore[assignment]
    if norm == "layer":
        x = x - x.mean(-1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
