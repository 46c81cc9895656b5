"""Statistics of a source model on a text or on images, streamed through it block by block, and the operators fitted to
them."""

from bot_dist.fit.sites import default_wanted
from bot_dist.fit.stages import Adaptation, Adapted
from bot_dist.fit.statistics import Statistics, statistics
from bot_dist.fit.suitable import check_tokenizer, check_understood

__all__ = [
    "Adaptation",
    "Adapted",
    "Statistics",
    "check_tokenizer",
    "check_understood",
    "default_wanted",
    "statistics",
]
