"""A summary of a committed store: its content and its origin."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

from bot_dist.model import model_of
from bot_dist.operators import SUFFIXES
from bot_dist.plan import DETAILS, Details, Moment, moment_name
from bot_dist.recipe import make_recipe
from bot_dist.store.fitted_operators import operator_digest
from bot_dist.store.layout import StoredParameter
from bot_dist.store.manifest import Manifest
from bot_dist.store.reader import CheckpointReader, open_within

_SHORT = 16


@dataclass(frozen=True, kw_only=True)
class StoreRow:
    """One module of a store, whose arrays are alike, or one detail band of a module."""

    name: str
    arrays: int
    stored: StoredParameter
    """Layout of the first array."""
    nbytes: int
    """Bytes of all arrays together."""
    energy_kept: float | None
    """Share of the source's squared norm that was kept; None where nothing was dropped."""


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Counts over a whole store, details included."""

    arrays: int
    shards: int
    chunks: int
    nbytes: int


Kind = Literal["matrix", "selection", "constant"]


@dataclass(frozen=True, kw_only=True)
class OperatorRow:
    """One operator that was fitted to a store's source."""

    store: str
    """Folder of the operator's own store within the store that was made with it: ``operators/NAME``."""
    name: str
    kind: Kind
    shape: tuple[int, ...]
    """Shape of the operator: ``(target, source)`` of a matrix, ``(target,)`` of a selection, which holds the source
    indices that are taken, and ``()`` of a constant."""
    layers: int | None
    """Number of source layers where each has an operator of its own; None where one operator serves all."""
    dtype: str
    nbytes: int
    """Bytes of all layers together."""
    digest: str
    """Digest by which a plan names the operator."""
    used_for: tuple[tuple[str, str], ...]
    """Modules of the target that the operator acts on, each with the axis, or the first of the axes."""


def operator_rows(reader: CheckpointReader) -> list[OperatorRow]:
    """Every operator that a store was made with. Raises CheckpointError where a store of them can't be opened."""
    used = _uses(reader.manifest.provenance.get("plan", {}).get("operators", {}))
    rows = []
    for folder in reader.manifest.operators:
        operators = open_within(reader, folder)
        for name, stored in operators.manifest.parameters.items():
            parameter = stored.parameter
            layers = parameter.sizes[0] if parameter.axes[0] == "layer" else None
            *target, last = parameter.sizes[layers is not None :]
            kind: Kind = "constant" if not target else "selection" if last == 1 else "matrix"
            rows.append(
                OperatorRow(
                    store=folder,
                    name=name,
                    kind=kind,
                    shape=(*target, last) if kind == "matrix" else tuple(target),
                    layers=layers,
                    dtype=stored.dtype,
                    nbytes=stored.nbytes,
                    digest=operator_digest(operators, name),
                    used_for=tuple(used.get(_of(name), ())),
                )
            )
    return rows


def _of(name: str) -> str:
    """The operator that an array is, or that it lies beside."""
    return next((name.removesuffix(suffix) for suffix in SUFFIXES if name.endswith(suffix)), name)


def _uses(planned: Mapping[str, Mapping[str, str]]) -> dict[str, list[tuple[str, str]]]:
    """Module and axis of each fitted operator, by name, from what a manifest records of the plan."""
    used: dict[str, list[tuple[str, str]]] = {}
    for module, by_axis in planned.items():
        for axis, described in by_axis.items():
            for name in re.findall(r"fitted ([^ ,]+)", described):
                used.setdefault(name, []).append((module, axis))
    return used


def store_rows(manifest: Manifest) -> list[StoreRow]:
    """Every module of the model, then every detail band."""
    model = model_of(manifest.config)
    energy = manifest.provenance.get("transfer", {}).get("energy_kept", {})
    detail_energy = manifest.provenance.get("transfer", {}).get("detail_energy", {})
    rows = []
    for weight in model.weights:
        stored = manifest.parameters[model.parameter(weight).name]
        n = model.weight_layers(weight)
        kept = energy.get(weight.name)
        rows.append(StoreRow(name=weight.name, arrays=n, stored=stored, nbytes=n * stored.nbytes, energy_kept=kept))
    for weight in model.weights:
        n, own = model.weight_layers(weight), model.parameter(weight).name
        for state in get_args(Moment):
            if (moment := manifest.parameters.get(moment_name(state, own))) is not None:
                name = moment_name(state, weight.name)
                rows.append(StoreRow(name=name, arrays=n, stored=moment, nbytes=n * moment.nbytes, energy_kept=None))
    for name, stored in manifest.parameters.items():
        if name.startswith(DETAILS):
            module, _, band = name.removeprefix(DETAILS).rpartition("/")
            kept = detail_energy.get(module, {}).get(band)
            rows.append(StoreRow(name=name, arrays=1, stored=stored, nbytes=stored.nbytes, energy_kept=kept))
    return rows


def store_totals(manifest: Manifest) -> Totals:
    every = manifest.parameters.values()
    return Totals(
        arrays=len(every),
        shards=sum(1 for stored in every for _ in stored.shards()),
        chunks=sum(math.prod(stored.grid_shape) for stored in every),
        nbytes=sum(stored.nbytes for stored in every),
    )


def provenance_lines(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """The origin of a store for people: pairs of a heading and one line."""
    for key, value in manifest.provenance.items():
        match key:
            case "source":
                yield "source", ", ".join(str(value[name]) for name in ("url", "format") if name in value)
                if "digest" in value:
                    yield "source digest", value["digest"]
                for name, file in value.get("files", {}).items():
                    facts = ", ".join(f"{what} {_short(fact)}" for what, fact in file.items())
                    yield "source file", f"{name}: {facts}"
            case "plan":
                mesh = " × ".join(f"{axis} {n}" for axis, n in value["mesh"].items())
                yield "plan", f"{value['digest']}, mesh {mesh}"
                if kept := value.get("function_kept"):
                    yield "function kept", kept
                yield from (("note", note) for note in value["notes"])
            case "recipe":
                yield "recipe", ", ".join(changed_settings(value)) or "defaults"
            case "details":
                changed = Details.from_json(value).changed(model_of(manifest.config))
                yield "details", f"along {', '.join(sorted(changed))}, kept"
            case "operators":
                yield "operators", f"{', '.join(value)} (--operators shows them)"
            case "transfer":
                read, written = (value[f"bytes_{done}"] / 1e6 for done in ("read", "written"))
                yield "transfer", f"{value['seconds']:.1f} s, {read:,.1f} MB read, {written:,.1f} MB written"
            case "versions":
                yield "versions", ", ".join(f"{name} {version}" for name, version in value.items())
            case _:
                yield key, str(value)


def changed_settings(recipe: Mapping[str, Any]) -> Iterable[str]:
    """The settings that a recipe changes, as it would override them; but for where it reads and writes."""
    return _changed(recipe, make_recipe({"source": recipe["source"], "output": recipe["output"]}).public())


def _changed(value: Mapping[str, Any], default: Mapping[str, Any], section: str = "") -> Iterable[str]:
    """The settings that a recipe changes, as it would override them."""
    for key, setting in value.items():
        if isinstance(setting, dict) and isinstance(default.get(key), dict):
            yield from _changed(setting, default[key], f"{section}{key}.")
        elif setting != default.get(key):
            yield f"{section}{key}={setting}"


def _short(digest: object) -> str:
    """Enough of a long digest to tell it from others."""
    text = str(digest)
    return text if len(text) <= 2 * _SHORT else f"{text[:_SHORT]}…"
