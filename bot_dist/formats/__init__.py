"""Checkpoints of others: safetensors and GGUF in, safetensors and torch's DCP out, and their tokenizers."""

from bot_dist.formats.open import open_source
from bot_dist.formats.source import Source

__all__ = ["Source", "open_source"]
