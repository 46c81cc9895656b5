"""A ``.gguf`` file, as llama.cpp and its like read it."""

from bot_dist.formats.gguf.read import open_gguf
from bot_dist.formats.sources import SourceFormat

SOURCE = SourceFormat(open=open_gguf, ends=(".gguf",))
