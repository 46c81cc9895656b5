"""Statistics of a source model on a text or on images, streamed through it block by block, and the operators fitted to
them."""

from bot_dist.calibrate.adapt import Adaptation, Adapted
from bot_dist.calibrate.moments import default_wanted
from bot_dist.calibrate.samples import CalibrationData, Samples
from bot_dist.calibrate.statistics import Statistics, statistics
from bot_dist.calibrate.suitable import check_tokenizer, check_understood
from bot_dist.calibrate.tokens import windows

__all__ = [
    "Adaptation",
    "Adapted",
    "CalibrationData",
    "Samples",
    "Statistics",
    "check_tokenizer",
    "check_understood",
    "default_wanted",
    "statistics",
    "windows",
]
