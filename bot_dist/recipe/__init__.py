"""Recipes: what the user asks for, as strict, frozen configuration models.

A recipe is one YAML file, with a module here for each section; every key is documented by the docstring under its
field. Unknown keys are errors that name the nearest valid key. Overrides (``train.steps=0``) are applied before
validation, their values parsed as YAML.
"""

from bot_dist.recipe.calibrate import OWN_TEXT, CalibrateConfig
from bot_dist.recipe.cluster import ClusterConfig, ExecutorName
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
from bot_dist.recipe.recipe import Recipe, labelled
from bot_dist.recipe.shown import commented, schema
from bot_dist.recipe.texts import DOCUMENT_LIMIT, TextConfig
from bot_dist.recipe.train import HOW_TRAINED, InsertedConfig, TrainConfig
from bot_dist.recipe.transfer import PRESETS, Basis, TransferConfig
from bot_dist.recipe.values import Config, Folder, Sizes, parse_bytes

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
