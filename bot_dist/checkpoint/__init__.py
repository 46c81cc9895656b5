"""The checkpoint: a zarr v3 group whose commit is a manifest with a digest per inner chunk. Format version 0.

A store at ``URL/`` holds

- ``zarr.json``: the group, whose attribute ``bot_dist`` names the format version and the plan that writes here;
- ``NAME/``: one sharded array per parameter, named as ``transformers`` names it, of the *unfused* shape with the
  axes as ``dimension_names`` (``kv_heads, group, head_dim, embed``); ``attributes.shape`` is the fused shape.
  ``attributes.learning_rate_factor`` is what Adam's learning rate is to be multiplied by, and weight decay divided
  by. bfloat16 is stored as uint16 bit patterns, with ``attributes.logical_dtype``. Chunks carry crc32c, nothing is
  compressed, and what was never written reads as NaN, not as zero;
- ``details/MODULE/BAND/``: what shrinking dropped, where the plan keeps it: one array per detail band of a module, with
  the layer axis; ``BAND`` has a letter per axis, ``d`` where it is the detail. No parameters of the model;
- ``tokenizer/``: the tokenizer's files, where the source has them;
- ``_steps/``: what an unfinished transfer has finished so far; gone after the commit;
- ``manifest.json``: written last, by exclusive creation. Readers refuse a store without it, and check every chunk
  they read against it.

The format promises no compatibility yet.
"""

from bot_dist.checkpoint.layout import StoredParameter, store_layout
from bot_dist.checkpoint.mallat import MallatSource
from bot_dist.checkpoint.manifest import FORMAT_VERSION, Manifest
from bot_dist.checkpoint.operators import read_operators, write_operators
from bot_dist.checkpoint.reader import CheckpointReader, Damage
from bot_dist.checkpoint.storage import Storage
from bot_dist.checkpoint.writer import CheckpointWriter

__all__ = [
    "FORMAT_VERSION",
    "CheckpointReader",
    "CheckpointWriter",
    "Damage",
    "MallatSource",
    "Manifest",
    "Storage",
    "StoredParameter",
    "read_operators",
    "store_layout",
    "write_operators",
]
