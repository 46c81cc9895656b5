"""Texts to learn from, in files of any size: plain text, JSON lines, CSV, Parquet, and data sets of Hugging Face's.

A text file is cut into ranges by its content alone, so that whoever reads them, and how many do, changes nothing.
"""

from bot_dist.data.texts.identity import Identity, identities
from bot_dist.data.texts.open import open_texts
from bot_dist.data.texts.pieces import Piece, TextFile

__all__ = ["Identity", "Piece", "TextFile", "identities", "open_texts"]
