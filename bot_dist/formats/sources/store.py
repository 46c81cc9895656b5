"""A store of bot_dist, be it complete or not."""

from bot_dist.formats.sources import SourceFormat
from bot_dist.store import CheckpointReader

SOURCE = SourceFormat(open=CheckpointReader, marker="zarr.json")
