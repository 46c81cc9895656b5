"""The families of models, a file of declarations each: what the weights are, as names to named axes."""

from bot_dist.model.declaration import Family
from bot_dist.registry import Registry

FAMILIES: Registry[Family] = Registry(Family, "FAMILY", __name__, __path__, what="family")
