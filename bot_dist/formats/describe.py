"""A short description of any source."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from bot_dist.formats.source import Source
from bot_dist.model import model_of
from bot_dist.results import Result, Row
from bot_dist.store import CheckpointReader
from bot_dist.units import size
from bot_dist.urls import label


@dataclass(frozen=True, kw_only=True)
class Module:
    """One weight of every layer that has it."""

    name: str
    axes: dict[str, int]
    """Axes of each tensor, with their sizes."""
    dtypes: tuple[str, ...]
    tensors: int
    nbytes: int
    """Bytes of all tensors together on storage."""


@dataclass(frozen=True, kw_only=True, repr=False)
class Description(Result):
    """A checkpoint for people and for JSON."""

    url: str
    format: str
    family: str
    n_parameters: int
    nbytes: int
    sizes: dict[str, int]
    """Size of every axis that a target may change, ``layers`` among them."""
    losses: dict[str, float]
    """Held-out losses that are recorded with it, by when they were measured."""
    config: dict[str, Any]
    """Configuration of the model, as ``transformers`` has it."""
    modules: tuple[Module, ...]
    """Every weight, in the model's order."""

    def rows(self) -> Iterator[Row]:
        yield "format", self.format
        yield "family", f"{self.family}, {self.n_parameters:,} parameters, {size(self.nbytes)}"
        yield "sizes", ", ".join(f"{name} {n}" for name, n in self.sizes.items())
        if self.losses:
            yield "held-out loss", ", ".join(f"{when}: {loss:.3f}" for when, loss in self.losses.items())
        yield "config", ", ".join(f"{key}={json.dumps(value)}" for key, value in self.config.items())


def describe(source: Source) -> Description:
    """Read no weight. Raises SourceError where the source is not the model that its configuration describes."""
    model = model_of(source.config)
    source.check(model)
    modules = []
    for weight in model.weights:
        parameters = [model.parameter(weight, i) for i in range(model.weight_layers(weight))]
        modules.append(
            Module(
                name=weight.name,
                axes=dict(zip(parameters[0].axes, parameters[0].sizes, strict=True)),
                dtypes=tuple(dict.fromkeys(str(source.dtype(p)).removeprefix("torch.") for p in parameters)),
                tensors=len(parameters),
                nbytes=sum(source.storage_bytes(p) for p in parameters),
            )
        )
    provenance = source.manifest.provenance if isinstance(source, CheckpointReader) else {}
    return Description(
        url=label(source.url),
        format="bot_dist store" if provenance else source.provenance()["format"],
        family=model.family.name,
        n_parameters=model.n_parameters,
        nbytes=sum(module.nbytes for module in modules),
        sizes=dict(model.sizes),
        losses=losses(provenance),
        config=source.config,
        modules=tuple(modules),
    )


def losses(provenance: Mapping[str, Any]) -> dict[str, float]:
    """Held-out losses in a store's provenance: of the source, of the model as it was fitted, and as it was trained."""
    by_stage = {}
    for stage in provenance.get("transfer", {}).get("calibrate", ()):
        if stage.get("loss") is not None:
            by_stage[f"fitted, {', '.join(stage['axes'])}" if stage["axes"] else "source"] = stage["loss"]
    for held_out in provenance.get("held_out") or provenance.get("training", {}).get("held_out", ()):
        by_stage[f"step {held_out['step']}"] = held_out["loss"]
    return by_stage
