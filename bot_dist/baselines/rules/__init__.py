"""Published rules to compare with, a file each; a recipe calls a rule as its file, with hyphens."""

from bot_dist.baselines.rule import Baseline
from bot_dist.registry import Registry

BASELINES: Registry[Baseline] = Registry(Baseline, "BASELINE", __name__, __path__, what="baseline", hyphens=True)
