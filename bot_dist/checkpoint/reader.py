"""Reading a committed store: every chunk that is read is checked against the manifest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from bot_dist.axes import Parameter
from bot_dist.checkpoint import arrays
from bot_dist.checkpoint.layout import StoredParameter
from bot_dist.checkpoint.manifest import Manifest
from bot_dist.checkpoint.storage import Storage
from bot_dist.errors import CheckpointError, SourceError
from bot_dist.plan import DETAILS, Details
from bot_dist.sharding import Box, box_size

if TYPE_CHECKING:
    import torch
    from zarr.abc.store import Store

    from bot_dist.families import Model


@dataclass(frozen=True, kw_only=True)
class Damage:
    """An inner chunk that does not hold what was committed."""

    parameter: str
    chunk: str
    problem: str

    def __str__(self) -> str:
        return f"{self.parameter}, chunk {self.chunk}: {self.problem}"


class CheckpointReader:
    """A committed checkpoint. Implements the ``Source`` protocol; pickles as its URL.

    Raises CheckpointError when the store is not committed or its manifest was changed.
    """

    whole_rows = False

    def __init__(self, url: str) -> None:
        self.url = url
        self.storage = Storage(url)
        self.manifest = Manifest.load(self.storage)

    def __reduce__(self) -> tuple[type[CheckpointReader], tuple[str]]:
        return CheckpointReader, (self.url,)

    @cached_property
    def _store(self) -> Store:
        return self.storage.zarr_store(read_only=True)

    @property
    def config(self) -> dict[str, Any]:
        return self.manifest.config

    def check(self, model: Model) -> None:
        """Raise SourceError unless the store holds exactly the parameters of ``model``."""
        wanted = {parameter.name: parameter for _, _, parameter in model.parameters()}
        for name, parameter in wanted.items():
            stored = self.manifest.parameters.get(name)
            if stored is None:
                raise SourceError(f"{self.storage.label}: parameter {name} is missing")
            if stored.parameter != parameter:
                raise SourceError(
                    f"{self.storage.label}: {name} has axes {stored.parameter.sizes}, wanted {parameter.sizes}"
                )
        for name in self.manifest.parameters.keys() - wanted.keys():
            if name.startswith(DETAILS):
                continue
            raise SourceError(f"{self.storage.label}: {name} is no parameter of the model that its config describes")

    def dtype(self, parameter: Parameter) -> torch.dtype:
        return arrays.torch_dtype(self._stored(parameter.name).dtype)

    def storage_bytes(self, parameter: Parameter) -> int:
        return self._stored(parameter.name).nbytes

    def learning_rate_factor(self, parameter: Parameter) -> float:
        return self._stored(parameter.name).learning_rate_factor

    def parameter(self, name: str) -> Parameter:
        """The parameter or detail band of that name. Raises SourceError when there is none."""
        return self._stored(name).parameter

    def details(self) -> Details | None:
        """How the model was shrunk, where what that dropped was kept."""
        recorded = self.manifest.provenance.get("details")
        return Details.from_json(recorded) if recorded else None

    def read(self, parameter: Parameter, box: Box) -> torch.Tensor:
        """The box, checked. Raises CheckpointError naming the first chunk that is missing or damaged."""
        stored = self._stored(parameter.name)
        if box_size(box) == 0:
            raise ValueError(f"{parameter.name}: empty box {box}")
        region = stored.expand(box)
        values = self._values(stored, region)
        recorded = self.manifest.digests[parameter.name]
        for chunk, found in arrays.chunk_digests(stored, region, values).items():
            if found != recorded[chunk]:
                raise CheckpointError(
                    f"{self.storage.label}: {parameter.name}, chunk {chunk} is missing or damaged "
                    f"(digest {found}, committed {recorded[chunk]}); run the transfer again or restore the store"
                )
        return arrays.to_torch(values[arrays.slices(box, region)], stored.dtype)

    def provenance(self) -> dict[str, Any]:
        return {"url": self.storage.label, "format": "bot_dist", "digest": self.manifest.digest}

    def verify(self, name: str) -> Iterator[Damage | None]:
        """Read every inner chunk of a parameter and yield, for each, what is wrong with it or None."""
        stored = self._stored(name)
        for chunk in stored.chunks():
            key = stored.chunk_key(chunk)
            problem = None
            try:
                found = arrays.digest(self._values(stored, chunk))
            except CheckpointError as error:
                problem = str(error)
            else:
                if found != self.manifest.digests[name][key]:
                    problem = f"digest {found}, committed {self.manifest.digests[name][key]}"
                    if not self.storage.exists(f"{name}/{stored.shard_key(chunk)}"):
                        problem = f"shard {stored.shard_key(chunk)} is missing"
            yield Damage(parameter=name, chunk=key, problem=problem) if problem else None

    def _stored(self, name: str) -> StoredParameter:
        if name not in self.manifest.parameters:
            raise SourceError(f"{self.storage.label} holds no parameter {name}")
        return self.manifest.parameters[name]

    def _values(self, stored: StoredParameter, region: Box) -> np.ndarray[Any, Any]:
        name = stored.parameter.name
        try:
            return np.asarray(arrays.open_array(self._store, stored)[arrays.slices(region)])
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{self.storage.label}: {name}, box {region} can't be read: {error}") from None
