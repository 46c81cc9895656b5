"""Statistics of a source model from a text, streamed through it block by block, and the operators fitted to them."""

from bot_dist.calibrate.adapt import Adaptation, Adapted, Text, follows
from bot_dist.calibrate.moments import default_wanted
from bot_dist.calibrate.statistics import Statistics, statistics
from bot_dist.calibrate.tokens import windows

__all__ = ["Adaptation", "Adapted", "Statistics", "Text", "default_wanted", "follows", "statistics", "windows"]
