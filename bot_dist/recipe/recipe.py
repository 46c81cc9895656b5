"""A recipe: all of its sections, and the keys that stand in none."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any

from pydantic import Field

from bot_dist.recipe.calibrate import CalibrateConfig
from bot_dist.recipe.cluster import ClusterConfig
from bot_dist.recipe.train import HOW_TRAINED, TrainConfig
from bot_dist.recipe.transfer import TransferConfig
from bot_dist.recipe.values import Config, Folder, Sizes, Url
from bot_dist.urls import label

_MEMBER = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""Names of members: of folders, too."""


class MemberConfig(Config):
    """The keys that one member of a family has of its own; the rest is the recipe's."""

    target: Sizes = Field(default_factory=dict)
    """Its sizes; those of the recipe's ``target`` that it leaves out hold too."""
    transfer: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``transfer``."""
    train: dict[str, Any] = Field(default_factory=dict)
    """Keys of ``train``."""


class Recipe(Config):
    """One run: source → plan → transfer → continued pretraining → export → report."""

    source: Url
    """Checkpoint to start from: a folder or URL with safetensors, a ``.gguf`` file, or a bot_dist store;
    ``package://PACKAGE/FILE`` names a file inside an installed Python package."""
    output: Folder
    """Folder of the run (a path that all nodes see)."""
    target_url: Url | None = None
    """URL of the transferred store, any that fsspec knows; None: ``{output}/transferred.zarr``."""
    target: Sizes = Field(default_factory=dict)
    """New sizes: ``layers``, ``embed``, ``mlp``, ``heads``, ``kv_heads``, … (what the family has); others are kept."""
    family: dict[Annotated[str, Field(pattern=_MEMBER)], MemberConfig] = Field(default_factory=dict)
    """Several targets by name, each a run of its own in the folder ``{output}/NAME``: all are transferred, then trained
    one after the other or side by side (``cluster.side_by_side``); ``target``,
    ``transfer`` and ``train`` are what they have in common. ``RECIPE.yaml:NAME`` is one of them."""
    import_to: Url | None = None
    """Folder or URL, which all nodes see, that the source is imported to before all else, so that it is read once from
    where it is, and then from there. None: a family imports a source that is not on a file system, to
    ``{output}/source.zarr``; nothing else does."""
    transfer: TransferConfig = TransferConfig()
    cluster: ClusterConfig = ClusterConfig()
    calibrate: CalibrateConfig = CalibrateConfig()
    train: TrainConfig = TrainConfig()
    overwrite: bool = False
    """Replace what was made there before: stores, exports and records of runs, and nothing else."""

    @property
    def transferred_url(self) -> str:
        return self.target_url or f"{self.output}/transferred.zarr"

    @property
    def trained_url(self) -> str:
        return f"{self.output}/trained.zarr"

    @property
    def export_dir(self) -> str:
        return f"{self.output}/export"

    def digest(self) -> str:
        """Identifies what is computed; ``overwrite``, ``allow_mismatch``, where Ray runs, where copies are kept and
        ``HOW_TRAINED`` are not part of it."""
        data = self.model_dump(
            exclude={
                "overwrite": True,
                "import_to": True,
                "calibrate": {"folder", "document_limit", "allow_mismatch"},
                "train": set(HOW_TRAINED),
                "cluster": {"address", "wait_s", "allow_unauthenticated"},
            }
        )
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]

    def public(self) -> dict[str, Any]:
        """The recipe as plain data for manifests, records and reports: URLs without secrets."""
        data: dict[str, Any] = labelled(self.model_dump(mode="json", exclude={"cluster": {"address"}}))
        return data


def labelled(value: Any) -> Any:
    """Plain data with URLs without secrets."""
    if isinstance(value, dict):
        return {key: labelled(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [labelled(inner) for inner in value]
    return label(value) if isinstance(value, str) else value
