"""Recipes: what the user asks for, as strict, frozen configuration models.

A recipe is one YAML file; every key is documented by the docstring under its field. Unknown keys are errors that name
the nearest valid key. Overrides (``train.steps=0``) are applied before validation, their values parsed as YAML.
"""

from bot_dist.recipe.config import (
    DOCUMENT_LIMIT,
    HOW_TRAINED,
    OWN_TEXT,
    PRESETS,
    Basis,
    CalibrateConfig,
    ClusterConfig,
    Config,
    ExecutorName,
    Folder,
    InsertedConfig,
    Recipe,
    Sizes,
    TextConfig,
    TrainConfig,
    TransferConfig,
    labelled,
    parse_bytes,
)
from bot_dist.recipe.load import (
    load_recipe,
    make_recipe,
    member_of,
    members_of,
    read_yaml,
    refuse_family,
    split_member,
    validated,
)
from bot_dist.recipe.shown import commented, schema

__all__ = [
    "DOCUMENT_LIMIT",
    "HOW_TRAINED",
    "OWN_TEXT",
    "PRESETS",
    "Basis",
    "CalibrateConfig",
    "ClusterConfig",
    "Config",
    "ExecutorName",
    "Folder",
    "InsertedConfig",
    "Recipe",
    "Sizes",
    "TextConfig",
    "TrainConfig",
    "TransferConfig",
    "commented",
    "labelled",
    "load_recipe",
    "make_recipe",
    "member_of",
    "members_of",
    "parse_bytes",
    "read_yaml",
    "refuse_family",
    "schema",
    "split_member",
    "validated",
]
